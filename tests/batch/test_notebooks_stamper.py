"""The stamper: siblings differ from their canonical notebook where they may and nowhere else."""

import ast
import dataclasses
import json
import shutil
from pathlib import Path

import nbformat
import pytest

from panderm_utils.batch import plan
from panderm_utils.batch import stamper as notebooks
from panderm_utils.manifests import reading as manifests
from panderm_utils.protocols import list_protocols, load_protocol

ROOT = Path(__file__).parents[2]
DATASETS = load_protocol("linear_probe").supported(manifests.list_datasets())
CANONICALS = [plan.canonical_notebook(load_protocol(name)) for name in list_protocols()]
PAIRS = [(c, d) for c in CANONICALS for d in load_protocol(c.parent.name).supported(manifests.list_datasets())]


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    return tmp_path / "notebooks"


def test_the_repository_has_not_drifted():
    drifted = notebooks.sync(check=True)
    assert drifted == [], notebooks.describe_drift(drifted)


@pytest.mark.parametrize(("canonical", "dataset"), PAIRS, ids=[f"{c.parent.name}-{d}" for c, d in PAIRS])
def test_a_sibling_differs_in_title_and_two_parameters_only(canonical, dataset):
    card = manifests.load_dataset_manifest(dataset)
    ours = nbformat.read(canonical, as_version=4).cells
    theirs = nbformat.reads(notebooks.stamp(canonical, card), as_version=4).cells
    assert [cell.id for cell in theirs] == [cell.id for cell in ours]
    different = [a.id for a, b in zip(theirs[1:], ours[1:], strict=True) if a.source != b.source]
    tagged = next(cell for cell in theirs if "parameters" in cell.metadata.get("tags", []))
    assert set(different) <= {tagged.id}
    before = next(cell.source for cell in ours if cell.id == tagged.id).splitlines()
    for old, new in zip(before, tagged.source.splitlines(), strict=True):
        if not old.startswith(("dataset = ", "profile = ")):
            assert new == old
        assert new.partition("#")[2] == old.partition("#")[2]
    namespace = {}
    exec(tagged.source, namespace)
    assert (namespace["dataset"], namespace["profile"]) == (dataset, card.default_profile)


@pytest.mark.parametrize("canonical", CANONICALS, ids=[path.parent.name for path in CANONICALS])
def test_the_last_thing_that_a_study_does_is_to_save_its_record(canonical):
    """A run whose record is there is done: nothing may come after it, and nothing may leave it earlier."""
    cells = [cell for cell in nbformat.read(canonical, as_version=4).cells if cell.cell_type == "code"]
    saves = [
        (cell.id, ast.unparse(node.func))
        for cell in cells
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("save_record")
    ]
    assert saves == [(cells[-1].id, "results.save_record")]
    (statement,) = ast.parse(cells[-1].source).body
    assert isinstance(statement, ast.Expr)
    assert isinstance(statement.value, ast.Call)
    assert ast.unparse(statement.value.func) == "results.save_record"


def test_every_protocol_has_its_canonical_notebook():
    assert [path.parent.name for path in CANONICALS] == list(list_protocols())


def test_the_title_is_a_contract():
    text = notebooks.title_markdown(load_protocol("linear_probe"), manifests.load_dataset_manifest("ham10000"))
    for part in ("HAM10000", "linear_probe", "Fig. 2a", "0.9225", "weighted F1", "CPU cores", "learn"):
        assert part in text
    for part in (
        "7,470 lesions; with age, sex; without skin tone",
        "histology for 5,340",
        "5 known faults",
        "sdata.2018.161",
    ):
        assert part in text
    assert "**Licence:** CC BY-NC 4.0 *(unverified)*" in text
    result = json.loads(
        json.dumps(manifests.published_value("ham10000", "linear_probe", "panderm_large", "weighted_f1"))
    )
    assert f"{result:.4f}" in text
    ddi = notebooks.title_markdown(load_protocol("linear_probe"), manifests.load_dataset_manifest("ddi"))
    assert "0.9225" not in ddi
    assert "AUROC" in ddi
    assert "how the labels were made is unknown" in ddi
    demo = notebooks.title_markdown(load_protocol("linear_probe"), manifests.load_dataset_manifest("demo"))
    assert "nothing of the paper" in demo


@pytest.mark.parametrize("canonical", CANONICALS, ids=lambda path: path.parent.name)
def test_the_time_of_the_demo_is_in_the_title_alone_and_comes_from_the_protocol(canonical):
    title, *others = nbformat.read(canonical, as_version=4).cells
    assert f"`demo` about {load_protocol(canonical.parent.name).demo_time} on two CPU cores" in title.source
    assert [cell.id for cell in others if "minute" in cell.source] == []


def test_own_data_run_on_real_images_by_default():
    own = dataclasses.replace(manifests.load_dataset_manifest("ddi"), name="mine", title="mine", own=True)
    cells = nbformat.reads(notebooks.stamp(CANONICALS[0], own), as_version=4).cells
    assert "for your data" in cells[0].source
    source = next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    assert 'dataset = "mine"' in source
    assert 'profile = "own"' in source


def test_sync_stamps_all_and_again_changes_nothing(folder):
    for path in folder.glob("linear_probe/*.ipynb"):
        if path.stem != "ham10000":
            path.unlink()
    assert {path.stem for path in notebooks.sync(notebooks=folder)} >= set(DATASETS) - {"ham10000"}
    assert {path.stem for path in folder.glob("linear_probe/*.ipynb")} == set(DATASETS)
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.ipynb")}
    assert notebooks.sync(notebooks=folder) == []
    assert times == {path: path.stat().st_mtime_ns for path in folder.glob("*/*.ipynb")}


def test_a_dataset_gets_the_notebooks_of_the_protocols_that_can_take_it(folder):
    melanoma = {name for name in DATASETS if manifests.load_dataset_manifest(name).melanoma}
    assert {"ham10000", "hiba"} <= melanoma <= set(DATASETS) - {"ddi", "dermnet", "patch16"}
    assert {path.stem for path in folder.glob("external_validation/*.ipynb")} == melanoma
    assert not list(folder.glob("*/ph2.ipynb"))
    assert notebooks.sync(datasets=["ddi"], notebooks=folder) == []
    shutil.copy(folder / "external_validation/hiba.ipynb", folder / "external_validation/ddi.ipynb")
    (stray,) = notebooks.sync(check=True, notebooks=folder)
    assert "external_validation needs `melanoma` in its manifest" in notebooks.describe_drift([stray])


def test_an_edit_of_the_canonical_reaches_every_sibling(folder):
    notebooks.sync(notebooks=folder)
    canonical = folder / "linear_probe/ham10000.ipynb"
    edited = nbformat.read(canonical, as_version=4)
    edited.cells[0].source = "# lost"
    edited.cells[-1].source += "\n\nOne more exercise."
    edited.cells[2].outputs = [nbformat.v4.new_output("stream", text="hello")]
    edited.cells[2].execution_count = 3
    edited.metadata.language_info = {"name": "python", "version": "3.99"}
    nbformat.write(edited, canonical)
    assert len(notebooks.sync(check=True, notebooks=folder)) == len(DATASETS)
    notebooks.sync(notebooks=folder)
    for name in DATASETS:
        notebook = nbformat.read(folder / f"linear_probe/{name}.ipynb", as_version=4)
        assert notebook.cells[-1].source.endswith("One more exercise.")
        assert notebook.cells[0].source.startswith("# ")
        assert "lost" not in notebook.cells[0].source
        assert "3.99" not in str(notebook.metadata)
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


def test_drift_and_strays_are_told_with_the_command(folder):
    notebooks.sync(notebooks=folder)
    sibling = folder / "linear_probe/ddi.ipynb"
    sibling.write_text(sibling.read_text().replace("replicates = 1000", "replicates = 10"))
    shutil.copy(sibling, folder / "linear_probe/gone.ipynb")
    (folder / "linear_probe/hiba.ipynb").unlink()
    drifted = notebooks.sync(check=True, notebooks=folder)
    assert [path.stem for path in drifted] == ["ddi", "hiba", "gone"]
    text = notebooks.describe_drift(drifted)
    assert "differs from" in text
    assert "not yet stamped" in text
    assert "data_manifests/datasets/gone.yaml" in text
    assert text.endswith("python run_all.py --sync")
    assert "replicates = 10\\n" not in (folder / "linear_probe/ham10000.ipynb").read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"parameters"\n', '"other"\n', "exactly one code cell"),
        ('dataset = \\"ham10000\\"', "dataset = None", "write exactly one"),
    ],
)
def test_a_canonical_that_cannot_be_stamped_says_why(folder, old, new, message):
    canonical = folder / "linear_probe/ham10000.ipynb"
    text = canonical.read_text()
    assert old in text
    canonical.write_text(text.replace(old, new))
    with pytest.raises(notebooks.StampError, match=message):
        notebooks.sync(notebooks=folder)


def test_a_protocol_without_words_is_named(folder):
    shutil.copytree(folder / "linear_probe", folder / "knitting")
    with pytest.raises(notebooks.StampError, match="knitting"):
        notebooks.sync(notebooks=folder)


@pytest.mark.parametrize("source", ["x = 1 + y", "import os", "a, b = 1, 2", "x = "])
def test_a_parameters_cell_holds_literals_only(tmp_path, source):
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "x.ipynb")
    with pytest.raises(plan.PlanError, match="literal"):
        plan.read_parameters(tmp_path / "x.ipynb")

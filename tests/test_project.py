"""The project's own files agree with each other."""

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from panderm_utils.batch.stamper import METADATA
from panderm_utils.manifests import reading as manifests
from panderm_utils.protocols import list_protocols

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_every_dependency_is_pinned_within_its_bounds(project, pins):
    extras = [r for group in project["optional-dependencies"].values() for r in group]
    for requirement in map(Requirement, project["dependencies"] + extras):
        pinned = [p for p in pins if canonicalize_name(p.name) == canonicalize_name(requirement.name)]
        assert pinned, f"{requirement.name} is not in constraints.txt; run `make lock`"
        for pin in pinned:
            version = next(iter(pin.specifier)).version
            assert requirement.specifier.contains(version), f"{pin} is outside {requirement}; run `make lock`"


def test_lock_names_no_host_and_no_local_build(pins):
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"https?:|file:|@|\+cpu|--", text)
    assert len(pins) > 50


def test_conda_environment_installs_the_same_package_with_the_same_pins(project):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert conda == [f"python{project['requires-python']}", "pip"]
    assert pip == {"pip": ["-c constraints.txt", "-e .[test]"]}
    makefile = (ROOT / "Makefile").read_text()
    assert '-c constraints.txt -e ".[test]"' in makefile  # the same line as make demo


def test_the_docker_image_has_the_same_package_pins_and_start_page_and_no_data(project):
    """By reading: it is built nowhere."""
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", "").splitlines()
    steps = [tuple(line.split(" ", 1)) for line in lines if line and not line.startswith("#")]
    ((_, image),) = [step for step in steps if step[0] == "FROM"]
    assert Requirement(f"python{project['requires-python']}").specifier.contains(re.search(r":([\d.]+)-slim", image)[1])
    assert any("-c constraints.txt -e ." in text for name, text in steps if name == "RUN")
    *_, user, settings, _, command = steps  # whatever is installed is installed before
    assert user == ("USER", "${NB_USER}")
    assert (ROOT / settings[1].rpartition("/")[2] / "jupyter_lab_config.json").is_file()
    assert "JUPYTER_CONFIG_PATH=.jupyter $(BIN)/jupyter lab" in (ROOT / "Makefile").read_text()
    assert json.loads(command[1])[:2] == ["jupyter", "lab"]
    left_out = set((ROOT / ".dockerignore").read_text().split())
    assert {".git", ".venv", "outputs", "data", "weights"} <= left_out


def test_the_packages_that_the_package_imports_are_its_dependencies(project):
    wanted = project["dependencies"] + project["optional-dependencies"]["cluster"]
    declared = {canonicalize_name(Requirement(r).name) for r in wanted}
    distribution = {"PIL": "pillow", "IPython": "ipython", "sklearn": "scikit-learn", "yaml": "pyyaml"}
    distribution["umap"] = "umap-learn"
    imported = set()
    for path in (ROOT / "panderm_utils").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    others = imported - set(sys.stdlib_module_names) - {"panderm_utils"}
    undeclared = {name for name in others if canonicalize_name(distribution.get(name, name)) not in declared}
    assert len(others) > 8
    assert undeclared == set(), "add them to pyproject.toml"


def committed_notebooks():
    """All but those that a user made of own data."""
    own = {name for name in manifests.list_datasets() if manifests.load_dataset_manifest(name).own}
    return [path for path in sorted(ROOT.glob("notebooks/*/*.ipynb")) if path.stem not in own]


@pytest.mark.parametrize("path", committed_notebooks(), ids=lambda p: p.stem)
def test_notebooks_are_stripped_short_and_plain(path):
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.metadata == METADATA  # papermill asks for the language
    assert notebook.cells[0].cell_type == "markdown"
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    assert not any(cell.outputs or cell.execution_count for cell in code)
    steps = [cell for cell in code if "parameters" not in cell.metadata.get("tags", [])]
    assert sum(len([x for x in cell.source.splitlines() if x.strip()]) for cell in steps) <= 60
    assert not any(re.search(r"^\s*(def|class) ", cell.source, re.MULTILINE) for cell in code)


def test_no_module_is_too_long_to_read_in_a_sitting():
    lengths = {p: p.read_text().count("\n") for p in (ROOT / "panderm_utils").rglob("*.py")}
    assert {path: n for path, n in lengths.items() if n > 350} == {}  # 250 is comfortable
    assert {path: n for path, n in lengths.items() if path.name == "__init__.py" and n > 40} == {}


def test_nothing_large_and_no_output_is_in_git():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.splitlines()]
    allowed = {"panderm_tiny.pth"}
    large = [f.name for f in files if f.is_file() and f.stat().st_size > 1_000_000 and f.name not in allowed]
    assert large == []
    assert not [f for f in files if f.relative_to(ROOT).parts[0] in ("outputs", "data", "weights")]


def test_the_rooms_of_the_readme_are_those_on_disk_and_in_the_contracts():
    section = (ROOT / "README.md").read_text().split("## Architecture")[1].split("\n## ")[0]
    told = re.findall(r"^\| ([a-z]+) \|", section, re.MULTILINE)[1:]
    rooms = {path.parent.name for path in (ROOT / "panderm_utils").glob("*/__init__.py")}
    assert set(told) == rooms
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers, *faces = contracts
    assert layers["layers"][:-2] == told
    base = {path.stem for path in (ROOT / "panderm_utils").glob("*.py")} - {"__init__"}
    assert set(" | ".join(layers["layers"][-2:]).split(" | ")) == base
    assert {face["allowed_importers"][0] for face in faces} == {f"panderm_utils.{room}" for room in rooms}


def test_a_face_offers_what_there_is_and_loads_nothing_until_it_is_used():
    rooms = [path.parent for path in (ROOT / "panderm_utils").rglob("__init__.py")]
    names = sorted(".".join(room.relative_to(ROOT).parts) for room in rooms)
    code = f"import sys, {', '.join(names)}\n"
    code += "print(sorted({'torch', 'pandas', 'timm', 'matplotlib'} & set(sys.modules)))\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    faces = map(importlib.import_module, names)
    assert len([getattr(face, name) for face in faces for name in getattr(face, "__all__", ())]) > 200


def test_only_protocols_know_protocols_by_name():
    """But for examples in docstrings, and messages and comments are no exception."""
    names = list_protocols()
    assert len(names) >= 5
    found = []
    for path in sorted((ROOT / "panderm_utils").rglob("*.py")):
        if "protocols" in path.relative_to(ROOT).parts:
            continue
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):  # docstrings out
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                node.body[0].value.value = ""
        # The task of datasets with masks, and the ending of their files, are the field's word too.
        text = ast.unparse(tree)
        for word in ("_segmentation.png", "'_segmentation'", "WITHOUT_CLASSES = 'segmentation'"):
            text = text.replace(word, "")
        found += [f"{path.name}: {name}" for name in names if name in text]
    assert found == []


@pytest.mark.parametrize("path", committed_notebooks(), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_what_a_notebook_takes_from_a_room_is_offered_there(path):
    """A paper notebook may reach a line late, after minutes of runs."""
    cells = json.loads(path.read_text())["cells"]
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))
    imported = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("panderm_utils", "panderm_utils.protocols"):
            imported |= {name.name: importlib.import_module(f"{node.module}.{name.name}") for name in node.names}
    assert imported
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    found = {(node.value.id, node.attr) for node in used if node.value.id in imported}
    assert {(room, name) for room, name in found if not hasattr(imported[room], name)} == set()

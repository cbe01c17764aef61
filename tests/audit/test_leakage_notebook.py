"""The notebook of leakage, cell by cell: on records with planted copies, without the images, without any record."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from panderm_utils import workspace
from tests.audit.planted import draw, make_dataset
from tests.audit.test_costs import K, save
from tests.stats.test_significance import predictions

NOTEBOOK = Path(__file__).parents[2] / "notebooks/paper/table_leakage.ipynb"


@pytest.fixture
def space(tmp_path):
    return workspace.open_workspace("demo", output_root=tmp_path)


def run_cells(space, **parameters):
    """Returns what the cells leave; a parameter replaces the value that the notebook has."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    left = {}
    for cell in cells:
        exec("".join(cell["source"]), left)
        if cell["metadata"].get("tags") == ["parameters"]:
            left |= {"output_root": str(space.root.parent), "replicates": 20, **parameters}
    return left


def write_record(space, images=True):
    y, proba = predictions(30, K)
    y[:K] = range(K)
    save(space, y, proba)
    rows = [(f"{i}.jpg", "test", label) for i, label in enumerate(y)] + [(f"t{i}.jpg", "train", i) for i in range(K)]
    if images:
        study = make_dataset(space.data_root, rows)
        draw(1).save(study.path("4.jpg"))
        draw(1).save(study.path("t6.jpg"), quality=40)
        study.csv.rename(space.data_root / "demo/demo.csv")


@pytest.mark.filterwarnings("ignore:fewer than")
def test_planted_copies_are_drawn_and_their_cost_is_written(space, capsys):
    write_record(space)
    left = run_cells(space)
    assert left["found"].leaking("demo") == {"4.jpg"}
    assert "without 1 copy (difference" in capsys.readouterr().out
    table = pd.read_csv(space.tables / "table_leakage.csv")
    assert table["Left out"].tolist() == ["1 copy"]
    assert len(pd.read_csv(space.tables / "leakage_pairs.csv")) == 1
    assert (space.tables / "table_leakage.tex").stat().st_size > 200
    for name in ("table_leakage", "table_leakage_pairs"):
        picture = Image.open(space.figures / f"{name}.png")
        assert picture.text["Records"] == "demo-linear_probe-panderm_tiny-seed0-replicates_60"
        assert np.asarray(picture.convert("L")).std() > 5


@pytest.mark.filterwarnings("ignore:fewer than")
@pytest.mark.parametrize("record", [True, False])
def test_without_images_or_records_it_says_so(space, record, capsys):
    if record:
        write_record(space, images=False)
    left = run_cells(space)
    assert left["found"].pairs.empty and left["costs"].empty and left["doubts"].empty
    assert ("is not there" in left["places"].get("demo", "")) == record
    assert "No test image leaks, in 0 scores of records." in capsys.readouterr().out

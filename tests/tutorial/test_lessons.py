"""Every lesson of the course runs as it is, shows something in every cell, and its solutions are right.

The cells run in this process, on small stand-ins; JupyterLab's part (start page, kernel, Run All) is tested with it.
"""

import ast
import json
import re
from pathlib import Path

import matplotlib.figure
import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from panderm_utils import tutorial
from panderm_utils.batch.stamper import METADATA
from panderm_utils.demo import stand_ins

FOLDER = Path(__file__).parents[2] / "notebooks/tutorial"
LESSONS = sorted(FOLDER.glob("*.ipynb"))
NUMBERS = [path.stem[:2] for path in LESSONS]
SIZES = {"DEMO": stand_ins.Size(105, 21, 70, 2), "STAND_IN": stand_ins.Size(40, 8, 40, 2)}
SHORTER = {"04": "fractions, draws = '0.2, 0.5, 1', 2", "05": "steps = 2"}  # lines that follow the parameters


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An output folder that all lessons share, as in a course: the first draws images and computes features."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PANDERM_OUTPUT_ROOT", str(tmp_path_factory.mktemp("outputs")))
        patch.setattr(stand_ins, "SIDES", dict.fromkeys(stand_ins.SIDES, ((120, 160),)))
        for name, size in SIZES.items():
            patch.setattr(stand_ins, name, size)
        yield


def cells_of(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def run(path, seen, shorter=""):
    """Runs the cells of a notebook in the names `seen`, as a kernel would; returns what each cell shows, by its id."""
    shown = {}
    for cell in cells_of(path):
        source = "".join(cell["source"])
        if source.startswith("%run"):
            continue  # of the lesson, which has run
        tree = ast.parse(source)
        parameters = "parameters" in cell["metadata"].get("tags", [])
        last = None if parameters else tree.body.pop()
        assert parameters or isinstance(last, ast.Expr), f"{path.name}, {cell['id']}: shows nothing"
        exec(compile(tree, cell["id"], "exec"), seen)
        if parameters:
            exec(shorter, seen)
            continue
        value = eval(compile(ast.Expression(last.value), cell["id"], "eval"), seen)
        assert value is not None, f"{path.name}, {cell['id']}: shows nothing"
        value._repr_html_() if hasattr(value, "_repr_html_") else str(value)
        shown[cell["id"]] = value
    return shown


def solution_of(number):
    (path,) = FOLDER.glob(f"solutions/{number}_*.ipynb")
    return path


@pytest.mark.parametrize("number", NUMBERS)
def test_a_lesson_runs_unanswered_and_its_solutions_are_right(small, number):
    (path,) = FOLDER.glob(f"{number}_*.ipynb")
    seen = {}
    shown = run(path, seen, SHORTER.get(number, ""))
    assert sum(isinstance(value, matplotlib.figure.Figure) for value in shown.values()) >= 2
    open_answers = [value for name, value in shown.items() if name.startswith("exercise")]
    assert [value.right for value in open_answers] == [None] * 3
    assert "made no prediction" in str(shown["reveal"])
    solved = run(solution_of(number), seen)
    assert [str(value) for value in solved.values() if not value.right] == []
    assert len(solved) == 3
    if number == "03":  # what the lesson says of its leak
        assert seen["lines"]["nearest neighbour, test"][0] < seen["lines"]["nearest neighbour, test"][-1] == 1
    if number == "05":
        assert seen["tuned"].facts["resumed_at"] == {"epoch": 2, "step": 0}
        assert seen["curve"]["train"].iloc[-1] < seen["curve"]["train"].iloc[0]


def test_the_first_cell_of_a_solution_brings_the_names_of_its_lesson(small, monkeypatch):
    path = solution_of("03")
    monkeypatch.chdir(path.parent)
    shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    shell.run_cell("".join(cells_of(path)[0]["source"])).raise_error()
    assert {"mixed", "lesion", "train"} <= set(shell.user_ns)


def test_every_exercise_is_in_its_lesson_and_solved():
    checked = re.compile(r'tutorial\.check\("(\d\d-\d)"')
    for paths in (LESSONS, sorted(FOLDER.glob("solutions/*.ipynb"))):
        found = [name for path in paths for name in checked.findall(path.read_text().replace('\\"', '"'))]
        assert found == list(tutorial.EXERCISES)
    assert [path.name for path in sorted(FOLDER.glob("solutions/*.ipynb"))] == [path.name for path in LESSONS]


@pytest.mark.parametrize("number", NUMBERS)
def test_solutions_are_stripped_and_begin_with_their_lesson(number):
    path = solution_of(number)
    notebook, (first, *others) = json.loads(path.read_text()), cells_of(path)
    assert notebook["metadata"] == METADATA
    assert "".join(first["source"]) == f"%run ../{path.name}"
    assert not any(cell["outputs"] or cell["execution_count"] for cell in [first, *others])


def test_links_of_the_course_lead_somewhere():
    texts = {path: path.read_text() for path in FOLDER.glob("*.md")}
    for path in FOLDER.rglob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        texts[path] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    links = [(path, link) for path, text in texts.items() for link in re.findall(r"\]\(([^)#]+)", text)]
    assert len(links) > 20
    assert [(path.name, link) for path, link in links if not (path.parent / link).exists()] == []

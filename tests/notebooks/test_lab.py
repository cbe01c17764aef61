"""The first minute: `make lab` in a real browser, from the start page to notebooks run, changed and interrupted."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock
from urllib.parse import unquote, urlsplit

import nbformat
import pandas as pd
import pytest

from panderm_utils import results
from panderm_utils.demo import stand_ins
from panderm_utils.manifests import list_datasets, load_dataset_manifest
from panderm_utils.workspace import open_workspace

ROOT = Path(__file__).parents[2]
START = ROOT / "notebooks/README.md"
LESSONS = ROOT / "notebooks/tutorial"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SMALL = stand_ins.Size(train=40, val=8, test=24)
PATIENCE = 300  # seconds until something has surely gone wrong, also on a busy machine


def links_of(page):
    """Returns the files that a Markdown page links to, without lessons in a checkout that has none."""
    found = [link for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()) if not urlsplit(link).scheme]
    files = [(page.parent / link).resolve() for link in found]
    return [file for file in files if LESSONS.exists() or LESSONS not in file.parents]


def test_the_start_page_links_to_every_notebook_and_to_nothing_else_that_is_missing():
    files = links_of(START)
    assert [file for file in files if not file.is_file()] == []
    own = {name for name in list_datasets() if load_dataset_manifest(name).own}
    notebooks = {path for path in ROOT.glob("notebooks/*/*.ipynb") if path.stem not in own and path.parent != LESSONS}
    assert notebooks - set(files) == set()


def test_the_start_page_opens_with_the_first_lesson():
    link = re.search(r"\]\((.+?)\)", START.read_text())[1]
    assert link == "tutorial/01_what_an_encoder_sees.ipynb"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A copy of the notebooks, as JupyterLab saves what it runs, and the address at which `make lab` shows it."""
    folder = tmp_path_factory.mktemp("lab")
    for name in ("notebooks", "data_manifests", ".jupyter"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "README.md", folder)
    space = open_workspace("demo", output_root=folder / "outputs")
    with mock.patch.object(stand_ins, "STAND_IN", SMALL):
        stand_ins.make_stand_in(load_dataset_manifest("ddi"), space.data_root)
    recipe = re.search(r"^lab:.*\n\t(.+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    command = recipe.replace("$(BIN)", str(Path(sys.executable).parent))
    root = "--allow-root" if os.getuid() == 0 else ""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PANDERM_OUTPUT_ROOT": str(folder / "outputs")}
    for kind in ("CONFIG", "DATA", "RUNTIME"):  # neither the user's settings nor their servers
        environment[f"JUPYTER_{kind}_DIR"] = str(folder / f".jupyter_{kind.lower()}")
    log = folder / "server.log"
    with log.open("w") as output:
        line = f"exec env {command} --no-browser --port=0 {root}"
        server = subprocess.Popen(line, shell=True, cwd=folder, stdout=output, stderr=output, env=environment)
    try:
        yield folder, wait_for(lambda: re.search(r"http://localhost:\d+/\S+token=\w+", log.read_text()), log)[0]
    finally:
        server.terminate()
        server.wait(PATIENCE)


@pytest.fixture(scope="module")
def page(lab):
    if CHROMIUM is None:
        pytest.skip("no chromium: apt install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport={"width": 1300, "height": 900})
        page.set_default_timeout(PATIENCE * 1000)
        page.goto(lab[1])
        yield page
        chromium.close()


def wait_for(look, place):
    """Returns what `look` returns once it is something."""
    deadline = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < deadline, place
        time.sleep(0.2)
    return found


def choose(page, menu, command):
    assert page.locator("dialog.jp-Dialog").all_inner_texts() == []  # it would wait for a click until patience ends
    page.click(f".lm-MenuBar-itemLabel:text-is('{menu}')")
    page.click(f"[data-command='{command}']")


def open_notebook(page, path):
    """Clicks the link on the start page and waits for the kernel; returns the cell of the parameters."""
    page.click(".lm-TabBar-tabLabel:text-is('README.md')")
    page.click(f".jp-RenderedMarkdown a[href*='{path}']")
    parameters = page.locator(".jp-CodeCell:visible", has_text='dataset = "ddi"')
    parameters.wait_for()
    # Before it has a kernel, JupyterLab calls it idle, and asks for one where cells are to be run.
    page.locator(".jp-KernelName:visible", has_text="Python 3").wait_for()
    wait_until_idle(page)
    return parameters


def wait_until_idle(page):
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]:visible").wait_for()


def add_line(page, cell, line):
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+End")
    page.keyboard.insert_text(f"\n{line}")


def saved_cells(page, path):
    wait_until_idle(page)
    page.keyboard.press("Control+s")
    page.wait_for_timeout(2000)
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def errors_of(cells):
    return [output.ename for cell in cells for output in cell.outputs if output.output_type == "error"]


def press_run_all(page, path):
    """Presses Run > Run All Cells until cells wait, as JupyterLab forgets what it is told before it has a kernel."""
    waiting = page.locator(".jp-CodeCell:visible .jp-InputPrompt", has_text="[*]")

    def pressed():
        choose(page, "Run", "runmenu:run-all")
        for _ in range(30):
            if waiting.count():
                return True
            page.wait_for_timeout(100)
        return False

    wait_for(pressed, path)


def run_all_cells(page, path, before=0):
    """Runs all cells and returns the saved notebook, all cells of which have run after number `before`."""
    press_run_all(page, path)

    def executed():
        cells = saved_cells(page, path)
        assert errors_of(cells) == []
        return cells if all((cell.execution_count or 0) > before for cell in cells) else None

    return wait_for(executed, path)


def test_the_start_page_is_rendered_and_its_links_lead_to_files_of_the_repository(lab, page):
    folder, _ = lab
    assert page.inner_text(".jp-RenderedMarkdown h1").startswith("Start here")
    urls = page.eval_on_selector_all(".jp-RenderedMarkdown :not(h1, h2) > a", "all => all.map(a => a.href)")
    files = [folder / unquote(urlsplit(url).path).removeprefix("/files/") for url in urls]
    assert len(set(files)) > 60
    lost = [file for file in files if not file.is_file() and file.parent != folder / "notebooks/tutorial"]
    assert lost == []
    assert folder / "data_manifests/profiles.yaml" in files
    assert page.locator(".jp-DirListing-item", has_text="README.md").count() == 1
    page.click(".jp-BreadCrumbs-home")  # the whole repository is there
    page.locator(".jp-DirListing-item", has_text="data_manifests").wait_for()
    page.locator(".jp-DirListing-item", has_text="outputs").wait_for()


def test_a_notebook_opened_from_it_runs_and_runs_again_with_a_changed_parameter(lab, page):
    folder, _ = lab
    notebook, records = folder / "notebooks/linear_probe/ddi.ipynb", folder / "outputs/demo/records"
    parameters = open_notebook(page, "linear_probe/ddi.ipynb")
    cells = run_all_cells(page, notebook)
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    (first,) = records.iterdir()
    add_line(page, parameters, "seed, replicates = 1, 20")
    run_all_cells(page, notebook, max(cell.execution_count for cell in cells))
    (second,) = set(records.iterdir()) - {first}
    record = results.read_record(second)
    assert (record["seed"], record["settings"]["replicates"]) == (1, 20)


def test_a_training_that_is_interrupted_goes_on_when_the_cells_are_run_again(lab, page):
    folder, _ = lab
    notebook, checkpoints = folder / "notebooks/fine_tune/ddi.ipynb", folder / "outputs/demo/checkpoints"
    parameters = open_notebook(page, "fine_tune/ddi.ipynb")
    add_line(page, parameters, "epochs, warmup_epochs, tta, replicates = 4, 0, 1, 20")
    press_run_all(page, notebook)
    history = wait_for(lambda: next(checkpoints.glob("*/history.csv"), None), checkpoints)
    choose(page, "Kernel", "kernelmenu:interrupt")

    def interrupted():
        return errors_of(cells := saved_cells(page, notebook)) and cells

    cells = wait_for(interrupted, notebook)
    assert errors_of(cells) == ["KeyboardInterrupt"]
    before = pd.read_csv(history)
    cells = run_all_cells(page, notebook, max(cell.execution_count or 0 for cell in cells))
    after = pd.read_csv(history)
    assert 1 <= len(before) < len(after) == 4
    pd.testing.assert_frame_equal(after.iloc[: len(before)], before)
    assert json.loads(history.with_name("facts.json").read_text())["resumed_at"]["epoch"] == len(before)
    training = next(cell for cell in cells if "fine_tune.finetune(" in cell.source)
    assert sum("image/png" in output.get("data", {}) for output in training.outputs) == 1  # the live curves

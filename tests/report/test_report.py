"""The report in a real browser: every link leads somewhere, nothing runs that should not, everyone can read it."""

import base64
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from panderm_utils import workspace
from panderm_utils.batch import execution, plan
from panderm_utils.figures import plots, tables
from panderm_utils.manifests import entries as manifest_types
from panderm_utils.protocols import load_protocol
from panderm_utils.report import exhibits, pages
from panderm_utils.report import writing as report
from panderm_utils.results import records
from panderm_utils.stats import metrics

SCRIPT, BREAKOUT = "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --renderer-process-limit=1"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NARROW = 360  # pixels
# Every element that holds text itself, with the contrast of its colour against what is painted behind it (WCAG 2).
CONTRASTS = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = rgb(getComputedStyle(e).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const e of document.body.querySelectorAll("*")) {
    const holds = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!holds || !e.checkVisibility() || e.closest("style, script")) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), `${e.tagName}.${e.className} ${e.textContent}`]);
  }
  return found.sort((x, y) => x[0] - y[0]);
}"""


def leave_record(space, dataset="demo", encoder="random_tiny", seed=0, warning=None, **settings):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(30) % 3)
    proba = rng.dirichlet(np.ones(3), size=30)
    settings = {**load_protocol("linear_probe").settings, "replicates": 20, **settings}
    run = records.begin_run(load_protocol("linear_probe"), dataset, encoder, seed, space, **settings)
    deep = {"target": {"features": {"test": {"computed_by": ["cpu"], "sha256": "cd" * 32, "images": 30}}}}
    run.note(encoder_facts={"digest": "ab" * 32}, data={"csv": "demo.csv", "problems": {}}, targets=deep)
    run.warnings += [warning] if warning else []
    table = records.prediction_table([f"{i}.jpg" for i in range(30)], y, proba)
    return records.save_record(run, metrics.evaluate(y, proba, 20, seed), table, "weighted_f1")


def picture():
    buffer = io.BytesIO()
    Image.new("RGB", (900, 300), "#d0e0f0").save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def leave_notebook(path, title, *code, extra=()):
    """An executed notebook: a title, then cells of (source, outputs)."""
    cells = [nbformat.v4.new_markdown_cell(f"# {title}\n\nWhat **it** is: {title}.", id="title"), *extra]
    for i, (source, outputs) in enumerate(code):
        made = [nbformat.v4.new_output("execute_result", data, execution_count=1) for data in outputs]
        cells.append(nbformat.v4.new_code_cell(source, id=f"cell-{i}", outputs=made, execution_count=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def leave_study(space, name, *more):
    """The notebook of a run, with every kind of output that ours have, and some that no report may show."""
    classes = pd.DataFrame({"class": [SCRIPT, "nevus"], "f1": [0.25, 0.75]})
    hostile = manifest_types.ClassName(BREAKOUT, SCRIPT)
    card = manifest_types.DatasetManifest(
        name="mine",
        title=SCRIPT,
        modality="photo",
        institution="here",
        task="binary",
        classes=(hostile, hostile),
        classes_verified=True,
        label_column="label",
        csv="a.csv",
        image_root="images",
        image_suffix=".jpg",
        headline_metric="auroc",
        licence="own",
        citation="none",
    )
    link = nbformat.v4.new_markdown_cell("See [the profiles](../../data_manifests/profiles.yaml).", id="link")
    return leave_notebook(
        space.root / "executed/linear_probe" / f"{name}.ipynb",
        "A study",
        ("table", [{"text/html": tables.readable(classes).to_html(), "text/plain": "x"}]),
        ("card", [{"text/markdown": card._repr_markdown_(), "text/plain": "x"}]),
        ("figure", [{"image/png": picture(), "text/plain": "x"}]),
        (f"print({SCRIPT!r})", [{"text/plain": SCRIPT * 30}]),
        ("bar", [{"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "progress 3%"}]),
        ("js", [{"application/javascript": "alert(1)", "text/plain": "scripted"}]),
        *more,
        extra=[link],
    )


def leave_paper(space, ids):
    """A paper notebook, its figure with data, its tables: one of them long and wide."""
    leave_notebook(
        space.root / "executed/paper/figure_9.ipynb",
        f"Figure 9: {SCRIPT}",
        ('tables.write_tables(scores.drop(columns="path"), space.tables, f"scores_{name}")', []),
        ('plots.save_figure(figure, space.figures, "figure_9", ids, alt)', []),
    )
    figure, axis = plt.subplots(figsize=(14, 4))
    axis.plot([1, 2])
    plots.save_figure(plots.finish_figure(figure, True), space.figures, "figure_9", ids, f"A line. {BREAKOUT}")
    data = pd.DataFrame({"run_id": ids, "class": [SCRIPT] * len(ids)})
    tables.write_tables(data, space.figures, "figure_9", ("csv",))
    text = "a sentence that is long enough to be broken into lines by a browser, and then some " * 2
    scores = pd.DataFrame({"class": ["b", SCRIPT, "é", "a", "10", "9"], "score": [9, 10.5, None, -2, 1e-5, 0.123456]})
    tables.write_tables(scores.assign(source=text, **{f"column {i}": i for i in range(30)}), space.tables, "scores_x")
    verdicts = ["reproduced", "outside the interval", "not run"]
    board = pd.DataFrame({"dataset": ["ddi", "demo", SCRIPT], "published": [0.9, 0.8, 0.7], "verdict": verdicts})
    tables.write_tables(board, space.tables, "scoreboard", ("csv",))
    items = pd.DataFrame({"item": ["Fig. 9", "Fig. 10"], "notebooks": ["figure_9, figure_11", "none"], "note": SCRIPT})
    tables.write_tables(items, space.tables, "paper_items", ("csv",))
    for name in ("scoreboard", "figure_empty"):
        plots.save_figure(figure, space.figures, name, ids if name == "scoreboard" else [], "Another line.")


def leave_failure(space, name):
    error = nbformat.v4.new_output(
        "error", ename="DataError", evalue=f"row 7: {SCRIPT}", traceback=[f"\x1b[31m{SCRIPT}"]
    )
    path = leave_notebook(space.root / "executed/linear_probe" / f"{name}.failed.ipynb", "Failed", ("load()", []))
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].outputs = [error]
    nbformat.write(notebook, path.with_name("partial"))
    execution._save_failed(path.with_name("partial"), path, "cell-0", f"DataError: row 7: {SCRIPT}")
    (space.root / "logs").mkdir(exist_ok=True)
    (space.root / "logs" / f"{name}.log").write_text(f"papermill says {SCRIPT}")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A report of records of which one is hostile, of a failed run, and of runs that nobody ran."""
    space = workspace.open_workspace("demo", output_root=tmp_path_factory.mktemp("outputs"))
    good = leave_record(space), leave_record(space, encoder="panderm_tiny", seed=1)
    bad = leave_record(space, f"mine{SCRIPT}", BREAKOUT, 2, f"UserWarning: {SCRIPT}", note=BREAKOUT)
    leave_study(space, good[0].name)
    leave_paper(space, [folder.name for folder in (*good, bad)])
    leave_failure(space, "ddi-linear_probe-random_tiny-seed0")
    (leave_record(space, seed=5) / "record.json").write_text(SCRIPT)
    sparse = leave_record(space, seed=6)  # as an older version may have left it
    record = json.loads((sparse / "record.json").read_text())
    for key in (
        "environment",
        "timings",
        "warnings",
        "headline_metric",
        "synthetic",
        "peak_memory_mb",
        "encoder_facts",
    ):
        del record[key]
    (sparse / "record.json").write_text(json.dumps(record))
    jobs = plan.make_plan(space, ["all"], protocols=["linear_probe"]).runs
    assert report.write_report(space, jobs) == space.root / "report/index.html"
    return space


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """A report of the paper profile, where data and weights are missing."""
    folder = tmp_path_factory.mktemp("outputs")
    space = workspace.open_workspace("paper", folder / "no data", folder / "no weights", folder)
    leave_record(space, "ham10000", "panderm_large")
    report.write_report(space, plan.make_plan(space).runs)
    return space


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium: apt install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield chromium.new_context(color_scheme="light")  # a process for each page would take a second each
        chromium.close()


class Visit:
    """A page as a browser has it, and all that it said and asked for on the way."""

    def __init__(self, browser, path, width=1200):
        self.path, self.said, self.asked = path, [], []
        self.page = browser.new_page()
        self.page.set_viewport_size({"width": width, "height": 800})
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("requestfailed", self.refused)
        self.page.goto(path.as_uri())
        self.page.eval_on_selector_all("details", "all => all.forEach(e => e.open = true)")

    def refused(self, request):
        """A request that the page's own rules refuse is announced, but never made."""
        if request.failure == "csp":
            self.asked.remove(request.url)

    def all(self, selector, attribute):
        return self.page.eval_on_selector_all(selector, f"all => all.map(e => e.getAttribute('{attribute}'))")

    def text(self):
        return self.page.inner_text("body")


def pages_of(space):
    return sorted((space.root / "report").rglob("*.html"))


@pytest.fixture(scope="module")
def visits(browser, demo, paper):
    """Every page of both reports, in a narrow window."""
    made = [Visit(browser, path, NARROW) for path in (*pages_of(demo), *pages_of(paper))]
    assert len(made) >= 12
    yield made
    for visit in made:
        visit.page.close()


def test_every_link_resolves(visits):
    outside = set()
    for visit in visits:
        links = {
            *visit.all("a[href]", "href"),
            *visit.all("img, script[src]", "src"),
            *visit.all("link[rel=stylesheet]", "href"),
        }
        for link in links:
            parts = urlsplit(link)
            if parts.scheme:
                outside.add(parts.scheme)
                continue
            target = (visit.path.parent / unquote(parts.path)).resolve() if parts.path else visit.path
            assert target.is_file(), f"{visit.path}: {link}"
            report = next(parent for parent in visit.path.parents if parent.name == "report")
            assert report in target.parents, f"{visit.path}: {link} leaves the folder"  # which may be moved or zipped
            if parts.fragment:
                assert f'id="{unquote(parts.fragment)}"' in target.read_text(), f"{visit.path}: {link}"
    assert outside == {"https", "data"}  # sources of data and licences; images inside a notebook


def test_nothing_complains_and_nothing_is_fetched_from_outside(visits):
    for visit in visits:
        assert visit.said == [], visit.path
        assert {urlsplit(url).scheme for url in visit.asked} <= {"file", "data"}, visit.path
        assert len(visit.asked) > 1  # the style at least, so that the rules of the page let it in
        assert visit.page.evaluate("getComputedStyle(document.body).marginLeft") == "0px"


def test_hostile_names_stay_text(demo, visits):
    texts = {
        visit.path.relative_to(demo.root / "report").as_posix(): visit.text()
        for visit in visits[:-1]
        if demo.root in visit.path.parents
    }
    (hostile,) = [name for name in texts if name.startswith("runs/mine")]
    shown = [
        *[n for n in texts if n.startswith("notebooks/linear_probe")],
        "index.html",
        hostile,
        "figures/figure_9.html",
    ]
    assert len(shown) == 5
    for name in shown:
        assert SCRIPT in texts[name], name
    assert f"{SCRIPT} ({BREAKOUT})" in texts[shown[1]]  # the card
    assert texts[shown[1]].count(SCRIPT) > 30  # the plain output
    assert BREAKOUT in texts["index.html"]
    assert BREAKOUT in texts[hostile]
    for visit in visits:
        assert visit.page.query_selector_all("main script, [onerror]") == [], visit.path


def test_what_slips_into_a_notebook_s_html_does_not_run(browser, tmp_path):
    space = workspace.open_workspace("demo", output_root=tmp_path)
    name = leave_record(space).name
    raw = "<b id='raw'>raw</b><img src=x onerror=alert(1)><img src='https://example.org/a.png'>"
    scripted = f"<b id='scripted'></b>{SCRIPT}<script src='https://example.org/a.js'></script>"
    outputs = [{"text/html": raw, "text/plain": "x"}, {"text/html": scripted, "text/plain": "what was scripted"}]
    leave_study(space, name, ("raw", outputs))
    report.write_report(space, [])
    visit = Visit(browser, space.root / f"report/notebooks/linear_probe/{name}.html")
    assert visit.page.inner_text("#raw") == "raw"  # it did come through
    assert "what was scripted" in visit.text()
    assert visit.page.query_selector_all("#scripted, script") == []
    assert "dialog" not in visit.said
    assert not [url for url in visit.asked if url.startswith("http")]


def test_nothing_scrolls_sideways_whatever_the_window(visits):
    for width in (800, 1200, NARROW):
        for visit in visits:
            visit.page.set_viewport_size({"width": width, "height": 800})
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= width, visit.path


def test_every_picture_has_a_text(visits):
    alts = [alt for visit in visits for alt in visit.all("img", "alt")]
    assert len(alts) >= 3
    assert all(alts)
    assert f"A line. {BREAKOUT}" in alts
    assert "A study (cell cell-2)" in alts


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_is_readable(visits, scheme):
    grounds = set()
    for visit in visits:
        visit.page.set_viewport_size({"width": 1200, "height": 800})
        visit.page.emulate_media(color_scheme=scheme)
        found = visit.page.evaluate(CONTRASTS)
        assert len(found) > 10
        assert found[0][0] >= 4.5, (visit.path, found[0])
        grounds.add(visit.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        visit.page.set_viewport_size({"width": NARROW, "height": 800})
    assert grounds == ({"rgb(255, 255, 255)"} if scheme == "light" else {"rgb(19, 23, 28)"})


def test_tables_are_sorted_by_mouse_and_keyboard(browser, demo):
    page = Visit(browser, demo.root / "report/index.html").page
    table = page.locator("#table-scores_x ~ .box table").first

    def column(number):
        return [row.locator("td").nth(number).inner_text() for row in table.locator("tbody tr").all()]

    head = table.locator("th").nth(1)
    assert head.get_attribute("aria-sort") is None
    head.locator("button").click()
    assert column(1) == ["-2.0", "1e-05", "0.1235", "9.0", "10.5", ""]
    assert head.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Enter")
    assert column(1) == ["10.5", "9.0", "0.1235", "1e-05", "-2.0", ""]  # what is missing stays last
    assert head.get_attribute("aria-sort") == "descending"
    page.keyboard.press("Space")
    assert column(1)[0] == "-2.0"
    other = table.locator("th").nth(0).locator("button")
    page.keyboard.press("Shift+Tab")
    assert other.evaluate("e => e === document.activeElement")
    page.keyboard.press("Enter")
    assert column(0) == [SCRIPT, "9", "10", "a", "b", "é"]
    assert head.get_attribute("aria-sort") is None
    page.close()


def test_a_figure_leads_to_its_records_and_a_record_to_its_predictions(browser, demo):
    page = Visit(browser, demo.root / "report/index.html").page
    page.click("#figure-figure_9 .links a")
    ids = Image.open(demo.figures / "figure_9.png").text["Records"].split()
    assert [row.inner_text() for row in page.locator("section th[scope=row]").all()] == ids
    page.click(f"text={ids[0]}")
    record = json.loads((demo.records / ids[0] / "record.json").read_text())
    text = page.inner_text("body")
    value = record["metrics"]["weighted_f1"]
    assert f"{value['value']:.4f}" in text
    assert f"{value['normal_high']:.4f}" in text
    for told in (record["environment"]["git_commit"], record["environment"]["platform"], "ab" * 32, "Figure 9"):
        assert told in text
    href = page.get_attribute("text=predictions.csv", "href")
    linked = (demo.root / "report/runs" / href).resolve()
    assert linked == demo.root / "report/records" / ids[0] / "predictions.csv"
    assert linked.read_bytes() == (demo.records / ids[0] / "predictions.csv").read_bytes()
    page.close()


def test_the_index_tells_what_was_not_run_and_why(browser, demo, paper):
    visit = Visit(browser, demo.root / "report/index.html")
    text = visit.text()
    item = visit.page.locator("tr", has_text="Fig. 9").locator("a")
    assert [link.get_attribute("href") for link in item.all()] == ["notebooks/paper/figure_9.html"]
    assert "No records yet for: Figure empty" in text
    assert visit.page.locator("img").count() == 2  # the scoreboard and figure 9, not the empty one
    assert f"DataError: row 7: {SCRIPT}" in text
    assert "in cell cell-0" in text
    assert "not a complete record" in text
    line = "python run_all.py --profile demo --protocols linear_probe --datasets"
    (left,) = [c for c in text.splitlines() if c.startswith(line) and c.endswith("--encoders panderm_tiny random_tiny")]
    assert "bcn20000" in left
    assert " ddi " not in left  # failed, or rather with one encoder
    text = Visit(browser, paper.root / "report/index.html").text()
    for told in ("https://doi.org/10.7910/DVN/DBW86T", "CC BY-NC-ND 4.0", str(paper.weights_root), "reproduced"):
        assert told in text


def test_every_page_of_the_demo_says_that_it_is_synthetic_and_none_of_the_paper_does(demo, paper):
    assert all("Synthetic demo data" in path.read_text() for path in pages_of(demo))
    assert not [path for path in pages_of(paper) if "ynthetic" in path.read_text()]


def test_a_second_report_is_the_same_and_only_changed_notebooks_are_converted(tmp_path):
    space = workspace.open_workspace("demo", output_root=tmp_path)
    first, second = leave_record(space), leave_record(space, seed=1)
    for folder in (first, second):
        leave_study(space, folder.name)
    report.write_report(space, [])

    def state():
        return {path: (path.read_bytes(), path.stat().st_ino) for path in pages_of(space)}

    before = state()
    report.write_report(space, [])
    after = state()
    assert {path: text for path, (text, _) in after.items()} == {path: text for path, (text, _) in before.items()}
    converted = [path for path in before if "notebooks" in path.parts]
    assert len(converted) == 2
    assert all(after[path] == before[path] for path in converted)
    leave_study(space, second.name, ("new", [{"text/plain": "added later"}]))
    shutil.rmtree(first)
    killed = space.root / "report/.index.html.123"
    killed.write_text("<html>")
    report.write_report(space, [])
    (page,) = [path for path in pages_of(space) if "notebooks" in path.parts]
    assert "added later" in page.read_text()
    assert not (space.root / f"report/runs/{first.name}.html").exists()
    assert not killed.exists()


def test_an_executed_notebook_that_was_cut_short_is_told_and_the_rest_is_written(tmp_path):
    space = workspace.open_workspace("demo", output_root=tmp_path)
    names = [leave_record(space, seed=seed).name for seed in (0, 1)]
    for name in names:
        leave_study(space, name)
    cut = next(space.root.glob(f"executed/*/{names[0]}.ipynb"))
    cut.write_text(cut.read_text()[:100])
    assert report.write_report(space, [])
    broken, whole = (next(space.root.glob(f"report/notebooks/*/{name}.html")).read_text() for name in names)
    assert f"{cut} cannot be read" in broken
    assert "cannot be read" not in whole


def test_nothing_to_show_is_no_report(tmp_path):
    space = workspace.open_workspace("demo", output_root=tmp_path)
    assert report.write_report(space, plan.make_plan(space).runs) is None
    assert not (space.root / "report").exists()


def test_a_killed_writing_leaves_no_half_page(tmp_path):
    space = workspace.open_workspace("demo", output_root=tmp_path)
    leave_study(space, leave_record(space).name)
    code = "import sys, time; from panderm_utils import report, workspace; from panderm_utils.report import pages\n"
    code += "real = type(pages.TEMPLATES).write_bytes\n"
    code += (
        "def slowly(path, data):\n    real(path, data[: len(data) // 2]); print(path.name, flush=True); time.sleep(9)\n"
    )
    code += "type(pages.TEMPLATES).write_bytes = slowly\n"
    code += "report.write_report(workspace.open_workspace('demo', output_root=sys.argv[1]), [], 1)"
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    half = process.stdout.readline().strip()  # it is in the middle of a page now
    process.kill()
    process.wait()
    assert [path.name for path in (space.root / "report").rglob(half)]
    assert pages_of(space) == [path for path in pages_of(space) if path.name.startswith(".")]
    report.write_report(space, [])
    assert not list((space.root / "report").rglob(half))
    assert all(path.read_text().endswith("</html>") for path in pages_of(space))


@pytest.mark.parametrize(
    ("markdown", "html"),
    [
        ("**Fig. 2a**: `x < 1` and *more*", "<strong>Fig. 2a</strong>: <code>x &lt; 1</code> and <em>more</em>"),
        (SCRIPT, "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("[a](https://b.org/?c=1&d)", '<a href="https://b.org/?c=1&amp;d">a</a>'),
        ("[a](javascript:alert(1)) [b](../c.md)", "a) b"),
        ('[a](https://b.org/"onclick=alert(1))', '<a href="https://b.org/&quot;onclick=alert(1">a</a>)'),
    ],
)
def test_captions_are_escaped_before_they_are_marked_up(markdown, html):
    assert pages.inline_markdown(markdown) == html


def test_a_file_belongs_to_the_notebook_that_writes_it_whatever_else_the_call_says(tmp_path):
    space = workspace.open_workspace("demo", output_root=tmp_path)
    leave_notebook(
        space.root / "executed/paper/figure_9.ipynb",
        "Figure 9",
        ('tables.write_tables(rows.drop(columns="path"), space.tables, f"{kind}_rows", ("csv",))', []),
        ('plots.save_figure(draw(rows["a"], (1, 2)), space.figures, "figure_9", ids, alt)', []),
        ("tables.write_tables(rows, space.tables, name)", []),
        ("%matplotlib inline", []),
    )
    origins = {name: origin.notebook for name, origin in exhibits.read_origins(space).items()}
    assert origins == {".+_rows": "figure_9", "figure_9": "figure_9"}


def test_numbers_are_short_and_names_are_words():
    cells = ["0.123456789", "-2.0", "1e-05", "1.23456e-07", "0.70 [0.65, 0.75]", "2025-01-02", "ab12", "1e5", ""]
    shown = ["0.1235", "-2.0", "1e-05", "1.235e-07", "0.70 [0.65, 0.75]", "2025-01-02", "ab12", "1e5", ""]
    assert [pages.short_number(cell) for cell in cells] == shown
    names = {"weighted_f1_tta": "weighted F1 with TTA", "fine_tune": "fine-tuning", "auroc": "AUROC"}
    assert {name: pages.readable_name(name) for name in names} == names


def test_the_pages_are_in_the_package():
    files = {path.name for path in Path(pages.__file__).with_name("templates").iterdir()}
    assert files == {
        "base.html",
        "card.html",
        "parts.html",
        "index.html",
        "runs.html",
        "run.html",
        "study.html",
        "overview.html",
        "figure.html",
        "notebook.html",
        "style.css",
        "sort.js",
    }

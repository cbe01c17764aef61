"""What the report does for each run must not grow with the number of runs."""

import pickle

from panderm_utils import manifests, workspace
from panderm_utils.report import cards, pages
from panderm_utils.report.contents import Contents, Run


def task_size(space, count):
    """Returns the bytes that are sent to the process that draws the card of the first run."""
    record = {"dataset": "ham10000", "encoder": "panderm_tiny", "settings": {"solver": "published"} | {"x": "y" * 1000}}
    runs = [Run(f"run{i:06}", "done", "linear_probe", record, (), None, None) for i in range(count)]
    models = [[manifests.load_dataset_manifest("ham10000")], [manifests.load_encoder_manifest("panderm_tiny")]]
    contents = Contents(space, runs, [], {}, [], [], 0, *models)
    site = pages.Site("name", "brand", "", ())
    places = {run.name: f"runs/{run.name}.html" for run in runs}
    shared = {"site": site, "space": space, "contents": contents, "pages": places, "notebooks": {}}
    shared["cards"] = {("run", run.name): f"cards/{run.name}.html" for run in runs}
    tasks = cards.card_tasks(space.root / "report", contents, shared)
    assert len(tasks) == count
    return len(pickle.dumps(tasks[0]))


def test_the_task_of_a_card_is_as_small_among_many_runs(tmp_path):
    space = workspace.open_workspace("paper", tmp_path, tmp_path, tmp_path)
    assert task_size(space, 2) == task_size(space, 200)


def test_a_page_with_the_same_text_is_not_written_again(tmp_path):
    shared = {"site": pages.Site("name", "brand", "", ()), "space": workspace.open_workspace("paper", tmp_path)}
    facts = {"card": manifests.Card("Title", "Model card", "A lede.", ()), "copy": "cards/a.md", "stamp": ""}
    page = pages.write_page(tmp_path, "cards/a.html", "card.html", **shared, **facts, pages={}, cards={})
    first = page.stat().st_ino, page.read_text()
    pages.write_page(tmp_path, "cards/a.html", "card.html", **shared, **facts, pages={}, cards={})
    assert (page.stat().st_ino, page.read_text()) == first
    assert 'href="../index.html"' in first[1] and 'href="a.md"' in first[1]


def test_facts_are_escaped_and_nested():
    text = pages.facts({"a_b": {"f1": 0.123456789, "list": ["<x>", None, True]}, "empty": {}, "none": []})
    assert '<div class="nest"><dt>a b</dt><dd><dl>' in text
    assert "<dt>F1</dt><dd>0.123457</dd>" in text
    assert "<dd>&lt;x&gt;; –; yes</dd>" in text
    assert text.count("<dd>none</dd>") == 2

"""Errors and warnings in a real kernel, which receives all cells at once, as from JupyterLab's Run All."""

import re

import jupyter_client.manager
import nbformat
import pytest
from nbconvert import HTMLExporter

from panderm_utils import disk, messages

pytestmark = pytest.mark.slow
ANSI = re.compile(r"\x1b\[[0-9;]*m")
MESSAGE = "my.csv: row 7 has no <b>label</b>\nfill it in, then run this cell again"
RAISE = f"""\
from panderm_utils.data import DataError
def check():
    raise DataError({MESSAGE!r})
if True:
    check()
"""


@pytest.fixture(scope="module")
def kernel():
    manager, client = jupyter_client.manager.start_new_kernel(kernel_name="python3")
    client.manager = manager
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def run_cells(kernel, *sources, interrupt=False, sent=None):
    """Returns the outputs of each cell.

    Args:
        interrupt: Whether to interrupt the kernel once a cell prints something.
        sent: A file to make once all cells have been sent, for which a cell may wait.
    """
    cells, cell_ids = {}, [f"cell-{i}" for i in range(len(sources))]
    for source, cell_id in zip(sources, cell_ids, strict=True):
        content = {"code": source, "silent": False, "allow_stdin": False, "stop_on_error": True}
        message = kernel.session.msg("execute_request", content, metadata={"cellId": cell_id})
        kernel.shell_channel.send(message)
        cells[message["header"]["msg_id"]] = []
    if sent:
        sent.touch()
    left = set(cells)
    while left:
        message = kernel.get_iopub_msg(timeout=60)
        cell, kind, content = message["parent_header"].get("msg_id"), message["msg_type"], message["content"]
        if kind == "status" and content["execution_state"] == "idle":
            left.discard(cell)
        elif cell in cells and kind in ("stream", "display_data", "execute_result", "error"):
            cells[cell].append(nbformat.v4.output_from_msg(message))
            if interrupt and kind == "stream":
                kernel.manager.interrupt_kernel()
    for _ in sources:
        kernel.get_shell_msg(timeout=60)
    return list(cells.values())


def text_of(error):
    return ANSI.sub("", "\n".join(error["traceback"]))


def test_an_error_that_the_user_can_fix_shows_where_and_what_and_its_traceback_on_request(kernel):
    ((folded, error),) = run_cells(kernel, RAISE)
    assert (error["ename"], error["evalue"]) == ("DataError", MESSAGE)  # what papermill and nbclient read
    assert re.fullmatch(rf"Cell In\[\d+\], line 5: check\(\)\nDataError: {re.escape(MESSAGE)}", text_of(error))
    assert "in check()" in folded["data"]["text/plain"]  # for papermill's log
    assert folded["data"]["text/html"].startswith("<details><summary>Traceback</summary>")
    assert "<b>" not in folded["data"]["text/html"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(RAISE, outputs=[folded, error])])
    assert "<details><summary>Traceback</summary>" in HTMLExporter().from_notebook_node(notebook)[0]
    ((traceback,),) = run_cells(kernel, "%tb")
    assert "in check()" in text_of(traceback)


def test_a_bug_keeps_its_traceback(kernel):
    ((error,),) = run_cells(kernel, "def check():\n    return {}['label']\ncheck()")
    assert error["ename"] == "KeyError"
    assert "in check()" in text_of(error)


def test_an_interrupt_says_how_to_continue(kernel):
    source = "import panderm_utils, time\nprint('at work', flush=True)\ntime.sleep(600)"
    (_, folded, error), (skipped,) = run_cells(kernel, source, "1", interrupt=True)
    assert error["ename"] == "KeyboardInterrupt"
    line, text = text_of(error).splitlines()
    assert re.match(r"Cell In\[\d+\], line [23]: ", line)
    assert text == f"KeyboardInterrupt: {messages.INTERRUPTED}"
    assert "Traceback" in folded["data"]["text/plain"]
    assert re.fullmatch(r"Not run, because In \[\d+\] stopped\.", skipped["data"]["text/plain"])


@pytest.mark.parametrize("raising", ["1 / 0", RAISE, "syntax error"])
def test_cells_that_are_not_run_say_so_up_to_the_last(kernel, raising, tmp_path):
    sent = tmp_path / "sent"
    wait = (
        f"import panderm_utils, pathlib, time\nwhile not pathlib.Path({str(sent)!r}).exists():\n    time.sleep(0.1)\n1"
    )
    first, _, *skipped = run_cells(kernel, wait, raising, "2", "3", sent=sent)
    assert first[0]["data"]["text/plain"] == "1"
    for (output,) in skipped:
        number = re.search(r"In \[(\d+)\]", output["data"]["text/plain"])[1]
        text = f"Not run, because In [{number}] stopped."
        assert output["data"] == {"text/plain": text, "text/html": f'<a href="#cell-id=cell-1">{text}</a>'}
        assert int(number) == first[0]["execution_count"] + 1
    assert run_cells(kernel, "4")[0][0]["data"]["text/plain"] == "4"


def test_a_warning_is_one_line_without_the_file_of_a_cell(kernel):
    source = "import panderm_utils, warnings\nwarnings.warn('the class melanoma\\n  has no image', RuntimeWarning)"
    ((warning,),) = run_cells(kernel, source)
    assert warning["text"] == "RuntimeWarning: the class melanoma has no image\n"


def test_a_full_disk_is_an_error_that_the_user_can_fix():
    assert {messages.UserError, OSError} < set(disk.DiskFullError.mro())
    assert str(disk.DiskFullError("no room")) == "no room"

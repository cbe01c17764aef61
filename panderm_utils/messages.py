"""Errors and warnings as the reader of a notebook sees them: what is wrong, where and what to do, in a few lines.

In a kernel, importing the package installs this:

- A UserError, or an interrupt, shows as the line of the cell and the message; the traceback unfolds above them, and
  `%tb` prints it. All other errors are bugs and keep their traceback. An error is stored as always, so nbclient and
  papermill see it.
- After an error in JupyterLab's Run All, the cells that are not run say so, and which cell stopped.
- A warning is one line: category and message.
"""

import html
import linecache
import re
import sys
import warnings
from traceback import walk_tb

EXTENSION = __name__  # for IPython's `%load_ext`, which calls `load_ipython_extension` once
INTERRUPTED = "interrupted; run this cell again to continue: features and training resume where they stopped"
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class UserError(ValueError):
    """An error that the user can fix: the message says what is wrong, where, and what to do."""


def printable(text: str, length: int = 1000) -> str:
    """Returns text safe to print: control and invisible characters are escaped, long text is cut in the middle."""
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= length else f"{text[: length // 2]} ... {text[-length // 2 :]}"


def install() -> None:
    """Installs the above if this process is a kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if hasattr(shell, "kernel"):
        shell.extension_manager.load_extension(EXTENSION)


def load_ipython_extension(shell) -> None:
    shell.set_custom_exc((UserError, KeyboardInterrupt), _show_error)
    _announce_stops(shell)
    warnings.formatwarning = _format_warning


def _show_error(shell, kind, error, traceback, tb_offset=None) -> None:
    from IPython.display import display

    full = shell.InteractiveTB.stb2text(shell.InteractiveTB.structured_traceback(kind, error, traceback, tb_offset))
    full = ANSI.sub("", full)
    folded = f"<details><summary>Traceback</summary><pre>{html.escape(full)}</pre></details>"
    display({"text/html": folded, "text/plain": full}, raw=True)
    message = INTERRUPTED if kind is KeyboardInterrupt else str(error)
    lines = [*_cell_line(shell, traceback), f"\x1b[1;31m{kind.__name__}\x1b[0m: {message}"]
    error._render_traceback_ = lambda: lines  # IPython's way for an error to choose its traceback
    try:
        shell.showtraceback((kind, error, traceback))
    finally:
        del error._render_traceback_  # so that `%tb` prints the full one


def _cell_line(shell, traceback) -> list[str]:
    """Returns the cell and its line that raised an error, such as "Cell In[2], line 4: f()", if a cell did."""
    for frame, number in walk_tb(traceback):
        file = frame.f_code.co_filename
        if cell := shell.compile.format_code_name(file):
            return [f"{' '.join(cell)}, line {number}: {linecache.getline(file, number).strip()}"]
    return []


def _announce_stops(shell) -> None:
    """Makes each cell that a front end queued behind an error show that it was not run, also the last of the page.

    Jupyter has no message for that: the kernel answers "aborted", and the cell stays empty.
    """
    from IPython.display import display

    abort = getattr(shell.kernel, "_send_abort_reply", None)
    if abort is None:  # it is private to ipykernel
        return

    def abort_and_announce(*request):
        abort(*request)
        stopped = shell.last_execution_result
        text = f"Not run, because In [{stopped.execution_count}] stopped."
        shown = {"text/plain": text}
        if cell := stopped.info.cell_id:  # JupyterLab scrolls to it
            shown["text/html"] = f'<a href="#cell-id={html.escape(cell)}">{text}</a>'
        display(shown, raw=True)

    shell.kernel._send_abort_reply = abort_and_announce


def _format_warning(message, category, filename, lineno, line=None) -> str:
    return f"{category.__name__}: {' '.join(str(message).split())}\n"

"""Executes one notebook in its own papermill process and returns the outcome.

The process has its own session, so Ctrl-C in the terminal reaches only the batch, which then ends the process.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from panderm_utils import system
from panderm_utils.batch import leftovers
from panderm_utils.batch.jobs import Job
from panderm_utils.batch.warm_kernels import LOST, Run, Server
from panderm_utils.disk import free, no_room, room_for, temporary
from panderm_utils.results import is_done
from panderm_utils.system import try_lock
from panderm_utils.workspace import REPOSITORY

POLL = 0.1  # seconds
RELEASE = 3.0  # seconds within which a dying process has closed its files
DEFAULT_SIZE = 2_000_000  # bytes of an executed notebook, where there is none yet to measure
LONGEST_ERROR = 500  # characters in the summary
DISK_FULL = 100_000  # with fewer free bytes, papermill may have been unable to write its error
EXIT_LINE = re.compile(r"the kernel ended with exit code (\d+); its peak memory was ([\d,]+) MB")  # see `kernels`
# `python -m papermill`, but after our package, without which importing it takes two seconds longer
COLD_START = "import runpy, panderm_utils; runpy.run_module('papermill', run_name='__main__', alter_sys=True)"
NOTE = "papermill-error-cell-tag"  # of a cell that says that the run failed; papermill removes it from a new run
NOT_STARTED = ("Kernel died before replying", "Kernel didn't respond")  # nbclient's messages


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job: done, skipped, missing, failed or interrupted; the cell that failed, and the error.

    Attributes:
        retryable: The kernel did not start or was killed, which need not be the fault of the notebook.
    """

    job: Job
    status: str
    seconds: float = 0.0
    cell: str = ""
    error: str = ""
    retryable: bool = False


def execute(
    job: Job,
    environment: dict[str, str],
    timeout: float | None,
    stop: threading.Event,
    retries: int = 0,
    warm: Server | None = None,
) -> Outcome:
    """Executes a notebook, up to `retries` times again if its kernel did not start or was killed.

    An error raised by a cell is never retried. Arguments and result as in `execute_once`.
    """
    outcome, attempts = execute_once(job, environment, timeout, stop, warm), 1
    while outcome.retryable and attempts <= retries and not stop.is_set():
        outcome, attempts = execute_once(job, environment, timeout, stop, warm), attempts + 1
    if outcome.retryable:
        return dataclasses.replace(outcome, error=f"{outcome.error}; tried {attempts} times")
    return outcome


def execute_once(
    job: Job, environment: dict[str, str], timeout: float | None, stop: threading.Event, warm: Server | None = None
) -> Outcome:
    """Executes a notebook once; a complete copy is saved as `job.output`, a failed one as *.failed.ipynb.

    A run is done if it wrote a new, complete record, and only then. The executed notebook is no proof: one whose kernel
    was killed looks complete. So the batch, the next batch and the report agree on what is done.

    Args:
        environment: Environment of the papermill process; see `child_environment`.
        timeout: Seconds after which the job is ended, or None.
        stop: Ends the job when set.
        warm: The server to start papermill and its kernel from, if it can.
    """
    started = time.monotonic()
    try:
        for folder in (job.output.parent, job.log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log, room_for("the executed notebook", _size(job), job.output.parent):
            # The lock on its log marks a run as being executed: papermill and its children inherit the open file.
            deadline = time.monotonic() + RELEASE
            while not try_lock(log):
                if time.monotonic() < deadline and not stop.wait(POLL):
                    continue
                remedy = "wait for it to end, then repeat the command"
                error = f"{job.log}: another process, such as a Slurm task, is executing this run; {remedy}"
                return Outcome(job, "failed", error=error)
            log.truncate(0)
            return _execute_alone(job, log, environment, timeout, stop, warm)
    except OSError as error:  # such as a full disk
        return Outcome(job, "failed", time.monotonic() - started, error=str(error))


def _execute_alone(job, log, environment, timeout, stop, warm) -> Outcome:
    started, before = time.monotonic(), _stamp(job)
    partial, failed = job.output.with_name(f".{job.name}.ipynb"), job.output.with_suffix(".failed.ipynb")
    parameters = job.log.with_suffix(".yaml")
    parameters.write_text(yaml.safe_dump(job.parameters), encoding="utf-8")
    code = _run_papermill(job, partial, parameters, log, environment, timeout, stop, warm)
    parameters.unlink()
    seconds = time.monotonic() - started
    # A study saves its record last, so a new one means that all of it is done, whatever happened to papermill then.
    recorded = job.record is not None and is_done(job.record) and _stamp(job) != before
    if recorded or (code == 0 and job.record is None):
        remark = _remark(job) if code == 0 else f"its record is whole, but then: {diagnose(partial, job.log)[1]}"
        if partial.exists():
            partial.replace(job.output)
        failed.unlink(missing_ok=True)
        return Outcome(job, "done", seconds, error=remark)
    if code == "interrupted":
        partial.unlink(missing_ok=True)
        return Outcome(job, "interrupted", seconds)
    killed = None
    if code == 0:
        cell, error = "", f"the notebook ended without writing a complete record in {job.record}"
    else:
        cell, error = diagnose(partial, job.log)
        killed = None if code == "timeout" else _describe_kill(code, job.log)
        error = killed or error
        error = f"stopped: it took longer than {timeout:g} s" if code == "timeout" else error
    if free(job.output.parent) < DISK_FULL:
        error = f"{error}; {no_room('the executed notebook', _size(job), job.output.parent)}"
    if partial.exists():
        _save_failed(partial, failed, cell, error)
    return Outcome(job, "failed", seconds, cell, error, retryable=bool(killed))


def _remark(job: Job) -> str:
    """Returns what the closing table must say of a run that is done: that its data were incomplete."""
    return json.loads((job.record / "record.json").read_bytes()).get("incomplete", "") if job.record else ""


def _save_failed(partial: Path, failed: Path, cell: str, error: str) -> None:
    """Saves a failed notebook with a note below its title and at its end: which cell stopped, and the error.

    They replace papermill's notes, which are HTML, at the top only, and missing if the kernel was killed.
    """
    new = temporary(failed)
    try:
        notebook = json.loads(partial.read_text(encoding="utf-8"))
        cells = _without_notes(notebook["cells"])
        stopped = next((i for i, other in enumerate(cells) if other.get("id") == cell), None)
        text = "**This run failed.**"
        if stopped is not None:
            number = cells[stopped].get("execution_count")  # None if the kernel was killed
            places = [*([f"In [{number}]"] if number else []), *headings_of(cells[:stopped])[-1:]]
            place = ": ".join(places) or "this cell"
            text = f"**This run stopped at [{place}](#cell-id={cell}).** The cells after it did not run."
        note = {"cell_type": "markdown", "metadata": {"tags": [NOTE]}, "source": f"{text}\n\n    {error}"}
        notebook["cells"] = [*cells[:1], {**note, "id": "stopped"}, *cells[1:], {**note, "id": "stopped-end"}]
        new.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        new.replace(failed)
        partial.unlink()
    except (OSError, ValueError, KeyError):  # a full disk, a truncated notebook
        new.unlink(missing_ok=True)
        partial.replace(failed)


def headings_of(cells: list[dict]) -> list[str]:
    """Returns the headings of a notebook's Markdown cells, without their number signs."""
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    return [text.splitlines()[0].lstrip("# ") for text in texts if text.startswith("#")]


def _without_notes(cells: list[dict]) -> list[dict]:
    return [cell for cell in cells if NOTE not in cell["metadata"].get("tags", [])]


def child_environment(jobs: int) -> dict[str, str]:
    """Returns the environment for a papermill process, one of `jobs` that share the cores."""
    # "python3" must be the kernel of this environment, activated or not, whatever other kernels the user has.
    environment = {k: v for k, v in os.environ.items() if k != "JUPYTER_PATH"} | {"JUPYTER_PREFER_ENV_PATH": "1"}
    cores = system.count_cores()
    cores = min(cores, int(os.environ.get("SLURM_CPUS_ON_NODE", cores)))  # some Slurm setups show all cores of a node
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        environment.setdefault(name, str(max(1, cores // jobs)))
    environment["JUPYTER_DEFAULT_PROVISIONER_NAME"] = "panderm"  # see `kernels`
    environment.setdefault("PYTHONUTF8", "1")  # logs are read as UTF-8, whatever the language of the system
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while waiting slow the other runs down
    return environment


def diagnose(notebook: Path, log: Path) -> tuple[str, str]:
    """Returns the id of the failed cell and the line of its error that helps, from the partial notebook or the log."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    try:
        cells = _without_notes(json.loads(notebook.read_text(encoding="utf-8"))["cells"])
    except (OSError, ValueError):
        cells = []
    for cell in cells:
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                return cell.get("id", ""), _headline(output["ename"], output["evalue"])
    # A dead kernel leaves no error in the notebook; papermill's log has the cell that it was executing, counted from 1.
    entered = re.findall(r"Executing Cell (\d+)-", text)
    index = int(entered[-1]) - 1 if entered else -1
    return cells[index].get("id", "") if 0 <= index < len(cells) else "", _last_line(text)


def _describe_kill(code: int, log: Path) -> str | None:
    """Returns the message that the kernel did not start, or that it or papermill was killed; None in other cases."""
    if code == -system.SIGKILL:
        return "papermill was killed, probably because memory ran out"
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    if "Executing Cell" not in text and any(message in text for message in NOT_STARTED):
        return f"the kernel did not start ({_last_line(text)})"
    exit_line = EXIT_LINE.search(text)
    if exit_line and int(exit_line[1]) == 128 + system.SIGKILL:
        code, memory = exit_line.groups()
        return f"the kernel was killed, probably because memory ran out: exit code {code}, peak memory {memory} MB"
    return None


def _run_papermill(job, partial, parameters, log, environment, timeout, stop, warm) -> int | str:
    """Returns papermill's exit status, or "timeout" or "interrupted" if it was ended; none of its processes remain."""
    # papermill replaces {name} in paths by the parameter, so a folder with braces in its name would be missed
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (job.notebook, partial)]
    arguments = [*paths, "-k", "python3", "-l", "python"]
    arguments += ["--cwd", str(REPOSITORY), "-f", str(parameters), "--no-progress-bar", "--log-output"]
    deadline = None if timeout is None else time.monotonic() + timeout
    if stop.is_set():
        return "interrupted"
    mark = leftovers.run_mark(job.log)
    process = warm and warm.start("papermill", arguments, environment, mark[leftovers.RUN], log)
    process = process or subprocess.Popen(
        [sys.executable, "-c", COLD_START, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment | mark,
        cwd=REPOSITORY,
        **system.DETACHED,
    )
    ended = None
    while (code := process.poll()) is None and ended is None:
        if stop.is_set():
            ended = "interrupted"
        elif deadline is not None and time.monotonic() > deadline:
            ended = "timeout"
        else:
            stop.wait(POLL)
    if isinstance(process, Run):
        process.abandon()  # first, so that a fork that has not begun ends by itself
    # Papermill itself, or what it left when it was killed.
    leftovers.end_processes(lambda: leftovers.processes_of(job.log))
    if code == LOST and not ended:
        return _run_papermill(job, partial, parameters, log, environment, timeout, stop, None)
    return ended or code


def _size(job: Job) -> int:
    """The expected bytes of an executed notebook: those of the largest one of its protocol so far."""
    return max((path.stat().st_size for path in job.output.parent.glob("*.ipynb")), default=DEFAULT_SIZE)


def _stamp(job: Job) -> tuple | None:
    """Returns inode and modification time of a record, which change when it is written again."""
    try:
        status = (job.record / "record.json").stat()
    except (OSError, TypeError):
        return None
    return status.st_ino, status.st_mtime_ns


def _headline(name: str, message: str) -> str:
    """Returns an error in a line: its first, which says what is wrong, and its last if the first only introduces it."""
    lines = _plain_lines(message) or [""]
    shown = [lines[0], lines[-1]] if lines[0].endswith(":") and len(lines) > 1 else lines[:1]
    return f"{name}: {' '.join(shown)}".rstrip()[:LONGEST_ERROR]


def _last_line(text: str) -> str:
    return (_plain_lines(text) or ["papermill ended without a message"])[-1][:LONGEST_ERROR]


def _plain_lines(text: str) -> list[str]:
    """Returns the lines of a text that are not blank, without colours."""
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    return [line.strip() for line in plain.splitlines() if line.strip()]

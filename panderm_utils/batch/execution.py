"""Executes one notebook in a papermill process of its own, and says what became of it.

POSIX: the process leads a session of its own, so Ctrl-C in the terminal reaches only the batch, which then ends it.
"""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from panderm_utils.batch import leftovers
from panderm_utils.batch.lock import hold
from panderm_utils.batch.plan import Job
from panderm_utils.batch.warm_kernels import LOST, Run, Server
from panderm_utils.disk import free, no_room, room_for
from panderm_utils.results import is_done
from panderm_utils.workspace import REPOSITORY

POLL = 0.1  # seconds
LETTING_GO = 3.0  # seconds in which a dying process has closed its files
SMALL = 2_000_000  # bytes that an executed notebook may need where none is there to tell
FULL = 100_000  # free bytes of a disk with which papermill can have had no room to say what is wrong
SAID = re.compile(r"the kernel ended with exit code (\d+); its peak memory was ([\d,]+) MB")  # by `kernels`
NOT_STARTED = ("Kernel died before replying", "Kernel didn't respond")  # nbclient's words


@dataclass(frozen=True)
class Outcome:
    """What became of a job: done, skipped, missing, failed or interrupted; where it failed, and why.

    Attributes:
        by_chance: The kernel did not start or was killed: nothing is known against the code.
    """

    job: Job
    status: str
    seconds: float = 0.0
    cell: str = ""
    error: str = ""
    by_chance: bool = False


def execute(
    job: Job,
    environment: dict[str, str],
    timeout: float | None,
    stop: threading.Event,
    retries: int = 0,
    warm: Server | None = None,
) -> Outcome:
    """Executes a notebook, anew up to `retries` times where its kernel did not start or was killed.

    Never anew after an error of the code. Arguments and result as of `execute_once`.
    """
    outcome, tried = execute_once(job, environment, timeout, stop, warm), 1
    while outcome.by_chance and tried <= retries and not stop.is_set():
        outcome, tried = execute_once(job, environment, timeout, stop, warm), tried + 1
    return dataclasses.replace(outcome, error=f"{outcome.error}; tried {tried} times") if outcome.by_chance else outcome


def execute_once(
    job: Job, environment: dict[str, str], timeout: float | None, stop: threading.Event, warm: Server | None = None
) -> Outcome:
    """Executes a notebook; the executed copy takes its place when it is whole, a failed one is kept as *.failed.ipynb.

    A run is done if it left a new, whole record, and only then: an executed notebook proves nothing, as one whose
    kernel was killed looks complete. So what the batch says, what the next one skips and what the report lists are one.

    Args:
        environment: Of the process; see `child_environment`.
        timeout: Seconds after which the job is ended, or None.
        stop: Ends the job when set.
        warm: Starts papermill and its kernel, if it can.
    """
    started = time.monotonic()
    try:
        for folder in (job.output.parent, job.log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log, room_for("the executed notebook", _size(job), job.output.parent):
            # Whoever holds its log executes a run: papermill and all below it inherit the open file, and so the lock.
            until = time.monotonic() + LETTING_GO
            while not hold(log):
                if time.monotonic() < until and not stop.wait(POLL):
                    continue
                remedy = f"wait until that ends, then run the same again; it writes {job.log}"
                return Outcome(job, "failed", error=f"another process executes it, such as a Slurm task; {remedy}")
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
        remark = "" if code == 0 else f"its record is whole, but then: {diagnose(partial, job.log)[1]}"
        if partial.exists():
            partial.replace(job.output)
        failed.unlink(missing_ok=True)
        return Outcome(job, "done", seconds, error=remark)
    if code == "interrupted":
        partial.unlink(missing_ok=True)
        return Outcome(job, "interrupted", seconds)
    killed = None
    if code == 0:
        cell, error = "", f"the notebook ended without leaving a whole record in {job.record}"
    else:
        cell, error = diagnose(partial, job.log)
        killed = None if code == "timeout" else _chance(code, job.log)
        error = killed or error
        error = f"ended: it took longer than {timeout:g} s" if code == "timeout" else error
    if free(job.output.parent) < FULL:
        error = f"{error}; {no_room('the executed notebook', _size(job), job.output.parent)}"
    if partial.exists():
        partial.replace(failed)
    return Outcome(job, "failed", seconds, cell, error, by_chance=bool(killed))


def child_environment(jobs: int) -> dict[str, str]:
    """Returns the environment of a papermill process when `jobs` of them share the cores."""
    # "python3" must be this environment's kernel, activated or not, whatever kernels the user has elsewhere.
    environment = {k: v for k, v in os.environ.items() if k != "JUPYTER_PATH"} | {"JUPYTER_PREFER_ENV_PATH": "1"}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(cores, int(os.environ.get("SLURM_CPUS_ON_NODE", cores)))  # not every Slurm hides the cores of others
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        environment.setdefault(name, str(max(1, cores // jobs)))
    environment["JUPYTER_DEFAULT_PROVISIONER_NAME"] = "panderm"  # see `kernels`
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait starve the other runs
    return environment


def diagnose(notebook: Path, log: Path) -> tuple[str, str]:
    """Returns the cell that failed and its error's last line, from the partial notebook or, failing that, the log."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError):
        cells = []
    for cell in cells:
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                return cell.get("id", ""), _last_line(f"{output['ename']}: {output['evalue']}", output["ename"])
    # A dead kernel leaves no error in the notebook; papermill's log names the cell that it was in, counted from 1.
    entered = re.findall(r"Executing Cell (\d+)-", text)
    index = int(entered[-1]) - 1 if entered else -1
    return cells[index].get("id", "") if 0 <= index < len(cells) else "", _last_line(text, "")


def _chance(code: int, log: Path) -> str | None:
    """Says that a kernel did not start, or that it or papermill was killed; None where neither is the reason."""
    if code == -signal.SIGKILL:
        return "papermill was killed, as when memory runs out"
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    if "Executing Cell" not in text and any(words in text for words in NOT_STARTED):
        return f"the kernel did not start ({_last_line(text, '')})"
    found = SAID.search(text)
    if found and int(found[1]) == 128 + signal.SIGKILL:
        return f"the kernel was killed, as when memory runs out: exit code {found[1]}, peak memory {found[2]} MB"
    return None


def _run_papermill(job, partial, parameters, log, environment, timeout, stop, warm) -> int | str:
    """Returns papermill's exit status, or "timeout" or "interrupted" where it was ended; nothing below it is left."""
    # papermill fills {names} in its paths with parameters: it would write outside a folder called so
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (job.notebook, partial)]
    arguments = [*paths, "-k", "python3", "-l", "python"]
    arguments += ["--cwd", str(REPOSITORY), "-f", str(parameters), "--no-progress-bar", "--log-output"]
    deadline = None if timeout is None else time.monotonic() + timeout
    if stop.is_set():
        return "interrupted"
    mark = leftovers.mark(job.log)
    process = warm and warm.start("papermill", arguments, environment, mark[leftovers.RUN], log)
    process = process or subprocess.Popen(
        [sys.executable, "-m", "papermill", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment | mark,
        cwd=REPOSITORY,
        start_new_session=True,
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
        process.let_go()  # first: what is forked from now on ends by itself
    leftovers.end(lambda: leftovers.family(job.log))  # papermill itself, or what it left when it was killed
    if code == LOST and not ended:
        return _run_papermill(job, partial, parameters, log, environment, timeout, stop, None)
    return ended or code


def _size(job: Job) -> int:
    """How many bytes an executed notebook takes: as the largest of its kind so far."""
    return max((path.stat().st_size for path in job.output.parent.glob("*.ipynb")), default=SMALL)


def _stamp(job: Job) -> tuple | None:
    """Tells a record from one that was written later under the same name."""
    try:
        status = (job.record / "record.json").stat()
    except (OSError, TypeError):
        return None
    return status.st_ino, status.st_mtime_ns


def _last_line(text: str, kind: str) -> str:
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    if not lines:
        return "papermill ended without a word"
    last = lines[-1][:500]
    return last if last.startswith(kind) else f"{kind}: {last}"

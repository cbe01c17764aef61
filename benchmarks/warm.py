"""Times warm against cold starts: of a notebook that only prints, and optionally of the demo.

    python -m benchmarks.warm            (a minute or two)
    python -m benchmarks.warm --demo     (about ten minutes more)

Warm and cold in turn, medians of five. A start is a run's total time: papermill, its kernel, the cells, the shutdown.
The server's imports, which a batch pays for once, are shown separately and are part of the demo's time.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from threading import Event

import nbformat

from benchmarks.measuring import conclude
from panderm_utils.batch.execution import child_environment, execute_once
from panderm_utils.batch.jobs import Job
from panderm_utils.batch.warm_kernels import START, Server
from panderm_utils.workspace import REPOSITORY

ROUNDS = 5
GOAL, DEMO_GOAL = 1.5, 0.6  # seconds of a warm start; warm over cold time of the demo


def print_only(folder: Path, name: str) -> Job:
    """Returns a job whose notebook prints a word."""
    cells = [nbformat.v4.new_code_cell("", id="parameters", metadata={"tags": ["parameters"]})]
    cells.append(nbformat.v4.new_code_cell("print('here')", id="print"))
    path = folder / "print.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return Job(name, path, {}, folder / "executed" / f"{name}.ipynb", folder / "logs" / f"{name}.log")


def seconds_of(job: Job, environment: dict[str, str], warm: Server | None) -> float:
    """Returns the seconds of a run, which must succeed."""
    outcome = execute_once(job, environment, None, Event(), warm)
    assert outcome.status == "done", outcome
    return outcome.seconds


def demo(folder: str, start: str) -> float:
    """Returns the seconds of the demo in a new folder, without installation."""
    command = [sys.executable, "run_all.py", "--profile", "demo", "--jobs", "2", "--output-root", folder]
    began = time.perf_counter()
    subprocess.run(command, cwd=REPOSITORY, check=True, env={**os.environ, START: start}, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    os.environ[START] = "warm"
    environment, seconds = child_environment(2), {"warm": [], "cold": []}
    with tempfile.TemporaryDirectory() as folder, Server() as server:
        server.prepare(environment, waiting=1)
        first = seconds_of(print_only(Path(folder), "first"), environment, server)
        for number in range(ROUNDS):
            for how, warm in (("cold", None), ("warm", server)):
                seconds[how].append(seconds_of(print_only(Path(folder), f"{how}-{number}"), environment, warm))
    cold, warm = (median(seconds[how]) for how in ("cold", "warm"))
    for how in seconds:
        print(f"a notebook that prints, {how}: {' '.join(f'{s:.2f}' for s in seconds[how])} s", flush=True)
    conclude("a warm start of a notebook that prints", warm, GOAL, "s", at_most=True, detail=f"cold {cold:.2f} s")
    print(f"the first run, which waits for the server's imports: {first:.2f} s", flush=True)
    if "--demo" in sys.argv:
        with tempfile.TemporaryDirectory() as folder:
            took = {how: demo(f"{folder}/{how}", how) for how in ("warm", "cold")}
        ratio = took["warm"] / took["cold"]
        seconds = f"cold {took['cold']:.0f} s, warm {took['warm']:.0f} s"
        conclude("the demo with warm starts", ratio, DEMO_GOAL, "of the time of cold ones", True, seconds)


if __name__ == "__main__":
    main()

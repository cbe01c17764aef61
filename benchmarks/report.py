"""Times `run_all.py` with --report and --verify on 500 records, and the conversion of executed notebooks.

    python -m benchmarks.report

The records are real, with 1,232 test images, 7 classes and different predictions, in a temporary folder; the notebooks
are copies of the canonical one with outputs of realistic size.
"""

import base64
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd

from benchmarks.measuring import conclude, describe_machine, timed
from panderm_utils import batch, results, stats, workspace
from panderm_utils.pool import in_processes
from panderm_utils.protocols import linear_probe

RECORDS, NOTEBOOKS, GOAL = 500, 20, 60  # seconds, on 2 cores
COUNTS = (35, 44, 107, 8, 70, 951, 17)  # test images of each class of HAM10000
PICTURES, BYTES = 8, 150_000  # per executed notebook, and per picture


def write_record(run: batch.Job) -> None:
    """Writes the record of a planned run, with random predictions seeded by its name."""
    space = workspace.Workspace("paper", *run.record.parents[3:0:-1], run.record.parents[2] / "cache")
    rng = np.random.default_rng(list(run.name.encode()))
    y = rng.permutation(np.repeat(np.arange(len(COUNTS)), COUNTS))
    proba = rng.dirichlet(np.ones(len(COUNTS)), size=len(y)) + 0.4 * np.eye(len(COUNTS))[y]
    proba /= proba.sum(axis=1, keepdims=True)
    dataset, encoder, seed = run.notebook.stem, run.parameters["encoder"], run.parameters["seed"]
    study = results.begin_run(linear_probe.PROTOCOL, dataset, encoder, seed, space)
    table = results.prediction_table([f"ISIC_{i:07}.jpg" for i in range(len(y))], y, proba)
    folder = results.save_record(study, stats.evaluate(y, proba, seed=seed), table, "weighted_f1")
    assert folder == run.record, (folder, run.record)


def write_notebook(run: batch.Job) -> None:
    """Writes an executed notebook: the canonical one, with random tables and pictures."""
    notebook, rng = nbformat.read(run.notebook, as_version=4), np.random.default_rng(0)
    table = pd.DataFrame(rng.random((20, 8))).style.format("{:.4f}").to_html()
    for i, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        picture = base64.b64encode(rng.bytes(BYTES)).decode()
        data = {"image/png": picture} if i < PICTURES else {"text/html": table}
        cell.outputs = [nbformat.v4.new_output("execute_result", {**data, "text/plain": "text"}, execution_count=i)]
    run.output.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, run.output)


def command(flag: str, outputs: Path) -> str:
    """Runs `run_all.py` as a user would; returns its output."""
    line = [sys.executable, "run_all.py", "--profile", "paper", flag, "--output-root", str(outputs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=workspace.REPOSITORY, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder).resolve()
        space = workspace.open_workspace("paper", outputs, outputs, outputs)
        planned = batch.make_plan(space, protocols=["linear_probe"], seeds=range(10))
        assert len(planned.runs) == RECORDS
        _, seconds = timed(in_processes, write_record, planned.runs, 2, "records")
        size = sum(path.stat().st_size for path in space.records.rglob("*")) / 1e6
        print(f"{describe_machine()}\n{RECORDS} records written in {seconds:.0f} s: {size:.0f} MB", flush=True)
        _, bare = timed(command, "--report", outputs)
        conclude(f"--report of {RECORDS} records", bare, GOAL, "s", at_most=True)
        text, seconds = timed(command, "--verify", outputs)
        conclude(f"--verify of {RECORDS} records", seconds, GOAL, "s", at_most=True, detail=text)
        for run in planned.runs[:NOTEBOOKS]:
            write_notebook(run)
        mb = planned.runs[0].output.stat().st_size / 1e6
        for state in ("new", "unchanged"):
            _, seconds = timed(command, "--report", outputs)
            each = (seconds - bare) / NOTEBOOKS
            print(f"--report with {NOTEBOOKS} {state} notebooks of {mb:.1f} MB: {seconds:.1f} s, {each:+.2f} s each")

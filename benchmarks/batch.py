"""Times the batch's overhead: planning 1,000 runs, and skipping 1,000 runs that have a record.

    python -m benchmarks.batch

The records are real, with 1,232 test images and 7 classes, in a temporary folder. Skipping includes checking that the
tables and figures drawn from them are up to date, for which every record is read.
"""

import json
import shutil
import tempfile
import time
from statistics import median

import nbformat
import numpy as np
import pandas as pd

from benchmarks.measuring import conclude
from panderm_utils import batch, results, workspace
from panderm_utils.protocols import linear_probe

ROUNDS = 5
SEEDS = range(20)  # times 10 datasets and 5 encoders


def write_records(planned: batch.Plan, images: int = 1_232) -> None:
    """Writes one real record, and copies of it under every other run's name."""
    first = planned.runs[0]
    run = results.begin_run(
        linear_probe.PROTOCOL, first.notebook.stem, first.parameters["encoder"], first.parameters["seed"], planned.space
    )
    proba = np.random.default_rng(0).dirichlet(np.ones(7), size=images)
    table = results.prediction_table([f"ISIC_{i:07}.jpg" for i in range(images)], np.arange(images) % 7, proba)
    scores = pd.DataFrame(dict.fromkeys(("value", "low", "high"), 0.5), index=["accuracy", "auroc", "weighted_f1"])
    folder = results.save_record(run, scores, table, "weighted_f1")
    text = (folder / "record.json").read_text(encoding="utf-8")
    assert folder == first.record
    for run in planned.runs[1:]:
        shutil.copytree(folder, run.record)
        (run.record / "record.json").write_text(text.replace(first.name, run.name), encoding="utf-8")


def mark_drawn(planned: batch.Plan) -> None:
    """Marks the tables and figures as drawn from these records, so that no notebook starts."""
    for job in planned.paper:
        job.output.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(), job.output)
        stamp = {"inputs": batch._inputs_digest(job, planned), "files": []}
        batch._stamp_file(job).write_text(json.dumps(stamp))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        space = workspace.open_workspace("paper", folder, folder, folder)
        planning, skipping = [], []
        for number in range(ROUNDS):
            started = time.perf_counter()
            planned = batch.make_plan(space, protocols=["linear_probe"], seeds=SEEDS)
            planning.append(time.perf_counter() - started)
            if number == 0:
                write_records(planned)
                mark_drawn(planned)
            started = time.perf_counter()
            outcomes = batch.run_batch(planned)
            skipping.append((time.perf_counter() - started) / len(planned.runs))
            assert {outcome.status for outcome in outcomes} == {"skipped"}
    runs = len(planned.runs)
    conclude(f"planning {runs:,} runs", median(planning), 1, "s", True, f"first time {planning[0]:.3f} s")
    conclude("a skipped run", 1e3 * median(skipping), 10, "ms", True, f"median of {ROUNDS} batches of {runs:,}")

"""Runs all benchmarks, one after another, and prints one table of results and goals.

    python -m benchmarks                          all (some two hours on 2 cores; leave the machine alone meanwhile)
    python -m benchmarks --only features probe    some of them
    python -m benchmarks --quick                  fewer images and pairs where a benchmark allows: indicative only

Each is a process of its own, with its own memory and threads. Ratios are medians of five pairs, on fewer images than a
module takes by itself where that only costs time. The table says how busy the machine was just before each part: read
results of a busy machine with care. Ctrl-C ends with the table so far. `benchmarks.gpu` is apart.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.measuring import RESULTS, describe_machine
from panderm_utils.workspace import REPOSITORY

PAIRS, QUICK = ("--pairs", "5"), ("--quick",)
PARTS = {  # benchmark: its arguments, and those of a quick run
    "features": (("--images", "300", "--base-images", "30", *PAIRS), QUICK),
    "finetune": (PAIRS, QUICK),
    "bootstrap": (PAIRS, QUICK),
    "probe": (PAIRS, QUICK),
    "pixels": (("--images", "200", *PAIRS), ("--images", "60", "--pairs", "1")),
    "report": ((), ()),
    "batch": ((), ()),
    "warm": ((), ()),
    "label_efficiency": ((), QUICK),
    "audit": (("--full",), ()),
    "growth": ((), ("--counts", "100", "1000")),
    "segmentation": (PAIRS, QUICK),
    "memory": ((), ()),
}
HEADER = ("benchmark", "what", "measured", "goal", "busy before")


def run_part(name: str, arguments: Sequence[str]) -> tuple[list[dict], int | None]:
    """Runs a benchmark, whose output appears as it comes; returns its results and exit status, None after Ctrl-C."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.jsonl"
        command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{name}", *arguments]
        try:
            status = subprocess.run(command, cwd=REPOSITORY, env={**os.environ, RESULTS: str(results)}).returncode
        except KeyboardInterrupt:
            status = None
        lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    return [json.loads(line) for line in lines], status


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if every benchmark ended well; a missed goal is no failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="which benchmarks (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer images and pairs: indicative only")
    options = parser.parse_args(arguments)
    rows, failed = [HEADER, ("---",) * len(HEADER)], []
    for name in options.only:
        busy = f"{psutil.cpu_percent(interval=1):.0f}%"
        print(f"\n{name} (the machine is {busy} busy)", flush=True)
        results, status = run_part(name, PARTS[name][options.quick])
        rows += [(name, facts["title"], facts["value"], facts["goal"], busy) for facts in results]
        if status != 0:
            failed.append(name)
            told = "stopped" if status is None else f"failed with exit status {status}: see its output above"
            rows.append((name, told, "", "", busy))
        if status is None:
            break
    print(f"\n{describe_machine()}{'; quick' if options.quick else ''}\n")
    print("\n".join("| " + " | ".join(row) + " |" for row in rows), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

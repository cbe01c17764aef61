"""Prints a plan as a plain script for `sbatch`: for sites where submission must be by hand. Needs no submitit."""

import argparse
import shlex
import sys
from pathlib import Path

from panderm_utils.batch.parameters import PlanError
from panderm_utils.batch.plan import Plan
from panderm_utils.batch.running import leave_out
from panderm_utils.batch.slurm import WARNING, by_shape, job_name, settle_options
from panderm_utils.workspace import REPOSITORY

SCRIPT = """\
#!/bin/bash
# {count} runs as one Slurm job array. With this in a file runs.sh, the next line runs them and then draws the tables
# and figures:
# {draw}
{directives}

runs=(
  {runs}
)

# Before its time limit a run is ended cleanly and queued again; it goes on from its checkpoints and caches.
queue_again() {{
  kill -TERM $process
  wait $process
  scontrol requeue $SLURM_JOB_ID
  exit
}}
trap queue_again USR2

set -m  # else what runs in the background ignores SIGINT, with which notebooks are ended
{command} --only "${{runs[$SLURM_ARRAY_TASK_ID]}}" &
process=$!
wait $process
"""


def print_script(plan: Plan, options: argparse.Namespace) -> int:
    """Prints a script for the runs that are to do, and to stderr what it leaves out; returns the exit status.

    Args:
        options: Of `run_all.py`.

    Raises:
        PlanError: There is no run to do, or they need more than one array.
    """
    out = leave_out(plan.runs, options.force)
    todo = [run for run in plan.runs if run not in out]
    shapes = by_shape(todo, settle_options(plan.runs, options.slurm_option))
    if len(shapes) != 1:
        one = "a script holds one: name --protocols" if shapes else "see --plan"
        raise PlanError(f"{len(todo)} of {len(plan.runs)} runs are to do, as {len(shapes)} job arrays; {one}")
    [(given, _)] = shapes
    logs = plan.space.root / "slurm"
    logs.mkdir(parents=True, exist_ok=True)  # or sbatch could not write there
    given = [f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in given.items()]
    own = [
        f"--job-name={job_name(plan)}",
        f"--array=0-{len(todo) - 1}%{options.jobs or 1}",
        f"--output={logs}/%A_%a.log",
    ]
    own += ["--requeue", "--open-mode=append", f"--signal=B:USR2@{WARNING}", f"--chdir={Path.cwd()}"]
    command = shlex.join(_same_command(plan, options))
    draw = shlex.join([*given, f"--output={logs}/drawings.log", f"--wrap={command} --only"])
    directives = "\n".join(f"#SBATCH {shlex.quote(option)}" for option in [*own, *given])
    values = {"count": len(todo), "runs": "\n  ".join(run.name for run in todo), "directives": directives}
    draw = f"sbatch --dependency=afterany:$(sbatch --parsable runs.sh) {draw}"
    print(SCRIPT.format(**values, command=command, draw=draw), end="")
    if out:
        print(f"left out: {len(out)} runs that have a record or lack data or weights; see --plan", file=sys.stderr)
    return 0


def _same_command(plan: Plan, options: argparse.Namespace) -> list[str]:
    """Returns what to type for the same plan, wherever one is and whatever the environment says."""
    command = [sys.executable, str(REPOSITORY / "run_all.py"), "--profile", plan.space.profile]
    roots = {"data": plan.space.data_root, "weights": plan.space.weights_root, "output": plan.space.root.parent}
    for name, folder in roots.items():
        command += [f"--{name}-root", str(folder)]
    for name in ("datasets", "protocols", "encoders", "seeds"):
        values = getattr(options, name)
        command += [f"--{name}", *map(str, values)] if values else []
    for given in options.p:
        command += ["-p", given]
    command += ["--retries", str(options.retries)]
    command += ["--timeout", str(options.timeout)] if options.timeout else []
    return command + ["--force"] * options.force

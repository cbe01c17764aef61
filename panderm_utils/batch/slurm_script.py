"""Prints a plan as a script for `sbatch`, for clusters where jobs are submitted by hand. Needs no submitit."""

import argparse
import shlex
import sys
from pathlib import Path

from panderm_utils.batch.jobs import Plan
from panderm_utils.batch.parameters import PlanError
from panderm_utils.batch.running import skipped_or_missing
from panderm_utils.batch.slurm_submission import WARNING, group_into_arrays, script_name, settle_options
from panderm_utils.workspace import REPOSITORY

SCRIPT = """\
#!/bin/bash
# {count} runs as one Slurm job array. Save it as runs.sh; the next line submits it and the tables and figures after it:
# {draw}
{directives}

runs=(
  {runs}
)

# Before its time limit a run is ended cleanly and queued again; it resumes from its checkpoints and caches.
queue_again() {{
  kill -TERM $process
  wait $process
  scontrol requeue $SLURM_JOB_ID
  exit
}}
trap queue_again USR2

set -m  # otherwise background processes ignore SIGINT, which ends notebooks
{command} --only "${{runs[$SLURM_ARRAY_TASK_ID]}}" &
process=$!
wait $process
"""


def print_script(plan: Plan, options: argparse.Namespace) -> int:
    """Prints a script for the runs to execute, and to stderr how many it leaves out; returns the exit status.

    Args:
        options: The parsed arguments of `run_all.py`.

    Raises:
        PlanError: There is no run to execute, or the runs need more than one array.
    """
    left_out = skipped_or_missing(plan.runs, options.force)
    todo = [run for run in plan.runs if run not in left_out]
    arrays = group_into_arrays(todo, settle_options(plan.runs, options.slurm_option))
    if len(arrays) != 1:
        remedy = "a script holds one: name --protocols" if arrays else "see --plan"
        raise PlanError(f"{len(todo)} of {len(plan.runs)} runs to execute, as {len(arrays)} job arrays; {remedy}")
    [(sbatch_options, _)] = arrays
    logs = plan.space.root / "slurm"
    logs.mkdir(parents=True, exist_ok=True)  # sbatch does not create it
    user_options = [f"--{k.replace('_', '-')}" + ("" if v is True else f"={v}") for k, v in sbatch_options.items()]
    own_options = [
        f"--job-name={script_name(plan)}",
        f"--array=0-{len(todo) - 1}%{options.jobs or 1}",
        f"--output={logs}/%A_%a.log",
    ]
    own_options += ["--requeue", "--open-mode=append", f"--signal=B:USR2@{WARNING}", f"--chdir={Path.cwd()}"]
    command = shlex.join(_same_command(plan, options))
    draw = shlex.join([*user_options, f"--output={logs}/drawings.log", f"--wrap={command} --only"])
    directives = "\n".join(f"#SBATCH {shlex.quote(option)}" for option in [*own_options, *user_options])
    values = {"count": len(todo), "runs": "\n  ".join(run.name for run in todo), "directives": directives}
    draw = f"sbatch --dependency=afterany:$(sbatch --parsable runs.sh) {draw}"
    print(SCRIPT.format(**values, command=command, draw=draw), end="")
    if left_out:
        print(f"left out: {len(left_out)} runs that have a record or lack data or weights; see --plan", file=sys.stderr)
    return 0


def _same_command(plan: Plan, options: argparse.Namespace) -> list[str]:
    """Returns the command for the same plan, independent of working directory and environment variables."""
    command = [sys.executable, str(REPOSITORY / "run_all.py"), "--profile", plan.space.profile]
    roots = {"data": plan.space.data_root, "weights": plan.space.weights_root, "output": plan.space.root.parent}
    for name, folder in roots.items():
        command += [f"--{name}-root", str(folder)]
    for name in ("datasets", "protocols", "encoders", "seeds"):
        values = getattr(options, name)
        command += [f"--{name}", *map(str, values)] if values else []
    for override in options.p:
        command += ["-p", override]
    command += ["--retries", str(options.retries)]
    command += ["--timeout", str(options.timeout)] if options.timeout else []
    return command + ["--force"] * options.force

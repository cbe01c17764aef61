"""Submits runs to Slurm as job arrays. A job starts only after it was noted, so a killed batch loses none.

Jobs are submitted on hold, noted in the queue file, then released. If the batch is killed in between, the next one
finds by name the jobs that nobody noted, which have not run, and cancels them; those that were noted it releases.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from panderm_utils.batch.jobs import Job, Plan
from panderm_utils.batch.parameters import PlanError
from panderm_utils.batch.slurm_queue import HELD, ask_slurm, release
from panderm_utils.disk import write_file
from panderm_utils.workspace import REPOSITORY

DEFAULT_TIME = "4:00:00"  # default time limit of a run
WARNING = 90  # seconds before its time limit at which a run is ended, to be queued again
MAX_TIMEOUTS = 10  # how often a run may reach its time limit and be resumed
USUAL_LIMIT = 1001  # Slurm's default of MaxArraySize
RESERVED = ("array", "chdir", "error", "hold", "job_name", "ntasks", "ntasks_per_node", "output", "signal")
RESERVED += ("wrap",)


def job_name(plan: Plan) -> str:
    """Returns the name of the Slurm jobs of batches with these outputs; other folders have other names."""
    return f"{script_name(plan)}-{hashlib.sha256(str(plan.space.root).encode()).hexdigest()[:8]}"


def script_name(plan: Plan) -> str:
    """Returns the name of the jobs of a printed script, which no batch notes."""
    return f"panderm-{plan.space.profile}"


def settle_options(runs: Iterable[Job], options: Iterable[str]) -> dict[Job, dict[str, str | bool]]:
    """Returns the sbatch options of each run.

    Args:
        options: `name=value`, or `name` where sbatch takes no value; prefixed `protocol:` for its runs only.

    Raises:
        PlanError: An option is one that the batch sets itself, or names a protocol without a run.
    """
    settled = {run: {"time": DEFAULT_TIME} for run in runs}
    protocols = {run: run.notebook.parent.name for run in settled}
    for text in options:
        name, equals, value = text.partition("=")
        protocol, _, name = name.rpartition(":")
        name = name.strip("-").replace("-", "_")
        if not name or name in RESERVED:
            raise PlanError(f"--slurm-option {text}: write an sbatch option as name=value; not {', '.join(RESERVED)}")
        if protocol and protocol not in protocols.values():
            valid = ", ".join(sorted(set(protocols.values())))
            raise PlanError(f"--slurm-option {text}: no run of protocol {protocol!r} in this plan; choose from {valid}")
        for run in settled:
            if protocol in ("", protocols[run]):
                settled[run][name] = value if equals else True
    for option in settled.values():
        minutes(option["time"])
    return settled


def group_into_arrays(runs: Iterable[Job], settled: dict[Job, dict]) -> list[tuple[dict, list[Job]]]:
    """Returns (sbatch options, runs) of each array: runs with the same options share one."""
    arrays = {}
    for run in runs:
        arrays.setdefault(tuple(sorted(settled[run].items())), []).append(run)
    return [(dict(options), members) for options, members in arrays.items()]


def minutes(limit: str) -> int:
    """Returns the minutes of a time limit in sbatch's format: 90, 90:00, 4:00:00, 1-12, 1-12:30 or 1-12:30:00.

    Raises:
        PlanError: The text is not a time limit.
    """
    days, dash, clock = str(limit).rpartition("-")
    try:
        parts = [int(part) for part in clock.split(":")]
        parts = parts if dash or len(parts) > 2 else [0, *parts]
        hours, mins, seconds = parts + [0] * (3 - len(parts))
        return math.ceil(int(days or 0) * 1440 + hours * 60 + mins + seconds / 60)
    except ValueError as error:
        raise PlanError(
            f"--slurm-option time={limit}: write it in the format of sbatch, as in time={DEFAULT_TIME}"
        ) from error


def submit(
    arrays: Iterable[tuple[dict, list[Job]]],
    task: Callable[[Job], object],
    at_once: int,
    name: str,
    file: Path,
    queued: dict[str, str],
) -> Iterator[dict[Job, str]]:
    """Submits arrays and yields run -> Slurm job id of each; those too long for this Slurm are split.

    Each part of a split array starts when the one before has ended, so that no more than `at_once` of all its runs
    ever run at once.

    Args:
        arrays: From `group_into_arrays`.
        task: Executes a run on a node.
        name: Of the jobs.
        file: The queue file; `queued`: what it holds, to which the new jobs are added.

    Raises:
        PlanError: Slurm rejects the jobs, or does not answer.
    """
    limit = longest_array()
    for array_options, runs in arrays:
        before = ""
        for at in range(0, len(runs), limit):
            conditions = filter(None, (before, array_options.get("dependency")))
            options = {**array_options, "dependency": ",".join(conditions)} if before else array_options
            with _signals_deferred():
                jobs = _submit_held(runs[at : at + limit], options, task, at_once, name, file.parent)
                for prefix in (HELD, ""):
                    queued |= {run.name: prefix + job_id for run, job_id in jobs.items()}
                    write_file(file, json.dumps(queued, indent=2) + "\n")
                    if prefix:
                        release(jobs.values())
            before = f"afterany:{next(iter(jobs.values())).split('_')[0]}"
            yield jobs


def longest_array() -> int:
    """Returns the most runs in an array of this Slurm; 1 if it has no arrays."""
    limit = re.search(r"^MaxArraySize\s*= (\d+)", ask_slurm("scontrol", "show", "config"), re.MULTILINE)
    return max(1, int(limit[1])) if limit else USUAL_LIMIT


def _submit_held(
    runs: list[Job], options: dict, task: Callable, at_once: int, name: str, folder: Path
) -> dict[Job, str]:
    """Submits runs as one array on hold; returns the Slurm job id of each."""
    try:
        import submitit
    except ImportError as error:
        raise PlanError('--slurm needs submitit; install it with: pip install -e ".[cluster]"') from error
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=MAX_TIMEOUTS)
        executor.update_parameters(
            job_name=name,
            time=minutes(options["time"]),
            signal_delay_s=WARNING,
            array_parallelism=at_once,
            stderr_to_stdout=True,
            # Since Slurm 22.05, srun does not inherit this from sbatch.
            setup=['[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK'],
            srun_args=["--nodes=1", "--ntasks=1"],  # a run begins on one node; a training takes all by itself
            additional_parameters={"requeue": True, "hold": True, "chdir": REPOSITORY, **options},
        )
        # A batch that runs inside a Slurm job must not pass that job's settings on.
        kept = {k: v for k, v in os.environ.items() if k == "SLURM_CONF" or k.startswith("SBATCH_")}
        with submitit.helpers.clean_env():
            os.environ.update(kept)
            submitted = executor.map_array(task, runs)
    except RuntimeError as error:  # srun is missing, or sbatch failed
        raise PlanError(f"Slurm rejected {len(runs)} runs: {str(error).strip()}") from error
    for job in submitted:  # a reinstalled Slurm counts from 1 again, and files of old jobs may have the same ids
        job.paths.result_pickle.unlink(missing_ok=True)
    return {run: job.job_id for run, job in zip(runs, submitted, strict=True)}


@contextlib.contextmanager
def _signals_deferred() -> Iterator[None]:
    """Defers Ctrl-C and the like, so that every submitted job is written to the queue file."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

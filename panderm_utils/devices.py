"""Which GPUs a batch may use. The processes of the runs open them, the batch never does: neither torch nor pandas."""

import os
import subprocess
from collections.abc import Sequence

from panderm_utils.plan import Job

VARIABLE = "CUDA_VISIBLE_DEVICES"


def read_gpus(text: str) -> tuple[str, ...]:
    """Returns the ids that `--gpus` names: "0,1,3"; "all": those in a preset CUDA_VISIBLE_DEVICES, else all there are.

    Raises:
        ValueError: None is there, one is named twice, or one is not there or not among the preset ones.
    """
    preset = os.environ.get(VARIABLE)
    there = _split(preset) if preset is not None else _numbers()
    whence = f"{VARIABLE}={preset}" if preset is not None else "nvidia-smi -L"
    if not there:
        raise ValueError(f"--gpus {text}: {whence} shows no GPU; leave --gpus out to run on the CPU")
    wanted = there if text == "all" else _split(text)
    known = f"{', '.join(there)} ({whence})"
    if absent := [gpu for gpu in wanted if gpu not in there]:
        raise ValueError(f"--gpus {text}: no GPU {', '.join(absent)} here; write --gpus all, or of these: {known}")
    if not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"--gpus {text}: name each GPU once, of {known}; or write --gpus all")
    return tuple(wanted)


def sees_gpus() -> bool:
    """Whether a run that is given no GPU of its own may use one."""
    preset = os.environ.get(VARIABLE)
    return bool(_split(preset) if preset is not None else _numbers())


def gpus_of(job: Job) -> int:
    """Returns how many GPUs a run takes: as many as the processes that train together."""
    return job.parameters.get("processes", 1)


def check_gpus(runs: Sequence[Job], gpus: tuple[str, ...]) -> None:
    """Raises ValueError where a run asks for more GPUs than are named."""
    if wide := [run for run in runs if gpus_of(run) > len(gpus)]:
        count = gpus_of(wide[0])
        raise ValueError(f"{wide[0].name} asks for {count} GPUs; name as many with --gpus, or write -p processes=1")


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers() -> list[str]:
    """The numbers of the GPUs that the driver lists; none where there is no driver."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(number) for number, line in enumerate(filter(lambda x: x.startswith("GPU "), listed.splitlines()))]

"""How training runs: device, precision, memory, several processes, and signals."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import get_available_trackers
from accelerate.utils import patch_environment

from panderm_utils import system
from panderm_utils.encoders import check_precision, choose_device
from panderm_utils.protocols.training.errors import TrainingError
from panderm_utils.workspace import REPOSITORY

LOG_TAIL = 3000  # characters of a failed process's log shown in the error
PATIENCE = 120  # seconds for stopping processes to save their state


@dataclass(frozen=True)
class Computing:
    """How to compute: except precision, settings change speed and memory, not the result (beyond its last digits).

    Attributes:
        device: "auto" or a torch device, as in `load_encoder`.
        precision: "fp32"; "bf16"; "fp16", with loss scaling; "auto": mixed, as published, if the hardware supports it
            (bf16, or fp16 on a GPU without bf16), else fp32.
        micro_batch: Images at once per process, an even number; gradients are accumulated to the recipe's batch.
            "auto": all of them, halved when memory runs out.
        checkpointing: Whether activations are recomputed for the gradients: about 0.6 of the memory, a third more time
            (base encoder, 16 images).
        processes: Number of processes, one per GPU, over all nodes of a Slurm job; several on a CPU are for testing
            only.
        num_workers: Image-reading processes for each of them; None chooses.
    """

    device: str = "auto"
    precision: str = "auto"
    micro_batch: int | str = "auto"
    checkpointing: bool = False
    processes: int = 1
    num_workers: int | None = None

    def __post_init__(self) -> None:
        size = self.micro_batch
        if size != "auto" and not (isinstance(size, int) and size >= 2 and size % 2 == 0):
            raise TrainingError(f'micro_batch {size!r} is not an even number of images; write "auto", 32 or another')
        if self.processes < 1:
            raise TrainingError(f"processes {self.processes} is less than 1")

    def settle(self) -> tuple["Computing", torch.device]:
        """Returns these settings with "auto" precision resolved, and the device.

        Raises:
            EncoderError, TrainingError: The device does not support the settings.
        """
        device = choose_device(self.device)
        if self.precision == "auto":
            return replace(self, precision=_mixed_precision(device)).settle()
        check_precision(self.precision, device)
        if self.precision == "fp16" and device.type != "cuda":
            raise TrainingError(f"fp16 needs loss scaling, which {device.type} lacks; use bf16 or fp32 on this device")
        nodes = count_nodes() if self.processes > 1 else 1
        if self.processes % nodes:
            raise TrainingError(
                f"processes {self.processes} on {nodes} nodes: each takes as many; write {nodes} times that"
            )
        if self.processes > 1 and device.type == "cuda" and self.processes > nodes * torch.cuda.device_count():
            count = nodes * torch.cuda.device_count()
            raise TrainingError(f"processes {self.processes} on {count} GPUs: one process per GPU; write {count}")
        if self.processes > 1 and device.type == "mps":
            raise TrainingError("processes must be 1 on mps: it is one GPU")
        return self, device


def count_nodes() -> int:
    """Returns the number of nodes of the Slurm job that this process runs in; 1 outside of one."""
    return int(os.environ.get("SLURM_JOB_NUM_NODES", 1))


def _mixed_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        return "bf16" if features.get("avx512_bf16") or features.get("amx_bf16") else "fp32"
    return "fp32"


def make_accelerator(device: torch.device, precision: str, trackers: Sequence[str], folder: Path) -> Accelerator:
    """Returns the Accelerator of this process; only the named trackers are used.

    Raises:
        TrainingError: A tracker is not installed.
    """
    available = [str(name) for name in get_available_trackers()]
    for name in trackers:
        if name not in available:
            installed = f"installed: {', '.join(available)}" if available else "none is installed"
            raise TrainingError(f"tracker {name!r} is not available ({installed}); pip install {name} or leave it out")
    # accelerate has one state per process, but a notebook may change device or precision in its next cell
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    several = int(os.environ.get("LOCAL_RANK", -1)) != -1
    with patch_environment(**({} if several else {"ACCELERATE_TORCH_DEVICE": device})):
        return Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="no" if precision == "fp32" else precision,
            log_with=list(trackers) or None,
            project_dir=folder,
        )


class Signals:
    """A context in which SIGINT and SIGTERM are only noted in `received`, so that the current step can finish.

    A second signal ends the process immediately, as usual. Inside `at_once()` the first one does.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._at_once, self._before = False, {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # signals can be caught only there
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, _frame) -> None:
        self.received = number
        self._restore()
        if self._at_once:
            self.stop()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def stop(self) -> None:
        """Ends like the signal would: KeyboardInterrupt, or exit with 143."""
        if self.received == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt


def run_processes(module: str, arguments: Sequence[str], count: int, log: Path, while_waiting: Callable) -> None:
    """Runs `python -m module arguments` in several processes that train together, and waits for them.

    Uses torchrun, since a notebook's process, which has used a GPU, must not be forked. In a Slurm job of several
    nodes, srun starts a torchrun on each; they meet at this node and share its folders.

    Args:
        log: File for their output.
        while_waiting: Called twice a second.

    Raises:
        TrainingError: A process failed; the message has the end of the log.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() * count_nodes() // count)))
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*_torchrun(count), "-m", module, *arguments],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            **system.DETACHED,  # Ctrl-C goes to this process, which passes it on
        )
        try:
            with Signals() as signals:
                while process.poll() is None:
                    time.sleep(0.5)
                    while_waiting()
                    if signals.received is not None:
                        signals.stop()
        finally:
            if process.poll() is None:
                process.terminate()  # torchrun passes it on, and each process saves its state
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE)
                process.kill()
    if process.returncode:
        tail = log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:]
        raise TrainingError(f"{count} processes ended with {process.returncode}; the end of {log}:\n{tail}")
    while_waiting()


def _torchrun(count: int) -> list[str]:
    """Returns the command that starts `count` processes in this node, or as many on each of a Slurm job's nodes."""
    nodes = count_nodes()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count // nodes)]
    if nodes == 1:
        return [*torchrun, "--standalone"]
    with socket.socket() as found:
        found.bind(("", 0))
        meeting = f"{socket.gethostname()}:{found.getsockname()[1]}"
    # Slurm's warning before a time limit goes to every process; those that train are ended by the run, with TERM.
    deaf = ["sh", "-c", 'trap "" USR2; exec "$@"', "sh"]
    rendezvous = ["--rdzv_backend", "c10d", "--rdzv_endpoint", meeting, "--rdzv_id", os.environ["SLURM_JOB_ID"]]
    srun = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    return [*srun, *deaf, *torchrun, "--nnodes", str(nodes), *rendezvous]

"""Where and how precisely an encoder computes: devices and precisions, and what a device cannot do."""

import contextlib
import warnings

import torch

from panderm_utils.encoders.checkpoints import EncoderError
from panderm_utils.system import keep_freed_memory

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(device: str) -> torch.device:
    """Returns the named device; "auto" is a GPU if there is one. Raises EncoderError if it is not available.

    A process that computes on a CPU keeps its freed memory from here on; see `system.keep_freed_memory`.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:  # the latter if torch was built without CUDA
        reason = str(error).splitlines()[0]
        raise EncoderError(f'device "{device}" cannot be used ({reason}); write device="auto" or "cpu".') from error
    if found.type == "cpu":
        keep_freed_memory()
    return found


def check_precision(precision: str, device: torch.device) -> None:
    """Raises EncoderError if the device cannot compute in this precision."""
    if precision not in PRECISIONS:
        raise EncoderError(f"precision {precision!r} is unknown; valid are {', '.join(PRECISIONS)}.")
    if precision == "fp16" and device.type == "cpu":
        raise EncoderError("fp16 is for GPUs: CPUs have no fast float16 arithmetic; use bf16 or fp32 on this device.")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise EncoderError(f"{name} does not support bfloat16; use fp16 or fp32 on this device.")


def available_precision(precision: str, device: torch.device, made: str) -> str:
    """Returns the precision in which a device uses what was `made` in it: fp32, with a warning, for fp16 on a CPU."""
    if precision == "fp16" and device.type == "cpu":
        warnings.warn(f"{made} was made in fp16, which CPUs lack; it predicts in fp32", stacklevel=3)
        return "fp32"
    return precision


def precision_context(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Returns a context that computes in a precision: autocast, or full float32, also for convolutions on a GPU.

    cuDNN would otherwise round the inputs of convolutions to TF32, ten bits. Its other switches stay as they are.
    """
    if PRECISIONS[precision] is not None:
        return torch.autocast(device.type, PRECISIONS[precision])
    if device.type != "cuda":
        return contextlib.nullcontext()
    switches = torch.backends.cudnn
    kept = {name: getattr(switches, name) for name in ("enabled", "benchmark", "deterministic")}
    return switches.flags(**kept, allow_tf32=False)

"""The trained model that a record is of: its best checkpoint, which stays beside the records."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from panderm_utils.protocols.training.errors import TrainingError
from panderm_utils.protocols.training.state import BEST
from panderm_utils.results import run_again


def load_kept(record: Mapping, folder: Path, load: Callable[[Path], nn.Module]) -> nn.Module:
    """Returns the model of a record's checkpoint, as `load(path)` reads it.

    Args:
        folder: The record's; a checkpoint that was moved with it is found.

    Raises:
        TrainingError: The record names no checkpoint, or it is gone, or was replaced. What `load` raises.
    """
    if "weights_sha256" not in record.get("training", {}):
        raise TrainingError(f"{folder}: names no checkpoint, as an older version wrote it; {run_again(record)}")
    recorded, sha256 = Path(record["training"]["weights"]), record["training"]["weights_sha256"]
    beside = folder.absolute().parents[1] / "checkpoints" / folder.name / BEST
    path = beside if beside.is_file() else recorded
    if not path.is_file():
        places = " or ".join(dict.fromkeys(map(str, (recorded, beside))))
        raise TrainingError(f"{folder.name}: its checkpoint is gone; copy it to {places}, or {run_again(record)}")
    model = load(path)
    if model.digest != sha256:
        raise TrainingError(
            f"{path}: SHA-256 {model.digest[:12]}, but the record is of {sha256[:12]}: it was trained again or "
            f"replaced. Restore the file, or {run_again(record)}"
        )
    return model

"""The trained model that a record is of: its best checkpoint, which stays beside the records."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from panderm_utils.protocols.training.errors import TrainingError
from panderm_utils.protocols.training.state import BEST


def load_kept(record: Mapping, folder: Path, sha256: str, load: Callable[[Path], nn.Module]) -> nn.Module:
    """Returns the model of a record's checkpoint, as `load(path)` reads it.

    Args:
        folder: The record's; a checkpoint that was moved with it is found.
        sha256: Of the checkpoint that the record is of.

    Raises:
        TrainingError: The checkpoint is missing, or is not the one that the record is of. What `load` raises.
    """
    recorded = Path(record["training"]["weights"])
    beside = folder.absolute().parents[1] / "checkpoints" / folder.name / BEST
    path = beside if beside.is_file() else recorded
    if not path.is_file():
        raise TrainingError(
            f"{folder.name}: its checkpoint is gone; it was {recorded}, and {beside} would also do. Copy it there, or "
            "repeat the run with --force"
        )
    model = load(path)
    if model.digest != sha256:
        raise TrainingError(
            f"{path}: SHA-256 {model.digest[:12]}, but the record is of {sha256[:12]}: it was trained again or "
            "replaced. Restore the file, or repeat the run with --force"
        )
    return model

"""Loads the encoder that another is compared with."""

import warnings
from pathlib import Path

from panderm_utils import encoders
from panderm_utils.encoders import Encoder, EncoderError


class RivalWarning(UserWarning):
    """The encoder to compare with cannot be loaded; the rest of the study does not need it."""


def load_rival(
    rival: str, encoder: str, device: str = "auto", precision: str = "fp32", weights_root: str | Path | None = None
) -> list[Encoder]:
    """Returns the encoder to compare with, in a list; an empty one if it is the studied encoder itself.

    If its weights are missing or cannot be downloaded, the list is empty too, with a RivalWarning: a run's record is
    that of the studied encoder alone.
    """
    if rival == encoder:
        return []
    try:
        return [encoders.load_encoder(rival, None, device, precision, weights_root)]
    except EncoderError as error:
        warnings.warn(f"no comparison with {rival}: {error}", RivalWarning, stacklevel=2)
        return []

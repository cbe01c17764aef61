"""The ids of the ISIC Archive, which name one image in whatever dataset and folder a copy of it lies."""

import re
from pathlib import PurePath

ISIC_ID = re.compile(r"ISIC_\d{7,}", re.IGNORECASE)


def isic_id(name: str) -> str:
    """Returns the ISIC Archive id in a file name, or ""."""
    found = ISIC_ID.search(PurePath(name).name)
    return found[0].upper() if found else ""

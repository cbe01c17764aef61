"""Where things are: the repository, the data, the weights, the outputs and the cache.

Every folder is settled in one order: the argument (a flag or a notebook's parameter), then the environment variable,
then the default below the repository. Nothing here imports torch or pandas, so the command line answers at once.
"""

import os
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

# folder: (environment variable, default below the repository)
FOLDERS = {
    "data_root": ("PANDERM_DATA_ROOT", "data"),
    "weights_root": ("PANDERM_WEIGHTS_ROOT", "weights"),
    "output_root": ("PANDERM_OUTPUT_ROOT", "outputs"),
}


@dataclass(frozen=True)
class Workspace:
    """The folders of one profile. `root` holds records/, executed/, figures/, tables/, report/ and logs/."""

    profile: str
    data_root: Path
    weights_root: Path
    root: Path
    cache: Path

    @property
    def synthetic(self) -> bool:
        """Whether what is studied here is drawn, not photographed: every figure must say so."""
        return self.profile == "demo"

    @property
    def records(self) -> Path:
        return self.root / "records"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def figures(self) -> Path:
        return self.root / "figures"

    @property
    def tables(self) -> Path:
        return self.root / "tables"


def settle_folder(name: str, given: str | Path | None = None) -> Path:
    """Returns the absolute folder `name` (a key of FOLDERS) by argument, environment variable or default."""
    variable, default = FOLDERS[name]
    folder = given or os.environ.get(variable) or REPOSITORY / default
    return settle_path(folder)


def settle_path(given: str | Path) -> Path:
    """Returns a path as absolute, `~` and symbolic links resolved.

    Raises:
        ValueError: It begins with the home of a user whom there is not, or is no text that a notebook can be told.
    """
    try:
        path = Path(given).expanduser().resolve()
        str(path).encode()
    except RuntimeError as error:
        raise ValueError(f"{given}: there is no such user's home; write the path from / on") from error
    except UnicodeEncodeError as error:
        raise ValueError(f"{str(given)!r}: a name in it is not UTF-8; rename that folder or file") from error
    return path


def open_workspace(
    profile: str = "demo",
    data_root: str | Path | None = None,
    weights_root: str | Path | None = None,
    output_root: str | Path | None = None,
) -> Workspace:
    """Settles the folders of a profile; creates none of them.

    In the demo profile the data root is the cache's folder of synthetic stand-ins, whatever else is given, so that
    a demo can neither read real patients' images nor write beside them.

    Raises:
        ValueError: The profile is neither "demo" nor "paper".
    """
    if profile not in ("demo", "paper"):
        raise ValueError(f'profile {profile!r} is unknown; write profile = "demo" or profile = "paper"')
    outputs = settle_folder("output_root", output_root)
    cache = outputs / "cache"
    return Workspace(
        profile=profile,
        data_root=cache / "demo" if profile == "demo" else settle_folder("data_root", data_root),
        weights_root=settle_folder("weights_root", weights_root),
        root=outputs / profile,
        cache=cache,
    )

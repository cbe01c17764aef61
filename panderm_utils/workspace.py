"""The folders: repository, data, weights, outputs and cache.

Each folder is taken from the argument (a flag or a notebook's parameter), or else the environment variable, or else the
default below the repository. Imports neither torch nor pandas, so that the command line answers at once.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from panderm_utils.messages import UserError

REPOSITORY = Path(__file__).resolve().parent.parent

PROFILES = ("demo", "paper", "own")  # defined in data_manifests/profiles.yaml

# folder: (environment variable, default below the repository)
FOLDERS = {
    "data_root": ("PANDERM_DATA_ROOT", "data"),
    "weights_root": ("PANDERM_WEIGHTS_ROOT", "weights"),
    "output_root": ("PANDERM_OUTPUT_ROOT", "outputs"),
}
PIXELS, USUAL_PIXELS = "PANDERM_PIXELS", 20  # environment variable and default, in GB; see `pixel_budget`
PIXEL_BYTES = 3 * 224 * 224  # of an image as encoders see it
PIXEL_RESERVE = 5_000_000_000  # bytes that decoded images leave free on a disk, for checkpoints


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
        """Whether the images are synthetic, which every figure must state."""
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


def settle_folder(name: str, override: str | Path | None = None) -> Path:
    """Returns the absolute folder `name` (a key of FOLDERS): override, environment variable or default."""
    variable, default = FOLDERS[name]
    folder = override or os.environ.get(variable) or REPOSITORY / default
    return settle_path(folder)


def pixel_budget() -> int:
    """Returns the bytes that decoded images may use, in all files below `<cache>/pixels`; 0: none are kept.

    Encoders' evaluation pixels (`encoders.pixels`) and trainings' copies (`data.ImageCopies`) share it.

    Raises:
        UserError: The variable, which --pixels sets, is not a number of GB.
    """
    text = os.environ.get(PIXELS) or str(USUAL_PIXELS)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < float("inf"):
        remedy = f"write a number of GB, such as {USUAL_PIXELS}, or 0 to keep no decoded images"
        raise UserError(f"--pixels or {PIXELS}: {text!r}; {remedy}")
    return int(gigabytes * 1e9)


def pixels_left(folder: Path, besides: Path | None = None) -> int:
    """Returns what the files below a pixel folder leave of the budget, those below `besides` not counted."""
    files = (path for path in folder.rglob("*") if besides not in path.parents and path.is_file())
    return max(0, pixel_budget() - sum(path.stat().st_size for path in files))


def settle_path(path: str | Path) -> Path:
    """Returns an absolute path, with `~` and symbolic links resolved.

    Raises:
        ValueError: The path begins with the home of an unknown user, or is not valid UTF-8, as notebooks require.
    """
    try:
        resolved = Path(path).expanduser().resolve()
        str(resolved).encode()
    except RuntimeError as error:
        raise UserError(f"{path}: no such user; write the absolute path, from / on") from error
    except UnicodeEncodeError as error:
        raise UserError(f"{str(path)!r}: a name in this path is not UTF-8; rename that folder or file") from error
    return resolved


def open_workspace(
    profile: str = "demo",
    data_root: str | Path | None = None,
    weights_root: str | Path | None = None,
    output_root: str | Path | None = None,
) -> Workspace:
    """Returns the folders of a profile; creates none of them.

    In the demo profile the data root is always the cache's folder of synthetic stand-ins, so that a demo can neither
    read real patients' images nor write next to them.

    Raises:
        ValueError: The profile is unknown.
    """
    if profile not in PROFILES:
        names = " or ".join(f'profile = "{name}"' for name in PROFILES)
        raise UserError(f"profile {profile!r} is unknown; write {names}")
    outputs = settle_folder("output_root", output_root)
    cache = outputs / "cache"
    return Workspace(
        profile=profile,
        data_root=cache / "demo" if profile == "demo" else settle_folder("data_root", data_root),
        weights_root=settle_folder("weights_root", weights_root),
        root=outputs / profile,
        cache=cache,
    )

"""Where things are: the repository, the data, the weights, the outputs and the cache; and what a run is called.

Every folder is settled in one order: the argument (a flag or a notebook's parameter), then the environment variable,
then the default below the repository. Nothing here imports torch or pandas, so the command line answers at once.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

# folder: (environment variable, default below the repository)
FOLDERS = {
    "data_root": ("PANDERM_DATA_ROOT", "data"),
    "weights_root": ("PANDERM_WEIGHTS_ROOT", "weights"),
    "output_root": ("PANDERM_OUTPUT_ROOT", "outputs"),
}

LONGEST = 180  # characters of a run's id: the names of its files have a few more, and disks take 255

PROTOCOL_TITLES = {
    "linear_probe": "linear probing",
    "label_efficiency": "label efficiency",
    "external_validation": "external validation",
    "fine_tune": "fine-tuning",
}

# What a run's settings are unless it says otherwise; a setting that differs becomes part of the run's id. None: as
# published, or as the demo profile has it.
RECIPE = ("epochs", "warmup_epochs", "batch_size", "lr", "layer_decay", "drop_path", "weight_decay", "mixup", "cutmix")
RECIPE = (*RECIPE, "smoothing", "weighted_sampling", "monitor", "ema_decay")
DEFAULT_SETTINGS = {
    "linear_probe": {"train_fraction": 1.0, "solver": "published", "precision": "fp32", "replicates": 1000},
    "label_efficiency": {
        "drawing": "honest",
        "draws": 5,
        "fractions": None,
        "solver": "converged",
        "precision": "fp32",
        "replicates": 1000,
    },
    "external_validation": {
        "train_fraction": 1.0,
        "targets": None,
        "target_images": "all",
        "solver": "published",
        "precision": "fp32",
        "replicates": 1000,
    },
    "fine_tune": {
        "train_fraction": 1.0,
        "precision": "auto",
        "tta": 5,
        "replicates": 1000,
        "checkpoint": None,
        **dict.fromkeys(RECIPE),
    },
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


def run_id(dataset: str, protocol: str, encoder: str, seed: int, **settings) -> str:
    """Names a run after what it is: `ham10000-linear_probe-panderm_large-seed0`.

    Settings that differ from the protocol's DEFAULT_SETTINGS are appended in alphabetical order, as in
    `...-seed0-train_fraction_0.1`; of a checkpoint its name and its folder's, as in `...-checkpoint_mine.best.pth`.
    What no disk would take as a name is cut, and ends in a digest of the whole.
    """
    parts = [dataset, protocol, encoder, f"seed{seed}"]
    usual = DEFAULT_SETTINGS.get(protocol, {})
    for key, value in sorted(settings.items()):
        if key not in usual or value != usual[key]:
            parts.append(f"{key}_{'.'.join(Path(value).parts[-2:]) if key == 'checkpoint' else value}")
    name = "-".join(re.sub(r"[^A-Za-z0-9._]", ".", str(part)) for part in parts)
    digest = hashlib.sha256("-".join(map(str, parts)).encode(errors="surrogatepass")).hexdigest()[:16]
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 17]}-{digest}"

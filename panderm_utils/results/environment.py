"""The environment of a run: packages, machine, git commit, peak memory. Imports neither torch nor pandas itself."""

import importlib.metadata
import os
import platform
import subprocess
import sys

from panderm_utils import system
from panderm_utils.workspace import REPOSITORY

VERSIONS_OF = ("torch", "torchvision", "timm", "accelerate", "numpy", "pandas", "scipy", "scikit-learn", "pillow")
VERSIONS_OF += ("panderm_utils",)


def describe_environment() -> dict:
    """Returns Python, platform, package versions, git commit and the GPU, if any."""
    torch = sys.modules.get("torch")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads() if torch else None,
        "gpu": torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None,
        "versions": {name: _version(name) for name in VERSIONS_OF},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def peak_memory_mb() -> dict:
    """Returns, in MB, the peak resident memory of this process and of its allocations on the GPU, if any."""
    torch = sys.modules.get("torch")
    gpu = None
    if torch and torch.cuda.is_available():  # a run may use another GPU than the current one
        gpu = round(max(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count()))) / 1e6)
    return {"process": system.peak_memory(), "gpu": gpu}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # this one, in a checkout that is not installed
        return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository: a downloaded archive
        return None
    return done.stdout.strip()

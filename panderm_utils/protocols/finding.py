"""Finds protocols by name: the modules and folders beside this one that define a `PROTOCOL`."""

import importlib
import pkgutil
from functools import cache

from panderm_utils import protocols
from panderm_utils.manifests import ManifestError, Protocol, unknown_name


@cache
def list_protocols() -> tuple[str, ...]:
    """Returns the names of all protocols, sorted."""
    names = sorted(module.name for module in pkgutil.iter_modules(protocols.__path__))
    return tuple(name for name in names if hasattr(_module(name), "PROTOCOL"))


def load_protocol(name: str) -> Protocol:
    """Returns the description of a protocol.

    Raises:
        ManifestError: Unknown name.
    """
    if name not in list_protocols():
        raise ManifestError(unknown_name("protocol", name, list(list_protocols()), ""))
    return _module(name).PROTOCOL


def _module(name: str):
    return importlib.import_module(f"{protocols.__name__}.{name}")

"""Writes the HTML report of a profile."""

import lazy_loader

OFFERS = {
    "writing": "write_report",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

"""The protocols, each in its own module: its description and everything specific to it."""

import lazy_loader

OFFERS = {
    "finding": "list_protocols load_protocol",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

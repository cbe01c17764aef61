"""The command line: `python run_all.py`, and the installed command `panderm`."""

import lazy_loader

OFFERS = {
    "main": "main",
    "parser": "build_parser program",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

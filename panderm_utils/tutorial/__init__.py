"""The course in notebooks/tutorial: checks the answers to its exercises, and draws what only its lessons need."""

import lazy_loader

OFFERS = {
    "checking": "EXERCISES Verdict check reveal",
    "drawings": "curves line_between score_histogram",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

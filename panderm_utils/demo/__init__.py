"""Draws the stand-ins: synthetic lesions laid out as the real datasets are."""

import lazy_loader

OFFERS = {
    "lesions": "draw_lesion",
    "signs": "DEFAULT draw_signs recipe_of",
    "stand_ins": "SIDES make_stand_in",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

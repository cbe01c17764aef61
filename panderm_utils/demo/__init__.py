"""Draws synthetic stand-ins: lesions laid out like the real datasets."""

import lazy_loader

OFFERS = {
    "cameras": "draw_camera",
    "lesions": "draw_lesion",
    "signs": "DEFAULT_SIGNS draw_signs recipe_of",
    "stand_ins": "SIDES make_stand_in",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

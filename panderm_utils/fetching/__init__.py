"""Gets datasets and weights: downloads them, unpacks them, finds what is already somewhere, puts it in place."""

import lazy_loader

OFFERS = {
    "errors": "FetchError",
    "items": "Item list_items",
    "steps": "fetch",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

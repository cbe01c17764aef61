"""Linear probing: the paper's logistic regression on frozen features."""

import lazy_loader

OFFERS = {
    "classifier": "keep_classifier load_classifier",
    "neighbours": "neighbour_proba",
    "probe": "LinearProbe fit_linear_probe",
    "protocol": "PROTOCOL",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

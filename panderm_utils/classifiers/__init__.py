"""The classifiers that runs keep: loaded from their records, and used on new images."""

import lazy_loader

OFFERS = {
    "classifier": "Classifier ClassifierError Predicted find_record load_classifier",
    "folders": "notice predict_folder",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

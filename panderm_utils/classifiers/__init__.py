"""The models that runs keep, loaded from their records and used on new images: classifiers and segmenters."""

import lazy_loader

OFFERS = {
    "classifier": "Classifier Predicted find_record load_classifier",
    "folders": "load_model notice predict_folder",
    "segmenter": "Segmented Segmenter load_segmenter",
    "views": "ClassifierError",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

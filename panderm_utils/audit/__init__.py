"""What leaks: copies of images, lesions and patients in two splits or datasets, what they cost, doubtful labels."""

import lazy_loader

OFFERS = {
    "costs": "LEFT_OUT costs_of_leakage describe_cost",
    "labels": "doubtful_labels",
    "kinds": "COPIES COPY COPY_SIMILARITY FEATURES FEATURE_SIMILARITY KINDS thresholds",
    "pairs": "PARTNERS Audit audit_datasets",
    "pictures": "doubtful_pictures pair_pictures",
    "writing": "describe_audit shared_table write_audit",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

"""What leaks: copies of images, lesions and patients in two splits or datasets, what they cost, doubtful labels."""

import lazy_loader

OFFERS = {
    "costs": "LEFT_OUT costs_of_leakage describe_cost",
    "fingerprints": "fingerprint_files",
    "labels": "doubtful_labels",
    "pairs": "COPIES COPY COPY_SIMILARITY FEATURES FEATURE_SIMILARITY KINDS Audit audit_datasets thresholds",
    "pictures": "doubtful_pictures pair_pictures",
    "similarity": "Cosines similar_pairs",
    "writing": "describe_audit shared_table write_audit",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

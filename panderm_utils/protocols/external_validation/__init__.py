"""External validation: a melanoma probe, trained on one dataset and tested on others."""

import lazy_loader

OFFERS = {
    "exhibits": "study_exhibits",
    "protocol": "PROTOCOL choose_targets",
    "study": "CLASSES example_images find_targets melanoma_counts melanoma_labels missed_melanomas "
    "read_external_predictions read_left_out read_panel recompute_targets record_scores record_tables score_targets "
    "target_features target_table",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

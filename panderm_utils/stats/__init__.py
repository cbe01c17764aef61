"""Arrays in, arrays out: metrics, masks, intervals, paired tests, calibration, prediction sets, groups, embeddings."""

import lazy_loader

OFFERS = {
    "calibration": "BINS evaluate_calibration reliability",
    "conformal": "COVERAGE conformal_threshold evaluate_prediction_sets prediction_sets",
    "embedding": "choose_examples embed neighbour_agreement place_labels",
    "familiarity": "Familiarity measure_familiarity",
    "image_scores": "compare_group_means compare_image_scores evaluate_image_scores rank_correlation",
    "left_out": "without_image_scores without_images",
    "masks": "LOWER_IS_BETTER MASK_METRICS TOLERANCE keep_largest mask_scores published_mask_scores",
    "metrics": "FEW_IMAGES METRICS MetricWarning PER_IMAGE Scorer accuracy auroc balanced_accuracy check_predictions "
    "classes_present confusion evaluate on_test_set score_table weighted_f1 widest_interval",
    "per_class": "per_class_report pr_curves roc_curves",
    "resampling": "Confusions MetricError Ranking bootstrap in_standard_errors intervals resampled_rows",
    "significance": "ALPHA holm paired_difference permutation_test",
    "subgroups": "FEWEST_IMAGES Gap compare_groups group_labels",
    "thresholds": "LEVELS operating_points",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

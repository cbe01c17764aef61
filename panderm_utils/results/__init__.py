"""Records: what a run leaves, read back, verified, and compared with each other and with the published numbers."""

import lazy_loader

OFFERS = {
    "analyses": "calibration_of_records operating_points_of_records subgroups_of_records",
    "citing": "cite_records",
    "classifier_file": "CLASSIFIER_FILE keep_classifier read_classifier_file",
    "comparison": "compare_encoders compare_protocols",
    "environment": "describe_environment peak_memory_mb",
    "identity": "PROFILE_SETTINGS SCHEMA is_done load_record read_record run_again run_id settle_settings",
    "image_scores": "parse_image_scores read_image_scores scores_masks",
    "published": "SCOREBOARD_COLUMNS paper_items scoreboard scoreboard_alt_text scoreboard_sentence scoreboard_summary",
    "recorded_features": "agreement_table embed_features features_of_records open_examples",
    "records": "Run begin_run describe_scored note_data parse_predictions prediction_table read_predictions "
    "read_records save_record summarise worst_mistakes",
    "selection": "ANY missing_runs order_encoders paper_scores study_runs",
    "verdicts": "compare_with_published differing_settings published_verdicts",
    "verification": "compare_metrics describe_verification recompute_predictions resampling verify_records",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

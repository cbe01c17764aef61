"""Records: what a run leaves, read back, verified, compared, and held against the published numbers."""

import lazy_loader

OFFERS = {
    "analyses": "calibrate_records points_of_records read_subgroups",
    "comparison": "compare_encoders compare_protocols",
    "environment": "describe_environment peak_memory_mb",
    "identity": "PROFILE_SETTINGS SCHEMA is_done run_id settle_settings",
    "published": "SCOREBOARD_COLUMNS paper_items scoreboard scoreboard_in_a_sentence scoreboard_in_words "
    "scoreboard_summary",
    "recorded_features": "agreement_table lay_out open_examples read_all",
    "records": "begin_run beside_published parse_predictions prediction_table read_predictions read_record "
    "read_records save_record summarise worst_mistakes",
    "selection": "ANY differing_settings missing_runs order_encoders paper_scores published_verdicts",
    "verification": "compare_metrics describe_verification recompute_predictions resampling verify_records",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

"""Figures and tables, drawn from arrays and records."""

import lazy_loader

OFFERS = {
    "attention": "attention_maps",
    "comparison_plots": "comparisons_table differences_table encoder_differences protocol_differences "
    "protocols_table seeds_table",
    "embedding": "figure_umap",
    "exhibits": "Exhibit upright",
    "leakage": "costs_table image_pairs similarity_histograms",
    "paper": "FOUR_METRICS extended_data_figure_1 figure_2a figure_2c figure_2d metric_panels scoreboard",
    "plots": "GREY METRIC_TITLES class_counts confusion_matrix feature_map finish_figure labelled_images "
    "loss_curve mistakes roc_pr_curves save_figure shorten style wrap",
    "reliability": "calibration_alt_text calibration_table points_table reliability_diagrams",
    "subgroups": "gaps_table groups_table subgroup_panels subgroups_alt_text",
    "tables": "encoder_colors metrics_table readable scores_alt_text upstream_results with_suffix write_tables",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

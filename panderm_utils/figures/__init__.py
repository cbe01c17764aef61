"""Pictures and tables, drawn from arrays and records."""

import lazy_loader

OFFERS = {
    "comparison_plots": "comparisons_table differences_table encoder_differences protocol_differences "
    "protocols_table seeds_table",
    "embedding": "figure_umap",
    "paper": "FOUR extended_data_figure_1 figure_2a figure_2c figure_2d scoreboard",
    "plots": "GREY METRIC_TITLES class_counts confusion_matrix curves feature_map finish labelled_images "
    "loss_curve mistakes save_figure shorten style wrap",
    "reliability": "calibration_in_words calibration_table points_table reliability_diagrams",
    "subgroups": "gaps_table groups_table subgroup_panels subgroups_in_words",
    "tables": "encoder_colors in_words metrics_table readable upstream_results with_suffix write_tables",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

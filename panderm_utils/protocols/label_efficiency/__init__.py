"""Label efficiency: a probe for each label fraction and draw, and how much data an encoder needs."""

import lazy_loader

OFFERS = {
    "data_needed": "answer data_needed_table sentences",
    "plots": "efficiency_curves figure_2b",
    "protocol": "PROTOCOL choose_rival",
    "subsets": "FRACTIONS Subset draw_subsets subset_table",
    "sweep": "Sweep draw_scores full_scores label_efficiency_table read_curves recompute_sweep record_tables "
    "score_sweep side_by_side sweep_probes",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

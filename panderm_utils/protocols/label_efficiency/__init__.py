"""Label efficiency: one probe per label fraction and draw, and the labels that an encoder needs."""

import lazy_loader

OFFERS = {
    "data_needed": "data_needed_table find_match match_sentences",
    "exhibits": "study_exhibits",
    "plots": "efficiency_curves figure_2b",
    "protocol": "PROTOCOL choose_rival",
    "rivals": "load_rival",
    "subsets": "FRACTIONS Subset draw_subsets subset_table",
    "sweep": "Sweep full_scores label_efficiency_table read_curves recompute_sweep record_tables score_draws "
    "score_sweep side_by_side sweep_probes",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

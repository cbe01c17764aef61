"""What protocols that train a network share: a loop that can be interrupted and resumed, in several processes."""

import lazy_loader

OFFERS = {
    "errors": "TrainingError",
    "gradients": "BatchGradients make_optimizer",
    "inference": "BATCH forward free_memory score",
    "kept": "load_kept",
    "launch": "Trained run_training",
    "loop": "Training",
    "plots": "LiveCurves learning_rate_curve training_curves",
    "processes": "Computing make_accelerator",
    "recipe": "Recipe build_recipe",
    "seeds": "DROP IMAGE MIX ORDER VIEWS generator_for seed_of",
    "state": "BEST LAST read_facts",
    "task": "TrainingTask digest_of_lines",
    "trial": "TrialStep",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

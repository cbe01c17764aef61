"""Fine-tuning: the published recipe as one call that can be interrupted and resumed."""

import lazy_loader

OFFERS = {
    "augmentation": "DEGREES HUE IMAGE TrainingImages VIEWS generator_for shift_hue tta_views",
    "classifier": "keep_classifier load_classifier",
    "gradients": "BatchGradients make_optimizer",
    "metrics": "evaluate_fine_tuning",
    "model": "FineTuneModel describe load_finetune_model load_finetuned",
    "plots": "LiveCurves learning_rate_curve picture_of",
    "prediction": "fine_tune_fraction labelled_images predict",
    "processes": "Computing make_accelerator",
    "protocol": "PROTOCOL RECIPE",
    "recipe": "FineTuneRecipe learning_rates make_recipe parameter_groups steps_of_epoch",
    "training": "evaluate_only finetune recipe_table",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

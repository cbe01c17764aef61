"""Fine-tuning: the published recipe as one call that can be interrupted and resumed."""

import lazy_loader

OFFERS = {
    "augmentation": "DEGREES HUE TrainingImages shift_hue tta_views",
    "classifier": "keep_classifier load_classifier",
    "metrics": "evaluate_fine_tuning",
    "mixing": "MixedLoss",
    "model": "FineTuneModel describe load_finetune_model load_finetuned",
    "plots": "picture_of",
    "prediction": "fine_tune_fraction labelled_images predict",
    "protocol": "PROTOCOL RECIPE",
    "recipe": "FineTuneRecipe learning_rates make_recipe parameter_groups steps_of_epoch",
    "training": "FineTuning evaluate_only finetune recipe_table trial",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

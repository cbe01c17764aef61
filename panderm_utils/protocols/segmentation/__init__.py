"""Lesion segmentation: an encoder with an UPerNet decoder, trained by the published recipe."""

import lazy_loader

OFFERS = {
    "images": "MaskedImages TrainingImages augment masked_images training_rows",
    "model": "SegmentationModel describe load_segmentation_model load_segmented",
    "prediction": "Segmentations predict",
    "protocol": "PROTOCOL RECIPE",
    "recipe": "SegmentationRecipe VARIANTS learning_rates make_recipe recipe_table",
    "training": "SegmentationTraining evaluate_only train",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

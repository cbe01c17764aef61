"""Lesion segmentation: an encoder with an UPerNet decoder, the scores of its masks, and the archive that keeps them."""

import lazy_loader

OFFERS = {
    "comparison": "complete_draws missing_seeds open_outlines read_seeds shared_examples",
    "exhibits": "study_exhibits",
    "images": "MaskedImages TrainingImages augment masked_images picture_of training_rows",
    "masks": "MASKS_FILE ImageMasks MaskArchive MaskError pack_masks shrink_mask",
    "model": "SegmentationModel describe load_segmentation_model load_segmented pyramid_table",
    "plots": "dice_against_size dice_distribution mask_contours",
    "prediction": "Segmentations predict",
    "protocol": "PROTOCOL RECIPE",
    "recipe": "SegmentationRecipe VARIANTS learning_rates make_recipe recipe_table",
    "scores": "correlate_with_size evaluate_masks pick_examples recompute_masks score_images",
    "segmenter": "load_segmenter",
    "training": "SegmentationTraining evaluate_only train trial",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

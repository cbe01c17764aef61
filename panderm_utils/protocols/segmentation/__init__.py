"""Segmentation: masks of lesions by a decoder on the encoder, their scores, and the archive that keeps them."""

import lazy_loader

OFFERS = {
    "exhibits": "study_exhibits",
    "masks": "MASKS_FILE ImageMasks MaskArchive MaskError pack_masks shrink_mask",
    "plots": "dice_against_size dice_distribution mask_contours",
    "scores": "correlate_with_size evaluate_masks pick_examples recompute_masks score_images",
}
offered = {module: names.split() for module, names in OFFERS.items()}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=offered)

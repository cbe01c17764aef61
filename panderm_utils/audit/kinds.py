"""The kinds of pairs, and from which similarity on two images are one."""

from panderm_utils.manifests import load_encoder_manifest

FILE, PIXELS, ISIC, COPY, FEATURES = "same file", "same pixels", "same ISIC id", "near copy", "similar features"
# The strongest evidence first: a pair is listed under the first that it has.
COPIES = (FILE, PIXELS, ISIC, COPY, FEATURES)
GROUPS = ("lesion", "case", "patient")  # kinds of groups in manifests; a case is one lesion in several pictures
KINDS = (*COPIES, *(f"same {kind}" for kind in GROUPS))
# Of the bits of the perceptual hash: 224 of 256. Of 2,203 drawn images, no two agree in more than 0.84, however turned;
# copies as JPEG of quality 30, at half the size or in another aspect ratio agree in 0.92 or more, without a margin of
# 1% in 0.875 or more, of 2% in 0.8 or more. Among many more images, a few look-alikes are to be expected.
COPY_SIMILARITY = 0.875
# Cosine of features: a first value, not measured on real images. Set it where the histogram of the notebook has a gap.
FEATURE_SIMILARITY = 0.98


def thresholds(
    encoder: str | None, copy_similarity: float = COPY_SIMILARITY, feature_similarity: float | None = None
) -> dict[str, float]:
    """Returns kind -> the similarity from which on `audit_datasets` lists a pair; kinds without one list none."""
    found = {COPY: copy_similarity}
    if encoder is not None and (feature_similarity or not load_encoder_manifest(encoder).toy):
        found[FEATURES] = feature_similarity or FEATURE_SIMILARITY
    return found

"""Which datasets a probe of melanoma against the rest, trained on one of them, is tested on.

Imports neither torch nor pandas, so that a plan can name them too.
"""

from panderm_utils.manifests import DatasetManifest, Profile, list_datasets, load_dataset_manifest

NAME = "external_validation"


class TargetError(ValueError):
    """Targets that cannot be; the message says which and what to write instead."""


def choose_targets(source: DatasetManifest, profile: Profile, given: str | None = None) -> list[DatasetManifest]:
    """Returns the manifests of the datasets that a probe trained on `source` is tested on.

    Left out are the source and what shares its folder of images: the clinical and the dermoscopic images of one
    collection show the same lesions, so neither is external to the other.

    Args:
        given: Names, as "hiba, pad_ufes"; None: those of the profile's settings, else every dataset of the profile and
            of the user's own that says in its manifest which classes are melanoma.

    Raises:
        TargetError: A name cannot be a target, or none is left. ManifestError: a name is unknown.
    """
    usual = profile.choice(NAME).settings.get("targets")
    names = given.replace(",", " ").split() if given else usual or _candidates(profile)
    cards = [load_dataset_manifest(name) for name in dict.fromkeys(names)]
    if unfit := [card.name for card in cards if not card.melanoma]:
        raise TargetError(
            f"target {', '.join(unfit)}: no `melanoma` in the manifest; targets are {', '.join(_candidates(profile))}"
        )
    cards = [c for c in cards if c.name != source.name and c.image_root != source.image_root]
    if not cards:
        raise TargetError(
            f"targets {', '.join(names)}: none but {source.name} itself, or of its folder of images; name another"
        )
    return cards


def _candidates(profile: Profile) -> list[str]:
    """Every dataset with a melanoma mapping; own data have no drawn stand-in, so no part in the demo."""
    own = [name for name in list_datasets() if load_dataset_manifest(name).own and not profile.synthetic]
    return [name for name in (*profile.datasets, *own) if load_dataset_manifest(name).melanoma]

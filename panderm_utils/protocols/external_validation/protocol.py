"""External validation: what it is. Loads neither torch nor pandas."""

from panderm_utils.manifests import DatasetManifest, Profile, Protocol, list_datasets, load_dataset_manifest
from panderm_utils.protocols import external_validation

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


def extra_inputs(card, encoder, profile, parameters):
    return choose_targets(card, profile, parameters.get("targets"))


def recompute(record, folder):
    return external_validation.recompute_targets(record, folder)


PROTOCOL = Protocol(
    name="external_validation",
    title="external validation",
    question="Does a probe that learned to tell melanoma from the rest on one dataset still do so on others?",
    reproduces="Fig. 2c, whose text names neither the source nor all of its seven external sets",
    teaches="why a score on a dataset's own test split says little of other hospitals, how images that two "
    "datasets share are found and taken out, and why AUROC travels better than a threshold",
    seconds_an_image=0.7,
    extra_time=", and those of the targets that the cache does not hold yet",
    metric="auroc",
    settings={
        "train_fraction": 1.0,
        "targets": None,
        "target_images": "all",
        "solver": "published",
        "precision": "fp32",
        "replicates": 1000,
        "weights": None,
    },
    dataset_keys=("melanoma",),
    recompute=recompute,
    extra_inputs=extra_inputs,
)

"""The description of external validation. Loads neither torch nor pandas."""

from panderm_utils.manifests import (
    DatasetManifest,
    DoesNotApply,
    Profile,
    Protocol,
    load_dataset_manifest,
    one_of,
    text,
)
from panderm_utils.messages import UserError
from panderm_utils.protocols import external_validation

NAME = "external_validation"
TARGET_IMAGES = ("all", "test")


class TargetError(UserError):
    """Invalid targets; the message says which and what to write instead."""


def choose_targets(source: DatasetManifest, profile: Profile, targets: str | None = None) -> list[DatasetManifest]:
    """Returns the manifests of the datasets that a probe trained on `source` is tested on.

    The source and datasets in the same image folder are left out: the clinical and the dermoscopic images of one
    collection show the same lesions, so neither is external to the other.

    Args:
        targets: Names, as "hiba, pad_ufes"; None: those of the profile's settings, else every dataset of the profile
            whose manifest names its melanoma classes.

    Raises:
        TargetError: A dataset cannot be a target, or none is left. ManifestError: a name is unknown.
        DoesNotApply: The profile has no other dataset with melanomas.
    """
    defaults = profile.choice(NAME).settings.get("targets")
    names = targets.replace(",", " ").split() if targets else defaults or _candidates(profile)
    cards = [load_dataset_manifest(name) for name in dict.fromkeys(names)]
    if unfit := [card.name for card in cards if not card.melanoma]:
        raise TargetError(
            f"target {', '.join(unfit)}: no `melanoma` in the manifest; choose from {', '.join(_candidates(profile))}"
        )
    cards = [c for c in cards if c.name != source.name and c.image_root != source.image_root]
    if not cards and not targets:
        raise DoesNotApply(
            f"dataset {source.name}: the profile {profile.name} has no other dataset with melanomas to test it on; "
            "name public ones: -p targets=ham10000"
        )
    if not cards:
        raise TargetError(
            f"targets {', '.join(names)}: only {source.name} itself, or of its image folder; name another dataset"
        )
    return cards


def _candidates(profile: Profile) -> list[str]:
    return [name for name in profile.datasets if load_dataset_manifest(name).melanoma]


def methods(record):
    targets = ", ".join(record.get("targets", {})) or "no dataset"
    return (
        "For external validation, a logistic regression that tells melanoma from the other classes was fitted to the "
        f"same kind of features and tested, unchanged, on other datasets ({targets}); images that the training dataset "
        "also has were excluded (identical files, or the same ISIC Archive id)."
    )


PROTOCOL = Protocol(
    name="external_validation",
    title="external validation",
    question="Does a probe trained to distinguish melanoma from the rest on one dataset still do so on others?",
    reproduces="Fig. 2c, whose text names neither the source nor all of its seven external sets",
    teaches="why a score on a dataset's own test split says little about other hospitals, how images shared by two "
    "datasets are found and removed, and why AUROC transfers better than a threshold",
    seconds_an_image=0.7,
    demo_time="half a minute",  # 25 s in the demo's records, two runs at once on two slow cores
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
    parameters={"targets": text("names of datasets").or_else(None), "target_images": one_of(*TARGET_IMAGES)},
    dataset_keys=("melanoma",),
    recompute=lambda record, folder: external_validation.recompute_targets(record, folder),
    other_tests=lambda folder: external_validation.read_external_predictions(folder),
    methods=methods,
    exhibits=lambda scores, _: external_validation.study_exhibits(scores),
    extra_inputs=lambda card, encoder, profile, given: choose_targets(card, profile, given.get("targets")),
)

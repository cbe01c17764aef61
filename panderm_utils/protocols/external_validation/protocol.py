"""External validation: what it is. Loads neither torch nor pandas."""

from panderm_utils.manifests import Protocol
from panderm_utils.protocols import external_validation
from panderm_utils.protocols.external_validation.targets import choose_targets


def beside(card, encoder, profile, parameters):
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
    besides=", and those of the targets that the cache does not hold yet",
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
    beside=beside,
)

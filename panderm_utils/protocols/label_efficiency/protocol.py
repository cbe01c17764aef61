"""The description of label efficiency. Loads neither torch nor pandas."""

from panderm_utils import manifests
from panderm_utils.manifests import ENCODER, FRACTIONS, Protocol, ProtocolChoice, one_of, whole
from panderm_utils.protocols import label_efficiency

DRAWINGS = ("honest", "published")


def choose_rival(choice: ProtocolChoice, encoder: str) -> str | None:
    """Returns the encoder to compare with: the profile's `rival`, or for the rival itself the first other encoder."""
    rivals = (choice.settings["rival"], *choice.encoders) if "rival" in choice.settings else ()
    return next((name for name in rivals if name != encoder), None)


def extra_inputs(card, encoder, profile, parameters):
    rival = parameters.get("rival") or choose_rival(profile.choice(PROTOCOL.name), encoder)
    return [manifests.load_encoder_manifest(rival)] if rival else []


def companions(parameters):
    """Returns separate runs of fine-tuning at the label fractions in `finetune_fractions`."""
    fractions = manifests.read_fractions(parameters.get("finetune_fractions") or "")
    return {"fine_tune": [{"train_fraction": str(fraction)} for fraction in fractions]} if fractions else {}


def methods(record):
    settings, kept = record["settings"], ", ".join(record.get("kept_whole", []))
    draws = f"{settings['draws']} stratified, nested draws" if settings["drawing"] == "honest" else "one published draw"
    return (
        f"For the dependence on the number of labels, the same logistic regression was fitted to fractions of the "
        f"training images ({draws} of each{f', images with the same {kept} kept together' if kept else ''}; solver "
        f"{settings['solver']!r}, seed {record['seed']}) and scored on the same test split."
    )


PROTOCOL = Protocol(
    name="label_efficiency",
    title="label efficiency",
    question="How many labels does a frozen encoder need, and how few suffice to match another encoder with all?",
    reproduces="Fig. 2b",
    teaches="how a score grows with the labels, how to draw a representative 5% of a dataset, how variation over draws "
    "differs from variation over test images, and how to estimate how much data is needed",
    seconds_an_image=0.7,  # features only; the probes take minutes
    demo_time="half a minute",  # 10 to 25 s in the demo's records, two runs at once on two slow cores
    settings={
        "drawing": "honest",
        "draws": 5,
        "fractions": None,
        "rival": None,
        "solver": "converged",
        "precision": "fp32",
        "replicates": 1000,
        "weights": None,
    },
    parameters={
        "drawing": one_of(*DRAWINGS),
        "draws": whole(1),
        "fractions": FRACTIONS.or_else(None),
        "finetune_fractions": FRACTIONS.or_else(None),
        "rival": ENCODER.or_else(None),
    },
    recompute=lambda record, folder: label_efficiency.recompute_sweep(record, folder),
    extra_inputs=extra_inputs,
    companions=companions,
    methods=methods,
    exhibits=lambda scores, _: label_efficiency.study_exhibits(scores),
)

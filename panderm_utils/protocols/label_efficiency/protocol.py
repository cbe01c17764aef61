"""Label efficiency: what it is. Loads neither torch nor pandas."""

from panderm_utils import manifests
from panderm_utils.manifests import Protocol, ProtocolChoice
from panderm_utils.protocols import label_efficiency


def choose_rival(choice: ProtocolChoice, encoder: str) -> str | None:
    """Returns whom an encoder is held against: the profile's `rival`, or for that one the first of the others."""
    rivals = (choice.settings["rival"], *choice.encoders) if "rival" in choice.settings else ()
    return next((name for name in rivals if name != encoder), None)


def extra_inputs(card, encoder, profile, parameters):
    rival = parameters.get("rival") or choose_rival(profile.choice(PROTOCOL.name), encoder)
    return [manifests.load_encoder_manifest(rival)] if rival else []


def companions(given, problems):
    """Fine-tuning at the label fractions that `finetune_fractions` names, as runs of their own."""
    text = given.get("finetune_fractions")
    if text in (None, "None"):
        return {}
    if fractions := manifests.read_fractions(text):
        return {"fine_tune": [{"train_fraction": str(fraction)} for fraction in fractions]}
    problems.append(f"-p finetune_fractions={text}: write {manifests.FRACTIONS_RULE}, as in finetune_fractions=0.1,0.5")
    return {}


def recompute(record, folder):
    return label_efficiency.recompute_sweep(record, folder)


PROTOCOL = Protocol(
    name="label_efficiency",
    title="label efficiency",
    question="How many labels does a frozen encoder need, and with how few does it match another one with all?",
    reproduces="Fig. 2b",
    teaches="how a score grows with the labels, how to draw a fair 5% of a dataset, how the chance of the draw "
    "differs from the chance of the test images, and how to read off how much data is needed",
    seconds_an_image=0.7,  # the features; the probes are minutes
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
    recompute=recompute,
    extra_inputs=extra_inputs,
    companions=companions,
)

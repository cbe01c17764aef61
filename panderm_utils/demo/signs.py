"""Recipes that lesions are drawn from: how strongly each dermoscopic sign is present in each class.

A recipe gives the mean and spread of each sign's strength, in 0..1. The recipes of the classes overlap, so that no
encoder can be perfect.
"""

import hashlib

import numpy as np

# Used for the signs that a recipe does not mention.
DEFAULT_SIGNS = {
    "size": (0.45, 0.15),
    "elongation": (0.25, 0.15),
    "irregularity": (0.25, 0.12),
    "softness": (0.45, 0.15),
    "darkness": (0.45, 0.15),
    "redness": (0.25, 0.12),
    "colours": (0.25, 0.15),
    "network": (0.1, 0.12),
    "globules": (0.1, 0.12),
    "streaks": (0.03, 0.08),
    "veil": (0.03, 0.08),
    "cysts": (0.05, 0.1),
    "vessels": (0.05, 0.1),
    "scar": (0.02, 0.06),
    "lacunae": (0.02, 0.06),
    "scale": (0.04, 0.1),
}
RECIPES = {
    "akiec": {"redness": (0.65, 0.15), "darkness": (0.2, 0.1), "scale": (0.6, 0.25), "softness": (0.7, 0.15)},
    "bcc": {"redness": (0.5, 0.15), "darkness": (0.25, 0.12), "vessels": (0.6, 0.25), "veil": (0.15, 0.15)},
    "bkl": {
        "cysts": (0.55, 0.3),
        "darkness": (0.55, 0.15),
        "redness": (0.1, 0.08),
        "softness": (0.2, 0.12),
        "irregularity": (0.35, 0.15),
    },
    "df": {"scar": (0.6, 0.25), "network": (0.35, 0.2), "size": (0.35, 0.1), "darkness": (0.35, 0.12)},
    "mel": {
        "irregularity": (0.6, 0.2),
        "colours": (0.65, 0.2),
        "darkness": (0.65, 0.18),
        "veil": (0.4, 0.3),
        "streaks": (0.35, 0.3),
        "network": (0.3, 0.25),
        "size": (0.6, 0.15),
    },
    "nv": {
        "redness": (0.2, 0.1),
        "network": (0.45, 0.25),
        "globules": (0.35, 0.3),
        "irregularity": (0.15, 0.1),
        "colours": (0.2, 0.12),
    },
    "vasc": {"lacunae": (0.65, 0.25), "redness": (0.75, 0.15), "size": (0.35, 0.12), "darkness": (0.4, 0.2)},
}
# A nevus and a melanoma that look alike, as some do.
ALIKE = {
    "irregularity": (0.45, 0.15),
    "colours": (0.45, 0.15),
    "darkness": (0.6, 0.15),
    "veil": (0.12, 0.12),
    "streaks": (0.15, 0.15),
    "network": (0.45, 0.2),
    "globules": (0.25, 0.2),
    "size": (0.5, 0.15),
}
# The diagnoses in a class, each as likely; another class has one.
DIAGNOSES = {
    "mel": ("mel", "mel", "early melanoma"),
    "nv": ("nv", "nv", "atypical nevus"),
    "other": ("nv", "nv", "atypical nevus", "bkl"),
    "benign": ("nv", "atypical nevus", "bkl", "df"),
    "malignant": ("mel", "early melanoma", "bcc", "akiec"),
}
# What a tile of pathology shows, and so what the classes there differ in.
TILE_SIGNS = (
    "size",
    "elongation",
    "irregularity",
    "darkness",
    "redness",
    "network",
    "globules",
    "streaks",
    "veil",
    "scar",
)
# Other datasets' names for the same classes; any other class gets its own random recipe.
SAME_AS = {
    "melanoma": "mel",
    **dict.fromkeys(("nev", "naevus"), "nv"),
    **dict.fromkeys(("ack", "ak", "scc", "sqcc"), "akiec"),
    **dict.fromkeys(("sek", "sk", "sl"), "bkl"),
    "vascular": "vasc",
}


def recipe_of(dataset: str, class_name: str, rng: np.random.Generator | None = None) -> dict[str, tuple[float, float]]:
    """Returns the mean and spread of every sign for a class; for unknown classes, random ones seeded by both names.

    Args:
        rng: Draws one of the diagnoses in the class; by default the first, the most typical.
    """
    name = SAME_AS.get(class_name, class_name)
    diagnoses = DIAGNOSES.get(name, (name,))
    diagnosis = diagnoses[0 if rng is None else rng.integers(len(diagnoses))]
    recipe = {**RECIPES, "atypical nevus": ALIKE, "early melanoma": ALIKE}.get(diagnosis)
    if recipe is None or dataset == "patch16":
        seed = int.from_bytes(hashlib.sha256(f"{dataset}/{class_name}".encode()).digest()[:8], "big")
        rng = np.random.default_rng(seed)
        signs = rng.choice(list(TILE_SIGNS if dataset == "patch16" else DEFAULT_SIGNS), size=5, replace=False)
        far = {sign: [mean for mean in (0.05, 0.5, 0.95) if abs(mean - DEFAULT_SIGNS[sign][0]) > 0.2] for sign in signs}
        recipe = {sign: (float(rng.choice(means)), 0.15) for sign, means in far.items()}  # so that it can be learnt
    return {**DEFAULT_SIGNS, **recipe}


def draw_signs(recipe: dict[str, tuple[float, float]], rng: np.random.Generator) -> dict[str, float]:
    """Returns a random strength in 0..1 of each sign of a recipe, for one lesion."""
    return {sign: float(np.clip(rng.normal(mean, spread), 0, 1)) for sign, (mean, spread) in recipe.items()}


def draw_tone(rng: np.random.Generator, even: bool = False) -> int:
    """Returns a random skin tone, 1 (light) to 6 (dark): as rare as in public dermatology images, or `even`."""
    return 1 + int(rng.choice(6, p=None if even else [0.22, 0.3, 0.24, 0.13, 0.07, 0.04]))

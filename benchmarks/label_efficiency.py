"""Times a label-efficiency sweep against the naive way, in one run on the demo dataset: 7 fractions x 5 draws.

    python -m benchmarks.label_efficiency            every fit of the naive way (about 10 minutes on 2 cores)
    python -m benchmarks.label_efficiency --quick    one draw of the naive way, times five: a look, not a result

The naive way is the one that a fraction as a notebook's parameter leads to: each of the 35 runs extracts the features
of its training images and of the test images, with the very same encoder and reader, then fits its probe. Ours extracts
all features once and fits 31 probes, since the five of all labels are one. Nothing is taken from a cache.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.measuring import describe_machine, timed

# isort: split
from panderm_utils import data, demo, encoders, manifests
from panderm_utils.protocols import label_efficiency
from panderm_utils.protocols.linear_probe import fit_linear_probe

GOAL = 15
DRAWS = 5


def extract_and_fit(encoder, study, train_images: list[str], seconds: dict[str, float]) -> np.ndarray:
    """One run of the naive way: returns its test probabilities [N, K], adds up its seconds."""
    test = study.split("test")
    y = study.split("train").set_index("image")["label"]
    (x, x_test), extracting = timed(
        lambda: [
            encoders.extract_files(encoder, [study.path(name) for name in names]).x
            for names in (train_images, test["image"])
        ]
    )
    labels = y[train_images].to_numpy()
    probe, fitting = timed(fit_linear_probe, x, labels, study.manifest.num_classes, solver="converged")
    seconds["extraction"] += extracting
    seconds["probes"] += fitting
    return probe.predict_proba(x_test)


def sweep(encoder, study, drawn, seconds: dict[str, float]) -> label_efficiency.Sweep:
    """Our way."""
    (train, test), seconds["extraction"] = timed(
        lambda: [encoders.extract_features(encoder, study, split) for split in ("train", "test")]
    )
    classes = study.manifest.num_classes
    result, seconds["probes"] = timed(label_efficiency.sweep_probes, train.x, train.y, test.x, drawn, classes)
    return result


def compare(study, draws_timed: int) -> None:
    """Prints both ways' seconds and their ratio; the naive way times `draws_timed` of the five draws."""
    encoder = encoders.load_encoder("panderm_tiny", device="cpu")
    drawn = label_efficiency.draw_subsets(study.table, draws=DRAWS, group_columns=study.manifest.groups.values())
    images = study.split("train")["image"].to_numpy()
    encoders.extract_files(encoder, [study.path(name) for name in images[:64]])  # warm up
    ours: dict[str, float] = {}
    result = sweep(encoder, study, drawn, ours)
    naive = {"extraction": 0.0, "probes": 0.0}
    furthest = 0.0
    for subset, proba in zip(result.subsets, result.proba, strict=True):
        for draw in range(DRAWS) if subset.fraction == 1 else [subset.draw]:
            if draw < draws_timed:
                again = extract_and_fit(encoder, study, images[subset.rows].tolist(), naive)
                furthest = max(furthest, float(np.abs(again - proba).max()))
                print(
                    f"  {subset.fraction:>5.0%} of the labels, draw {draw}: {sum(naive.values()):6.1f} s so far",
                    flush=True,
                )
    scale = DRAWS / draws_timed
    total, own = scale * sum(naive.values()), sum(ours.values())
    said = "measured" if scale == 1 else f"{draws_timed} of {DRAWS} draws measured, times {scale:g}"
    print(f"naive ({said}): {total:.1f} s, of which {scale * naive['extraction']:.1f} s of extraction")
    print(f"ours: {own:.1f} s, of which {ours['extraction']:.1f} s of extraction")
    asked = DRAWS * len({subset.fraction for subset in drawn})
    print(f"the {asked} probes alone, {len(result.fits)} of them fitted: {ours['probes']:.2f} s")
    ratio = total / own
    print(f"ratio {ratio:.1f} (goal {GOAL}: {'reached' if ratio >= GOAL else 'missed'})")
    print(f"probabilities of the two ways differ by at most {furthest:.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="time one draw of the naive way")
    arguments = parser.parse_args()
    print(describe_machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        card = manifests.load_dataset_manifest("demo")
        demo.make_stand_in(card, folder)
        compare(data.load_dataset(card, Path(folder)), 1 if arguments.quick else DRAWS)

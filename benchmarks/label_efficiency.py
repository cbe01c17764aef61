"""Times a label-efficiency sweep against the naive way on the demo dataset: 7 fractions x 5 draws.

    python -m benchmarks.label_efficiency            every fit of the naive way (about 10 minutes on 2 cores)
    python -m benchmarks.label_efficiency --quick    one draw of the naive way, times five: indicative only

The naive way makes the fraction a notebook parameter: each of the 35 runs extracts the features of its training images
and of the test images, with the same encoder and reader, then fits its probe. Ours extracts all features once and fits
31 probes, as the five with all labels are identical. Nothing is read from a cache.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.measuring import conclude, describe_machine, timed

# isort: split
from panderm_utils import data, demo, encoders, manifests
from panderm_utils.protocols import label_efficiency
from panderm_utils.protocols.linear_probe import fit_linear_probe

GOAL = 15
DRAWS = 5


def extract_and_fit(encoder, study, train_images: list[str], seconds: dict[str, float]) -> np.ndarray:
    """Returns test probabilities [N, K] of one run of the naive way; adds its times to `seconds`."""
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


def sweep(encoder, study, subsets, seconds: dict[str, float]) -> label_efficiency.Sweep:
    """Returns our sweep; stores its times in `seconds`."""
    (train, test), seconds["extraction"] = timed(
        lambda: [encoders.extract_features(encoder, study, split) for split in ("train", "test")]
    )
    classes = study.manifest.num_classes
    result, seconds["probes"] = timed(label_efficiency.sweep_probes, train.x, train.y, test.x, subsets, classes)
    return result


def compare(study, draws_timed: int) -> None:
    """Prints the seconds of both ways and their ratio; of the naive way, times `draws_timed` of the five draws."""
    encoder = encoders.load_encoder("panderm_tiny", device="cpu")
    subsets = label_efficiency.draw_subsets(study.table, draws=DRAWS, group_columns=study.manifest.groups.values())
    images = study.split("train")["image"].to_numpy()
    encoders.extract_files(encoder, [study.path(name) for name in images[:64]])  # warm up
    ours: dict[str, float] = {}
    result = sweep(encoder, study, subsets, ours)
    naive = {"extraction": 0.0, "probes": 0.0}
    difference = 0.0
    for subset, proba in zip(result.subsets, result.proba, strict=True):
        for draw in range(DRAWS) if subset.fraction == 1 else [subset.draw]:
            if draw < draws_timed:
                again = extract_and_fit(encoder, study, images[subset.rows].tolist(), naive)
                difference = max(difference, float(np.abs(again - proba).max()))
                print(
                    f"  label fraction {subset.fraction:>5.0%}, draw {draw}: {sum(naive.values()):6.1f} s so far",
                    flush=True,
                )
    scale = DRAWS / draws_timed
    naive_total, our_total = scale * sum(naive.values()), sum(ours.values())
    method = "measured" if scale == 1 else f"{draws_timed} of {DRAWS} draws measured, times {scale:g}"
    print(f"naive ({method}): {naive_total:.1f} s, of which {scale * naive['extraction']:.1f} s for extraction")
    print(f"ours: {our_total:.1f} s, of which {ours['extraction']:.1f} s for extraction")
    probes = DRAWS * len({subset.fraction for subset in subsets})
    print(f"the {probes} probes alone, {len(result.fits)} of them fitted: {ours['probes']:.2f} s")
    ratio = naive_total / our_total
    conclude(f"label efficiency, 7 fractions x {DRAWS} draws, naive way {method}", ratio, GOAL)
    print(f"probabilities of the two ways differ by at most {difference:.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="time one draw of the naive way")
    arguments = parser.parse_args()
    print(describe_machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        card = manifests.load_dataset_manifest("demo")
        demo.make_stand_in(card, folder)
        compare(data.load_dataset(card, Path(folder)), 1 if arguments.quick else DRAWS)

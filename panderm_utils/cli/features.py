"""`--features`: the features of a folder of images, or of datasets, in a file to take away."""

import argparse
import sys

from panderm_utils import data, demo, encoders, manifests, workspace
from panderm_utils.cli.parser import program_name


def write_features(options: argparse.Namespace) -> int:
    """Writes the file and prints what is in it; returns the exit status: 1 if images had to be left out."""
    path = workspace.settle_path(options.to)
    encoders.check_feature_file(path)  # before anything is computed
    space = workspace.open_workspace(options.profile, options.data_root, options.weights_root, options.output_root)
    encoder = encoders.load_encoder(options.features, weights_root=space.weights_root)
    print(encoder, flush=True)
    if options.images:
        parts, columns, unreadable = _of_folder(encoder, options.images, space, path)
    else:
        parts, columns, unreadable = _of_datasets(encoder, options.datasets, space, path)
    images, from_cache = sum(len(part.x) for part in parts), sum(part.from_cache for part in parts)
    if images:
        encoders.write_features(path, encoder, parts, columns)
        names = ", ".join(["image", *columns, "features"])
        size = f"{images:,} images x {encoder.num_features:,} features"
        print(f"wrote {path}: {size} ({names}); {from_cache:,} from the cache")
    for name, reason in unreadable.items():
        print(f"{program_name()}: left out: {name}: {reason}", file=sys.stderr)
    if not images:
        print(f"{program_name()}: nothing written: no image can be read", file=sys.stderr)
    return int(bool(unreadable))


def _of_folder(encoder, folder, space, path) -> tuple[list, dict, dict[str, str]]:
    listed = data.list_images(folder)
    encoders.check_feature_file(path, len(listed.names), encoder.num_features)
    if listed.others:
        print("no images by their suffix:", ", ".join(f"{n:,} {suffix}" for suffix, n in listed.others.items()))
    found = encoders.extract_files(encoder, listed.paths, listed.names, cache=space.cache, skip_unreadable=True)
    return [found], {}, {**listed.unreadable, **found.unreadable}


def _of_datasets(encoder, names, space, path) -> tuple[list, dict, dict[str, str]]:
    """A dataset is complete, or an error says what is missing, as in a study; so it shares a study's cache."""
    studies = []
    for name in manifests.list_datasets() if "all" in names else names:
        card = manifests.load_dataset_manifest(name)
        if space.synthetic:
            demo.make_stand_in(card, space.data_root)
            print(f"{name}: synthetic images, as in every demo; for real ones write --profile paper", flush=True)
        studies.append(data.load_dataset(card, space.data_root))
    encoders.check_feature_file(path, sum(len(study.table) for study in studies), encoder.num_features)
    parts, columns = [], {"dataset": [], "split": [], "label": [], "class": []}
    for study in studies:
        for split in manifests.SPLITS:
            part = encoders.extract_features(encoder, study, split, cache=space.cache)
            columns["dataset"] += [study.manifest.name] * len(part.y)
            columns["split"] += [split] * len(part.y)
            columns["label"] += part.y.tolist()
            columns["class"] += [study.manifest.class_names[label] for label in part.y]
            parts.append(part)
    if space.synthetic:
        columns["synthetic"] = [True] * len(columns["label"])
    return parts, columns, {}

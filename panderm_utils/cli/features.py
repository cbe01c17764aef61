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
    if options.images:
        listed = data.list_images(options.images)
        images, synthetic = len(listed.names), False
        if listed.others:
            print("not images by their suffix:", ", ".join(f"{n:,} {suffix}" for suffix, n in listed.others.items()))
    else:
        studies = _load_datasets(options.datasets, space)
        images, synthetic = sum(len(study.table) for study in studies), space.synthetic
    encoder = encoders.load_encoder(options.features, weights_root=space.weights_root)
    print(f"{encoder}, {images:,} images", flush=True)
    encoders.check_feature_file(path, images, encoder.num_features)
    if options.images:
        found = encoders.features_of_folder(encoder, listed, space.cache)
    else:
        found = encoders.features_of_datasets(encoder, studies, space.cache)
    for name, reason in found.unreadable.items():
        print(f"{program_name()}: left out: {name}: {reason}", file=sys.stderr)
    if not len(found):
        print(f"{program_name()}: nothing written: no image can be read", file=sys.stderr)
        return 1
    encoders.write_features(path, encoder, found, synthetic)
    size = f"{len(found):,} images x {encoder.num_features:,} features"
    cached = sum(part.from_cache for part in found.parts)
    print(f"wrote {path}: {size} ({', '.join([*found.columns, 'features'])}); {cached:,} from the cache")
    return int(bool(found.unreadable))


def _load_datasets(names: list[str], space: workspace.Workspace) -> list:
    studies = []
    for name in manifests.list_datasets() if "all" in names else names:
        card = manifests.load_dataset_manifest(name)
        if space.synthetic:
            demo.make_stand_in(card, space.data_root)
            print(f"{name}: synthetic images, as in every demo; for real ones write --profile paper", flush=True)
        studies.append(data.load_dataset(card, space.data_root))
    return studies

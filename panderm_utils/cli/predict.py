"""`--predict`: a trained classifier on a folder of images."""

import argparse
import difflib
import sys
from pathlib import Path

from panderm_utils import classifiers, workspace
from panderm_utils.cli.parser import program_name


def predict(options: argparse.Namespace) -> int:
    """Writes a row for each image of a folder; returns 1 if some cannot be read."""
    space = workspace.open_workspace(options.profile, options.data_root, options.weights_root, options.output_root)
    folder = find_record(options.predict, space)
    classifier = classifiers.load_classifier(folder, space.weights_root, tta=options.tta or 0)
    done = classifiers.predict_folder(classifier, options.images, options.to)
    before = f", {done.kept:,} before" if done.kept else ""
    print(
        f"wrote {options.to}: {done.predicted:,} images predicted{before}; {done.unlike:,} unlike the training images"
    )
    print(classifiers.NOT_A_DEVICE.removeprefix("# "))
    if done.unreadable:
        print(f"{program_name()}: {len(done.unreadable):,} images cannot be read:", file=sys.stderr)
        print("\n".join(f"  {reason}" for reason in done.unreadable), file=sys.stderr)
    return int(bool(done.unreadable))


def find_record(run: str, space: workspace.Workspace) -> Path:
    """Returns the folder of a record, named by its path or its run id.

    Raises:
        ClassifierError: There is none; the message lists those that are.
    """
    for folder in (Path(run).expanduser(), space.records / run):
        if (folder / "record.json").is_file():
            return folder.absolute()
    runs = sorted(path.parent.name for path in space.records.glob("[!.]*/record.json"))
    near = difflib.get_close_matches(run, runs, 5, 0.3) or runs[:5]
    there = f"near: {', '.join(near)}" if near else "it has no record yet"
    raise classifiers.ClassifierError(
        f"{run}: neither a record's folder nor a run of {space.records} ({there}); the run ids are the folders in it"
    )

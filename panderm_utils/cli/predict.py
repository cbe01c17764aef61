"""`--predict`: the trained model of a run on a folder of images."""

import argparse
import sys

from panderm_utils import classifiers, workspace
from panderm_utils.cli.parser import program_name
from panderm_utils.messages import printable


def predict(options: argparse.Namespace) -> int:
    """Writes a row for each image of a folder, and a mask if the model segments; returns 1 if some cannot be read."""
    space = workspace.open_workspace(options.profile, options.data_root, options.weights_root, options.output_root)
    folder = classifiers.find_record(options.predict, space)
    model = classifiers.load_model(folder, space.weights_root, tta=options.tta or 0)
    done = classifiers.predict_folder(model, options.images, options.to)
    before = f", {done.kept:,} before" if done.kept else ""
    print(f"wrote {options.to}: {done.predicted:,} images predicted{before}; {done.flagged:,} {model.flag}")
    print(classifiers.notice(model))
    if done.unreadable:
        count = f"{len(done.unreadable):,} image{'s' * (len(done.unreadable) > 1)}"
        print(f"{program_name()}: {count} cannot be read:", file=sys.stderr)
        print("\n".join(f"  {printable(reason)}" for reason in done.unreadable), file=sys.stderr)
    return int(bool(done.unreadable))

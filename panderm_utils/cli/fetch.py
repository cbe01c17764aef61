"""`--fetch`: gets datasets and weights."""

import argparse
import shlex
from functools import partial
from pathlib import Path

from panderm_utils import fetching, workspace
from panderm_utils.cli.parser import program


def fetch(options: argparse.Namespace) -> int:
    """Gets what is named, by default all of the paper, and says what to do next; returns 1 if something is missing."""
    data_root = workspace.settle_folder("data_root", options.data_root)
    weights_root = workspace.settle_folder("weights_root", options.weights_root)
    wanted = fetching.list_items(options.fetch, data_root, weights_root)
    source = Path(options.source).expanduser() if options.source else None
    given = {"--data-root": options.data_root, "--weights-root": options.weights_root}
    folders = "".join(f" {flag} {shlex.quote(folder)}" for flag, folder in given.items() if folder)
    left = fetching.fetch(wanted, source, options.accept_licence, partial(print, flush=True), folders)
    if names := [item.name for item in wanted if item.is_data and item not in left]:
        print(f"\nnext: {program()} --check-data {' '.join(names)}{folders}")
    return int(bool(left))

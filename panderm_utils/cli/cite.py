"""`--cite`: the BibTeX of all that the records of a profile used."""

import argparse
import sys

from panderm_utils import results, workspace
from panderm_utils.cli.parser import program, program_name


def cite(options: argparse.Namespace) -> int:
    """Prints BibTeX; returns the exit status: 1 if there is no record, or one is damaged and left out."""
    space = workspace.open_workspace(options.profile, options.data_root, options.weights_root, options.output_root)
    records, damaged = [], []
    for folder in sorted(path for path in space.records.glob("[!.]*") if path.is_dir()):
        try:
            records.append(results.load_record(folder))
        except ValueError as error:
            damaged.append(f"{program_name()}: left out: {error}")
    if damaged:
        print("\n".join(damaged), file=sys.stderr)
    if not records:
        remedy = f"{program()} --profile {space.profile} makes some; or name another --profile or --output-root"
        print(f"{program_name()}: {space.root} has no record yet; {remedy}", file=sys.stderr)
        return 1
    print(results.cite_records(records), end="")
    return int(bool(damaged))

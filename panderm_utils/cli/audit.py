"""`--audit`: what the splits of datasets, and datasets, share, and what it costs."""

import argparse
import sys
from dataclasses import replace

from panderm_utils import audit, data, demo, manifests, protocols, results, workspace
from panderm_utils.cli.parser import program, program_name


def audit_data(options: argparse.Namespace) -> int:
    """Writes the tables of an audit and prints its summary; returns the exit status: 1 if there is no dataset."""
    space = workspace.open_workspace(options.profile, options.data_root, options.weights_root, options.output_root)
    profile = manifests.load_profile(options.profile, space.weights_root)
    named = [name for name in [*options.audit, *options.datasets] if name != "all"]
    cards = [manifests.load_dataset_manifest(name) for name in dict.fromkeys(named or profile.datasets)]
    if space.synthetic:
        for card in cards if named else ():
            demo.make_stand_in(card, space.data_root)
    there = [card for card in cards if not card.missing_path(space.data_root)]
    absent = [card for card in cards if card not in there]
    if not there or (named and absent):
        where = f"{', '.join(card.name for card in absent) if named else 'no dataset'}"
        remedy = "name some: --audit demo" if space.synthetic else f"see {program()} --profile {options.profile} --plan"
        print(f"{program_name()}: {where}: not in {space.data_root}; {remedy}", file=sys.stderr)
        return 1
    studies, broken = [], []
    for card in there:
        try:
            studies.append(data.load_dataset(card, space.data_root))
        except data.DataError as error:
            if named:
                raise
            broken.append(f"{card.name} is left out, see --check-data: {str(error).splitlines()[0]}")
    encoder = options.encoders[0] if options.encoders else profile.encoders[0]
    found = audit.audit_datasets(studies, space.cache, encoder)
    runs = results.read_records(space.records)
    costs, notes = audit.costs_of_leakage(runs, found, protocols.load_protocol)
    found = replace(found, notes=(*broken, *found.notes, *notes))
    doubts = audit.doubtful_labels(runs, found.images, *options.encoders[:1])
    folder = space.root / "audit"
    audit.write_audit(folder, found, costs, doubts)
    print(audit.describe_audit(found, costs, doubts, space.synthetic))
    print(f"wrote {folder}")
    return 0

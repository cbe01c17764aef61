"""`--new-dataset`: from the user's images to a manifest and notebooks."""

import argparse
import shlex
from pathlib import Path

from panderm_utils import batch, data, manifests, protocols, workspace
from panderm_utils.cli.parser import OWN_COLUMNS, program, shell_path


def add_dataset(options: argparse.Namespace, notebooks: Path) -> int:
    """Writes manifests and notebooks for the user's images, and prints the next commands."""
    folder = workspace.settle_folder("data_root", options.data_root) / "own"
    columns = {role: getattr(options, role) for role in OWN_COLUMNS if getattr(options, role)}
    try:
        own = data.read_own_data(options.new_dataset, options.images, options.name, folder, columns, options.folds or 0)
    except data.OpenQuestions as error:
        command = f"{program()} {shlex.join([*options.words, *error.example])}"
        raise ValueError(f"{error}\nFor example:\n  {command}") from error
    paths = [manifests.write_dataset_manifest(card) for card in own.manifests]
    print("\n".join(f"- {line}" for line in own.messages))
    print("\n".join(f"- wrote {path}" for path in paths))
    print(f"- correct any wrong guess in the manifest{'s' * (len(paths) > 1)}, then run: {program()} --sync")
    names = [card.name for card in own.manifests]
    stamped = batch.sync(datasets=names, notebooks=notebooks)
    print("\n".join(f"- wrote {notebook}" for notebook in stamped))
    created = " ".join(map(shell_path, [*paths, *stamped, *own.written]))
    print(f"- git does not track these files until you add them; to undo this: rm {created}")
    space = workspace.open_workspace("own", options.data_root, options.weights_root, options.output_root)
    folders = [("weights-root", options.weights_root), ("output-root", options.output_root)]
    flags = "".join(f" --{name} {shlex.quote(folder)}" for name, folder in folders if folder)
    command = f"{program()} --profile own --datasets {' '.join(names)}{flags}"
    print(describe_next(batch.make_plan(space, names, notebooks=notebooks), command))
    return 0


def describe_next(planned: batch.Plan, command: str) -> str:
    """Returns the next commands: one for each study that the data allow, and `command` for all of them."""
    studies = {f"{command} --protocols {run.protocol}": protocols.load_protocol(run.protocol) for run in planned.runs}
    width = max(map(len, studies))
    lines = [f"  {line:{width}}  # {study.title}" for line, study in studies.items()]
    encoders = ", ".join(dict.fromkeys(run.parameters["encoder"] for run in planned.runs))
    note = batch.toy_note(planned)
    head = ["", f"Next, with {encoders}, one study at a time:", ""]
    whole = f"  {command}{' --jobs 2' if note else ''}"  # a toy leaves memory and cores for two
    notes = [note, ""] if note else []
    return "\n".join([*head, *lines, "", *notes, "or every study, and the report:", "", whole])

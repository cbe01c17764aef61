"""`--new-dataset`: from the user's images to a manifest and notebooks."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from panderm_utils import batch, data, manifests, protocols, workspace
from panderm_utils.cli.parser import OWN_COLUMNS, program, shell_path


def add_dataset(options: argparse.Namespace, notebooks: Path) -> int:
    """Writes manifests and notebooks for the user's images, and prints the next commands."""
    folder = workspace.settle_folder("data_root", options.data_root) / "own"
    columns = {role: getattr(options, role) for role in OWN_COLUMNS if getattr(options, role)}
    try:
        where = options.new_dataset, options.images, options.name, folder
        own = data.read_own_data(*where, columns, options.folds or 0, options.masks)
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
    planned = batch.make_plan(space, names, notebooks=notebooks)
    planned_already = {run.protocol for run in planned.runs}
    rest = [p for p in manifests.load_profile("own", space.weights_root).on_request if p not in planned_already]
    on_request = [name for name in rest if protocols.load_protocol(name).supported(names)]
    more = batch.make_plan(space, names, protocols=on_request, notebooks=notebooks).runs if on_request else ()
    print(describe_next(planned, more, command))
    return 0


def describe_next(planned: batch.Plan, on_request: Sequence[batch.Job], command: str) -> str:
    """Returns the next commands: one for each study that the data allow, and `command` for all but those on request."""
    studies = {f"{command} --protocols {run.protocol}": run.protocol for run in (*planned.runs, *on_request)}
    width, named = max(map(len, studies)), dict.fromkeys(run.protocol for run in on_request)
    lines = [
        f"  {line:{width}}  # {protocols.load_protocol(name).title}{', only if named' * (name in named)}"
        for line, name in studies.items()
    ]
    encoders = ", ".join(dict.fromkeys(run.parameters["encoder"] for run in planned.runs))
    note = batch.toy_note(planned)
    without = ", ".join(protocols.load_protocol(name).title for name in named)
    rest = f"all but {without} at once" if named else "every study"
    whole = f"  {command}{' --jobs 2' if note else ''}"  # a toy leaves memory and cores for two
    lines = [f"Next, with {encoders}, one study at a time:", "", *lines, ""]
    return "\n".join(["", *lines, *([note, ""] if note else []), f"or {rest}, and the report:", "", whole])

"""The flags of `python run_all.py`, which is also the command `panderm`."""

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import argcomplete

from panderm_utils import batch, manifests, workspace

DESCRIPTION = """Plans runs, executes their notebooks with papermill, makes tables and figures, and writes the report.

  python run_all.py                                    the demo: synthetic images, tiny encoders
  python run_all.py --profile paper --plan             which runs can start, what others need, and where to get it
  python run_all.py --profile paper --calibrate        measure this machine, for the times of --plan
  python run_all.py --fetch                            get datasets and weights: what is there, what to do
  python run_all.py --check-data                       check the data as a run would
  python run_all.py --audit                            what train and test share, and what it costs
  python run_all.py --profile paper --data-root D --weights-root W --output-root O
  python run_all.py --new-dataset my.csv --images DIR --name mine
  python run_all.py --profile own                      your data: every study that they allow, and a report
  python run_all.py --features panderm_large --images DIR --to features.npz
  python run_all.py --predict RUN --images DIR --to FILE.csv    or, for masks, --to DIR
  python run_all.py --verify                           recompute every number from the stored predictions
  python run_all.py --cite > used.bib                  what to cite: datasets and encoders of existing records

Runs that have a record are skipped, a failure does not stop the rest, and Ctrl-C leaves only complete records.
Exit status: 0 all done; 1 something failed or is missing; 2 nothing was started, because of wrong arguments, an output
folder that cannot be written, or another batch that is using it; 130 Ctrl-C.
"""

OWN_COLUMNS = {  # of a user's CSV: flag -> meaning
    "label": 'has the label; several if they are one-hot ("none": masks only)',
    "image": "names the images",
    "mask": 'names the masks ("none": no column)',
    "split": 'has the split ("none": draw one)',
    "patient": 'identifies the patient ("none": no column)',
    "lesion": 'identifies the lesion ("none": no column)',
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program_name(), description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    profile = parser.add_argument("--profile", default="demo", help="demo (default), paper, or own: your data")
    complete(profile, lambda: list(workspace.PROFILES))
    where = parser.add_argument_group("folders")
    for name, (variable, default) in workspace.FOLDERS.items():
        where.add_argument(f"--{name.replace('_', '-')}", metavar="DIR", help=f"default: ${variable}, else {default}/")
    what = parser.add_argument_group("selection (default: that of the profile)")
    named = what.add_argument("--datasets", nargs="+", default=[], metavar="NAME", help='names, or "all"')
    complete(named, manifests.list_datasets)
    complete(what.add_argument("--protocols", nargs="+", default=[], metavar="NAME"), batch.list_protocols)
    named = what.add_argument("--encoders", nargs="+", default=[], metavar="NAME", help="names, or timm:<model>")
    complete(named, manifests.list_encoders)
    what.add_argument("--seeds", nargs="+", type=int, default=[], metavar="N")
    what.add_argument(
        "-p",
        action="append",
        default=[],
        metavar="name=value",
        help="set a notebook parameter; repeatable; numbers separated by commas are one run each",
    )
    what.add_argument(
        "--only",
        nargs="*",
        metavar="RUN",
        help="only runs with these ids (* matches anything); without ids, only tables and figures",
    )
    how = parser.add_argument_group("execution")
    how.add_argument("--jobs", type=positive(int), metavar="N", help="concurrent runs (default: 1)")
    how.add_argument("--gpus", metavar="IDS", help='one run per GPU: "0,1,3", or "all"')
    how.add_argument("--retries", type=int, default=1, metavar="N", help="retries after a killed kernel (default: 1)")
    how.add_argument("--force", action="store_true", help="repeat runs that have a record")
    how.add_argument("--timeout", type=positive(float), metavar="SECONDS", help="stop a run that takes longer")
    how.add_argument(
        "--pixels",
        nargs="?",
        const=True,
        metavar="GB",
        help=f"disk space for decoded images, which the next encoder reuses (default: ${workspace.PIXELS}, else "
        f"{workspace.USUAL_PIXELS}; 0: none); without a number, with --check-data: also decode every image",
    )
    slurm = parser.add_argument_group("a Slurm cluster")
    slurm.add_argument(
        "--slurm", action="store_true", help="execute there, --jobs runs at once; repeat the command to attach"
    )
    slurm.add_argument("--slurm-script", action="store_true", help="print a script for sbatch instead")
    slurm.add_argument(
        "--slurm-option",
        action="append",
        default=[],
        metavar="[protocol:]name=value",
        help="an sbatch option; repeatable",
    )
    other = parser.add_argument_group("instead of running")
    other.add_argument("--list", action="store_true", help="list datasets, encoders, protocols, profiles")
    other.add_argument(
        "--plan", action="store_true", help="what can run now, what is nearly there or missing, and where to get it"
    )
    other.add_argument(
        "--calibrate",
        action="store_true",
        help="measure this machine for the times of --plan, for the encoders and protocols selected: half a minute "
        "with tiny encoders, minutes with large ones on a CPU; --force: again",
    )
    other.add_argument("--verbose", action="store_true", help="with --plan: also each run, and each path and licence")
    named = other.add_argument(
        "--fetch",
        nargs="*",
        metavar="NAME",
        help="download datasets and weights, and put them in place; default: all of the paper",
    )
    complete(named, lambda: [*manifests.list_datasets(), *manifests.list_encoders()])
    other.add_argument(
        "--from",
        dest="source",
        metavar="DIR",
        help="with --fetch: look first in this folder, also in archives, or in this archive; it is only read",
    )
    other.add_argument(
        "--accept-licence", nargs="+", default=[], metavar="NAME", help="with --fetch: you accept its licence; recorded"
    )
    named = other.add_argument(
        "--check-data", nargs="*", metavar="NAME", help="check datasets as a run would; default: all that are there"
    )
    complete(named, manifests.list_datasets)
    named = other.add_argument(
        "--audit",
        nargs="*",
        metavar="NAME",
        help="find copies, lesions and patients in two splits or datasets, and their cost; default: all that are there",
    )
    complete(named, manifests.list_datasets)
    other.add_argument(
        "--report", action="store_true", help="write the report of existing records (a batch does so at its end)"
    )
    other.add_argument(
        "--verify", action="store_true", help="recompute every metric of every record from its predictions"
    )
    other.add_argument("--cite", action="store_true", help="print the BibTeX of all that existing records used")
    other.add_argument("--sync", action="store_true", help="rewrite the sibling notebooks from the canonical ones")
    other.add_argument(
        "--check", action="store_true", help="check manifests and notebooks; with --sync: notebooks only"
    )
    own = parser.add_argument_group("your own data")
    own.add_argument(
        "--new-dataset",
        nargs="+",
        metavar="CSV",
        help="write a manifest and notebooks for a CSV, several CSVs (train=a.csv test=b.csv), or a folder per class",
    )
    own.add_argument(
        "--images", metavar="DIR", help="the folder of the images: of the CSV, of --features or of --predict"
    )
    own.add_argument(
        "--masks", metavar="DIR", help="the folder of lesion masks, named after the images (1_mask.png) or by a column"
    )
    own.add_argument("--name", help="a name for the dataset: lower-case letters, digits, _")
    for role, meaning in OWN_COLUMNS.items():
        count = "+" if role == "label" else 1
        own.add_argument(f"--{role}", nargs=count, metavar="COLUMN", help=f"the CSV's column that {meaning}")
    own.add_argument("--folds", type=positive(int), metavar="K", help="draw K folds, each a dataset, not one split")
    away = parser.add_argument_group("to take away")
    named = away.add_argument(
        "--features", metavar="ENCODER", help="write features of --images DIR or --datasets NAME to a file"
    )
    complete(named, manifests.list_encoders)
    away.add_argument(
        "--predict", metavar="RUN", help="predict --images DIR with the model of a run, by its id or its record"
    )
    away.add_argument(
        "--to", metavar="FILE", help="features: .npz, or .csv for small sets; classes: .csv; masks: a folder"
    )
    away.add_argument(
        "--tta", type=positive(int), metavar="N", help="with --predict: average N random views; fine-tuned models only"
    )
    return parser


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Returns the parsed flags, and as `words` the arguments themselves; exits where flags contradict each other."""
    parser = build_parser()
    argcomplete.autocomplete(parser)
    options = parser.parse_args(arguments)
    options.words = arguments
    if options.new_dataset and not options.name:
        parser.error("--new-dataset needs --name NAME, and, for a CSV, --images DIR")
    if options.features and (not options.to or bool(options.images) == bool(options.datasets)):
        parser.error("--features ENCODER needs --to FILE, and either --images DIR or --datasets NAME")
    if options.features and (options.p or options.protocols or options.encoders or options.seeds):
        parser.error("--features ENCODER takes no -p, --protocols, --encoders or --seeds")
    if options.predict and not (options.images and options.to):
        parser.error("--predict RUN needs --images DIR and --to FILE.csv; for masks, --to DIR")
    if options.to and not (options.features or options.predict):
        parser.error("--to FILE goes with --features ENCODER or --predict RUN")
    if options.tta and not options.predict:
        parser.error("--tta N goes with --predict RUN")
    if options.images and not (options.new_dataset or options.features or options.predict):
        parser.error("--images DIR goes with --new-dataset CSV, --features ENCODER or --predict RUN")
    for flag in ("name", "masks", "folds", *OWN_COLUMNS):
        if getattr(options, flag) and not options.new_dataset:
            parser.error(f"--{flag} goes with --new-dataset CSV")
    if (options.source or options.accept_licence) and options.fetch is None:
        parser.error("--from DIR and --accept-licence NAME go with --fetch")
    if options.verbose and not options.plan:
        parser.error("--verbose goes with --plan")
    if options.pixels is True and options.check_data is None:
        parser.error("--pixels without a number of GB goes with --check-data; for a run, write one, or 0")
    if options.jobs and options.gpus:
        parser.error("--gpus runs one notebook per GPU; leave --jobs out")
    if options.slurm_option and not (options.slurm or options.slurm_script):
        parser.error("--slurm-option goes with --slurm or --slurm-script")
    if options.gpus and (options.slurm or options.slurm_script):
        parser.error("--gpus applies to this machine; on a cluster write --slurm-option gpus-per-node=1")
    return options


def complete(flag: argparse.Action, names: Callable[[], list[str]]) -> None:
    """Makes a shell with completion (see argcomplete) offer `names()` as values of `flag`."""
    flag.completer = lambda **_: names()


def positive(kind):
    """Returns an argparse type: a number above zero."""

    def number(text: str):
        value = kind(text)
        if not value > 0:
            raise ValueError(text)
        return value

    number.__name__ = f"positive {kind.__name__}"
    return number


def program_name() -> str:
    """Returns how this program was started: "panderm", the installed command, or "run_all.py"."""
    return "panderm" if Path(sys.argv[0]).stem == "panderm" else "run_all.py"


def program() -> str:
    """Returns the command that starts this program: `panderm`, or `python run_all.py`, with paths where needed."""
    if program_name() == "panderm":
        return "panderm"
    python = shutil.which("python")
    same = python and os.path.abspath(python) == os.path.abspath(sys.executable)  # noqa: PTH100 - symbolic links matter
    return f"{'python' if same else shell_path(Path(sys.executable))} {shell_path(workspace.REPOSITORY / 'run_all.py')}"


def shell_path(path: Path) -> str:
    """Returns a path quoted for a shell, relative to the current directory if it is below it."""
    return shlex.quote(str(path.relative_to(Path.cwd()) if Path.cwd() in path.parents else path))

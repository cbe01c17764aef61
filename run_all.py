"""Plans runs, executes their notebooks with papermill, makes the paper's tables and figures, and writes the report.

  python run_all.py                                    the demo: synthetic images, tiny encoders
  python run_all.py --profile paper --plan             which runs can start, what others need, and where to get it
  python run_all.py --check-data                       check the data as a run would
  python run_all.py --profile paper --data-root D --weights-root W --output-root O
  python run_all.py --new-dataset my.csv --images DIR --name mine
  python run_all.py --verify                           recompute every number from the stored predictions

Runs that have a record are skipped, a failure does not stop the rest, and Ctrl-C leaves only complete records.
Exit status: 0 all done; 1 something failed or is missing; 2 nothing was started, because of wrong arguments, an output
folder that cannot be written, or another batch that is using it; 130 Ctrl-C.
"""

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import sys
from concurrent.futures import BrokenExecutor
from functools import partial
from pathlib import Path

from panderm_utils import batch, data, manifests, pool, protocols, results, workspace

INTERRUPTED = 130  # the exit status after Ctrl-C
OWN_COLUMNS = {  # of a user's CSV: flag -> meaning
    "label": "has the label; several if they are one-hot",
    "image": "names the images",
    "split": 'has the split ("none": draw one)',
    "patient": 'identifies the patient ("none": no column)',
    "lesion": 'identifies the lesion ("none": no column)',
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run_all.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", default="demo", help="demo (default) or paper")
    where = parser.add_argument_group("folders")
    for name, (variable, default) in workspace.FOLDERS.items():
        where.add_argument(f"--{name.replace('_', '-')}", metavar="DIR", help=f"default: ${variable}, else {default}/")
    what = parser.add_argument_group("selection (default: that of the profile)")
    what.add_argument("--datasets", nargs="+", default=[], metavar="NAME", help='names, or "all"')
    what.add_argument("--protocols", nargs="+", default=[], metavar="NAME")
    what.add_argument("--encoders", nargs="+", default=[], metavar="NAME", help="names, or timm:<model>")
    what.add_argument("--seeds", nargs="+", type=int, default=[], metavar="N")
    what.add_argument(
        "-p", action="append", default=[], metavar="name=value", help="set a notebook parameter; repeatable"
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
    other.add_argument("--verbose", action="store_true", help="with --plan: also each run, and each path and licence")
    other.add_argument(
        "--check-data", nargs="*", metavar="NAME", help="check datasets as a run would; default: all that are there"
    )
    other.add_argument("--pixels", action="store_true", help="with --check-data: also decode every image")
    other.add_argument(
        "--report", action="store_true", help="write the report of existing records (a batch does so at its end)"
    )
    other.add_argument(
        "--verify", action="store_true", help="recompute every metric of every record from its predictions"
    )
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
    own.add_argument("--images", metavar="DIR", help="the folder of the CSV's images")
    own.add_argument("--name", help="a name for the dataset: lower-case letters, digits, _")
    for role, meaning in OWN_COLUMNS.items():
        count = "+" if role == "label" else 1
        own.add_argument(f"--{role}", nargs=count, metavar="COLUMN", help=f"the CSV's column that {meaning}")
    own.add_argument("--folds", type=positive(int), metavar="K", help="draw K folds, each a dataset, not one split")
    return parser


def positive(kind):
    """Returns an argparse type: a number above zero."""

    def number(text: str):
        value = kind(text)
        if not value > 0:
            raise ValueError(text)
        return value

    number.__name__ = f"positive {kind.__name__}"
    return number


def main(arguments: list[str] | None = None, notebooks: Path = batch.NOTEBOOKS) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    options.words = sys.argv[1:] if arguments is None else arguments
    if options.new_dataset and not options.name:
        parser.error("--new-dataset needs --name NAME, and, for a CSV, --images DIR")
    for flag in ("images", "name", "folds", *OWN_COLUMNS):
        if getattr(options, flag) and not options.new_dataset:
            parser.error(f"--{flag} goes with --new-dataset CSV")
    if options.verbose and not options.plan:
        parser.error("--verbose goes with --plan")
    if options.pixels and options.check_data is None:
        parser.error("--pixels goes with --check-data")
    if options.jobs and options.gpus:
        parser.error("--gpus runs one notebook per GPU; leave --jobs out")
    if options.slurm_option and not (options.slurm or options.slurm_script):
        parser.error("--slurm-option goes with --slurm or --slurm-script")
    if options.gpus and (options.slurm or options.slurm_script):
        parser.error("--gpus applies to this machine; on a cluster write --slurm-option gpus-per-node=1")
    try:
        with ending_cleanly():
            status = act(options, notebooks)
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("run_all.py: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe; the flush at exit must not fail either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a name that is too long, a folder without write permission
        print(f"run_all.py: {error}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def ending_cleanly():
    """Within this context, SIGTERM and a closed terminal (SIGHUP) end the program as cleanly as Ctrl-C."""
    terminals = [number for number in (1, 2) if os.isatty(number)]

    def end(number, frame):
        for output in terminals:
            if not os.isatty(output):  # it was closed: writing to it would fail
                os.dup2(os.open(os.devnull, os.O_WRONLY), output)
        signal.default_int_handler(number, frame)

    numbers = [getattr(signal, name, signal.SIGTERM) for name in ("SIGTERM", "SIGHUP")]
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if before[number] != signal.SIG_IGN:  # nohup ignores SIGHUP on purpose
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def act(options: argparse.Namespace, notebooks: Path) -> int:
    """Executes the command; an error that the user can fix is printed in one line, without a traceback."""
    try:
        if options.list:
            return show_list(notebooks)
        if options.new_dataset:
            return add_dataset(options, notebooks)
        if options.check_data is not None:
            return check_data(options)
        if options.sync or options.check:
            return sync_or_check(options, notebooks)
        folders = (options.data_root, options.weights_root, options.output_root)
        selection = (options.datasets, options.encoders, options.protocols, options.seeds)
        space = workspace.open_workspace(options.profile, *folders)
        gpus = batch.read_gpus(options.gpus) if options.gpus else ()
        planned = batch.make_plan(space, *selection, overrides=options.p, notebooks=notebooks)
        if options.only is not None:
            planned = batch.select_runs(planned, options.only)
        if gpus:
            batch.check_gpus(planned.runs, gpus)
        if options.slurm_script and not options.plan:
            return batch.print_script(planned, options)
    except ValueError as error:  # raised by the package for errors that the user can fix
        print(f"run_all.py: {error}", file=sys.stderr)
        return 2
    if options.verify:
        return verify(space, options.jobs or 2)
    if options.plan:
        print(batch.describe_plan(planned, options.verbose))
        return 0
    if options.report:
        return 0 if report(options, planned, notebooks) else 1
    return run(options, planned, gpus, notebooks)


def run(options: argparse.Namespace, planned: batch.Plan, gpus: tuple[str, ...], notebooks: Path) -> int:
    """Executes a plan, prints the summary and writes the report; returns the exit status."""

    def say(line: str) -> None:
        print(line, flush=True)

    live = sys.stderr.isatty() and not os.environ.get("CI")
    batch_options = batch.BatchOptions(options.jobs or 1, gpus, options.force, options.timeout, options.retries, live)
    # Tasks of a printed Slurm script share the folder, each with its own run, so they neither lock nor clean it.
    shared = "SLURM_ARRAY_TASK_ID" in os.environ and not planned.paper
    try:
        with contextlib.nullcontext() if shared else batch.lock_folder(planned.space.root, say):
            if not shared:
                batch.clear_leftovers(planned.space.root, say)
            if options.slurm:
                outcomes = batch.run_on_slurm(planned, batch_options, options.slurm_option, say)
            else:
                outcomes = batch.run_batch(planned, batch_options, say)
            if not shared:
                batch.remove_partial_files(planned.space.root)  # left by killed kernels
    except (batch.FolderError, batch.PlanError) as error:
        print(f"run_all.py: {error}", file=sys.stderr)
        return 2
    print(batch.describe_outcomes(outcomes))
    print(f"outputs: {planned.space.root}", flush=True)
    status = batch.exit_status(outcomes)
    if status != INTERRUPTED and planned.paper:
        report(options, planned, notebooks)
    return status


def report(options: argparse.Namespace, planned: batch.Plan, notebooks: Path) -> bool:
    """Writes the report of the whole profile, whatever the selection; returns whether there is one."""
    jobs = list(planned.runs)
    # Notebooks or manifests outside the selection may be invalid; the report is written all the same.
    with contextlib.suppress(batch.PlanError):
        stamped = batch.list_protocols(notebooks)
        names = [name for name in manifests.load_profile(options.profile).protocols if name in stamped]
        jobs += batch.make_plan(planned.space, ["all"], protocols=names, notebooks=notebooks).runs
    jobs = list({job.name: job for job in jobs}.values())
    try:
        written = pool.in_another_process(partial(_write_report, planned.space), jobs)
    except (OSError, BrokenExecutor) as error:  # a full disk, a folder without write permission; no memory left
        print(f"run_all.py: the report could not be written: {error}", file=sys.stderr)
        return False
    if written is None:
        print(f"run_all.py: no report: {planned.space.root} has no record yet", file=sys.stderr)
    else:
        print(f"report: {written}")
    return written is not None


def _write_report(space: workspace.Workspace, jobs: list[batch.Job]) -> Path | None:
    from panderm_utils.report import write_report  # imported in the other process, as it needs much memory

    return write_report(space, jobs)


def verify(space: workspace.Workspace, jobs: int) -> int:
    """Recomputes every metric of every record and prints which differ; returns the exit status."""
    checks = results.verify_records(space.records, protocols.load_protocol, jobs)
    if checks.empty:
        print(f"run_all.py: {space.root} has no record yet", file=sys.stderr)
        return 1
    print(results.describe_verification(checks))
    return int((checks["problem"] != "").any())


def check_data(options: argparse.Namespace) -> int:
    """Prints what a run would say of the named datasets, by default of all that are there; returns the exit status."""
    root = workspace.settle_folder("data_root", options.data_root)
    named = options.check_data or [name for name in options.datasets if name != "all"]
    cards = [manifests.load_dataset_manifest(name) for name in named or manifests.list_datasets()]
    if not named:  # those of the paper and the user's own
        cards = [card for card in cards if card.own or card.name in manifests.load_profile("paper").datasets]
    there = cards if named else [card for card in cards if not card.missing_path(root)]
    if not there:
        print(f"run_all.py: no dataset is in {root}; see {program()} --profile paper --plan", file=sys.stderr)
        return 1
    text, usable = batch.check_data(there, root, options.pixels)
    print(text)
    if absent := [card.name for card in cards if card not in there]:
        print(f"\nNot there: {', '.join(absent)}; see {program()} --profile paper --plan")
    return int(not usable)


def show_list(notebooks: Path) -> int:
    """Prints every name that a flag accepts."""
    print("datasets:")
    for name in manifests.list_datasets():
        card = manifests.load_dataset_manifest(name)
        remark = f"{', your data' if card.own else ''}{', external' if card.external else ''}"
        print(f"  {name:22} {card.title} ({card.modality}, {card.num_classes} classes{remark})")
    print("encoders (also timm:<model>):")
    for name in manifests.list_encoders():
        print(f"  {name:22} {manifests.load_encoder_manifest(name).title}")
    print("protocols:\n  " + "\n  ".join(batch.list_protocols(notebooks)))
    print("profiles:")
    for name in ("demo", "paper"):
        profile = manifests.load_profile(name)
        for i, protocol in enumerate(profile.protocols):
            defaults = profile.choice(protocol)
            print(f"  {'' if i else name:22} {protocol} on {' '.join(defaults.quick)}")
            print(f"  {'':22} {'':{len(protocol)}} with {' '.join(defaults.encoders)}")
    return 0


def sync_or_check(options: argparse.Namespace, notebooks: Path) -> int:
    """Writes the notebooks for --sync, compares them for --sync --check; --check alone also checks every manifest."""
    if not options.sync:
        print(f"manifests: {manifests.check_manifests()} entries are valid")
    drifted = batch.sync(check=options.check, notebooks=notebooks)
    if options.check and drifted:
        print(batch.describe_drift(drifted), file=sys.stderr)
        return 1
    print("\n".join(f"wrote {path}" for path in drifted) or "notebooks: all match their canonical notebooks")
    return 0


def add_dataset(options: argparse.Namespace, notebooks: Path) -> int:
    """Writes manifests and notebooks for the user's images, and prints the next command."""
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
    print("\nNext, with the tiny encoder, which needs neither a GPU nor a download:\n")
    selection = f"--datasets {' '.join(names)} --protocols linear_probe --encoders panderm_tiny"
    print(f"  {program()} --profile paper {selection}")
    return 0


def program() -> str:
    """Returns the command that starts this program: `python run_all.py`, or with paths where needed."""
    python = shutil.which("python")
    same = python and os.path.abspath(python) == os.path.abspath(sys.executable)  # noqa: PTH100 - symbolic links matter
    return f"{'python' if same else shell_path(Path(sys.executable))} {shell_path(Path(__file__).resolve())}"


def shell_path(path: Path) -> str:
    """Returns a path quoted for a shell, relative to the current directory if it is below it."""
    return shlex.quote(str(path.relative_to(Path.cwd()) if Path.cwd() in path.parents else path))


if __name__ == "__main__":
    sys.exit(main())

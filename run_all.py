"""The front door: plans runs, executes their notebooks with papermill, draws the paper's tables and figures, and writes
the report.

  python run_all.py                                    the demo: synthetic images, tiny encoders
  python run_all.py --profile paper --plan             what the paper's runs need, and where to get it
  python run_all.py --profile paper --data-root D --weights-root W --output-root O
  python run_all.py --new-dataset my.csv --images DIR --name mine
  python run_all.py --verify                           recompute every number from the stored predictions

What has a record is skipped, one failure does not stop the rest, and Ctrl-C leaves only whole records.
Exit status: 0 all done, 1 something failed or is missing, 2 nothing was begun (not understood, no place to write, or
another batch is at work there), 130 Ctrl-C.
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


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run_all.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", default="demo", help="demo (default) or paper")
    where = parser.add_argument_group("folders")
    for name, (variable, default) in workspace.FOLDERS.items():
        where.add_argument(f"--{name.replace('_', '-')}", metavar="DIR", help=f"default: ${variable}, else {default}/")
    what = parser.add_argument_group("selection (default: what the profile says)")
    what.add_argument("--datasets", nargs="+", default=[], metavar="NAME", help='names, or "all"')
    what.add_argument("--protocols", nargs="+", default=[], metavar="NAME")
    what.add_argument("--encoders", nargs="+", default=[], metavar="NAME", help="names, or timm:<model>")
    what.add_argument("--seeds", nargs="+", type=int, default=[], metavar="N")
    what.add_argument("-p", action="append", default=[], metavar="name=value", help="a notebook parameter; repeatable")
    what.add_argument(
        "--only",
        nargs="*",
        metavar="RUN",
        help="of these, runs called so (* is anything), without drawings; without a name: the drawings",
    )
    how = parser.add_argument_group("execution")
    how.add_argument("--jobs", type=positive(int), metavar="N", help="runs at once (default: 1)")
    how.add_argument("--gpus", metavar="IDS", help='one run a GPU: "0,1,3", or "all"')
    how.add_argument("--retries", type=int, default=1, metavar="N", help="of a kernel that was killed (default: 1)")
    how.add_argument("--force", action="store_true", help="repeat runs that have a record")
    how.add_argument("--timeout", type=positive(float), metavar="SECONDS", help="end a run that takes longer")
    slurm = parser.add_argument_group("a Slurm cluster")
    slurm.add_argument("--slurm", action="store_true", help="runs there, --jobs at once; call again to attach to them")
    slurm.add_argument("--slurm-script", action="store_true", help="print a script for sbatch instead")
    slurm.add_argument(
        "--slurm-option", action="append", default=[], metavar="[protocol:]name=value", help="of sbatch; repeatable"
    )
    other = parser.add_argument_group("instead of running")
    other.add_argument("--list", action="store_true", help="datasets, encoders, protocols, profiles")
    other.add_argument("--plan", action="store_true", help="the runs, what they need, what is missing, where to get it")
    other.add_argument("--report", action="store_true", help="write the report of what there is (a batch ends with it)")
    other.add_argument(
        "--verify", action="store_true", help="recompute every metric of every record from its predictions"
    )
    other.add_argument("--sync", action="store_true", help="rewrite the sibling notebooks from the canonical ones")
    other.add_argument(
        "--check", action="store_true", help="check manifests and notebooks; with --sync: notebooks only"
    )
    own = parser.add_argument_group("your own data")
    own.add_argument("--new-dataset", metavar="CSV", help="write a manifest and notebooks for a CSV of your own")
    own.add_argument("--images", metavar="DIR", help="the folder of its images")
    own.add_argument("--name", help="what to call it: small letters, digits, _")
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
    if options.new_dataset and not (options.images and options.name):
        parser.error("--new-dataset needs --images DIR and --name NAME")
    if (options.images or options.name) and not options.new_dataset:
        parser.error("--images and --name go with --new-dataset CSV")
    if options.jobs and options.gpus:
        parser.error("--gpus runs one notebook a GPU; leave --jobs out")
    if options.slurm_option and not (options.slurm or options.slurm_script):
        parser.error("--slurm-option goes with --slurm or --slurm-script")
    if options.gpus and (options.slurm or options.slurm_script):
        parser.error("--gpus is of this machine; on a cluster write --slurm-option gpus-per-node=1")
    try:
        with ending_cleanly():
            status = act(options, notebooks)
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("run_all.py: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has had enough; the flush at exit must not complain either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a name that is too long, a folder that may not be written
        print(f"run_all.py: {error}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def ending_cleanly():
    """Makes SIGTERM and a closed terminal (SIGHUP) end all as cleanly as Ctrl-C does, within."""
    terminals = [number for number in (1, 2) if os.isatty(number)]

    def end(number, frame):
        for output in terminals:
            if not os.isatty(output):  # it was closed: writing to it would fail
                os.dup2(os.open(os.devnull, os.O_WRONLY), output)
        signal.default_int_handler(number, frame)

    asked = [getattr(signal, name, signal.SIGTERM) for name in ("SIGTERM", "SIGHUP")]
    before = {number: signal.getsignal(number) for number in asked}
    for number in asked:
        if before[number] != signal.SIG_IGN:  # nohup ignores SIGHUP on purpose
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def act(options: argparse.Namespace, notebooks: Path) -> int:
    """Does what was asked; what the user can mend is told in a line, without a traceback."""
    try:
        if options.list:
            return show_list(notebooks)
        if options.new_dataset:
            return add_dataset(options, notebooks)
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
    except ValueError as error:  # what the package raises where the user can mend it
        print(f"run_all.py: {error}", file=sys.stderr)
        return 2
    if options.verify:
        return verify(space, options.jobs or 2)
    if options.plan:
        print(batch.describe_plan(planned))
        return 0
    if options.report:
        return 0 if report(options, planned, notebooks) else 1
    return run(options, planned, gpus, notebooks)


def run(options: argparse.Namespace, planned: batch.Plan, gpus: tuple[str, ...], notebooks: Path) -> int:
    """Executes a plan, a line a run, prints the closing table and writes the report."""

    def say(line: str) -> None:
        print(line, flush=True)

    live = sys.stderr.isatty() and not os.environ.get("CI")
    how = batch.BatchOptions(options.jobs or 1, gpus, options.force, options.timeout, options.retries, live)
    # A task of a printed script works beside the others of its array, each on a run of its own.
    beside = "SLURM_ARRAY_TASK_ID" in os.environ and not planned.paper
    try:
        with contextlib.nullcontext() if beside else batch.lock_folder(planned.space.root, say):
            if not beside:
                batch.clear_leftovers(planned.space.root, say)
            if options.slurm:
                outcomes = batch.run_on_slurm(planned, how, options.slurm_option, say)
            else:
                outcomes = batch.run_batch(planned, how, say)
            if not beside:
                batch.remove_partial_files(planned.space.root)  # of kernels that were killed
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
    """Writes the report of all that the profile has, whatever was selected now; returns whether there is one."""
    usual, there = manifests.load_profile(options.profile).protocols, batch.list_protocols(notebooks)
    jobs = list(planned.runs)
    # A notebook or manifest that nobody asked for may be wrong; --check says so, the report is written all the same.
    with contextlib.suppress(batch.PlanError):
        known = [name for name in usual if name in there]
        jobs += batch.make_plan(planned.space, ["all"], protocols=known, notebooks=notebooks).runs
    every = list({job.name: job for job in jobs}.values())
    try:
        written = pool.in_another_process(partial(_write_report, planned.space), every)
    except (OSError, BrokenExecutor) as error:  # a full disk, a folder that may not be written; memory that ran out
        print(f"run_all.py: the report could not be written: {error}", file=sys.stderr)
        return False
    if written is None:
        print(f"run_all.py: no report: there is no record below {planned.space.root} yet", file=sys.stderr)
    else:
        print(f"report: {written}")
    return written is not None


def _write_report(space: workspace.Workspace, jobs: list[batch.Job]) -> Path | None:
    from panderm_utils.report import write_report  # in the other process: it takes more memory than all else here

    return write_report(space, jobs)


def verify(space: workspace.Workspace, jobs: int) -> int:
    """Recomputes every metric of every record and says which differ."""
    found = results.verify_records(space.records, protocols.load_protocol, jobs)
    if found.empty:
        print(f"run_all.py: there is no record below {space.root} yet", file=sys.stderr)
        return 1
    print(results.describe_verification(found))
    return int((found["problem"] != "").any())


def show_list(notebooks: Path) -> int:
    """Prints every name that a flag takes."""
    print("datasets:")
    for name in manifests.list_datasets():
        card = manifests.load_dataset_manifest(name)
        remark = f"{', own' if card.own else ''}{', external' if card.external else ''}"
        print(f"  {name:22} {card.title} ({card.modality}, {card.num_classes} classes{remark})")
    print("encoders (also timm:<model>):")
    for name in manifests.list_encoders():
        print(f"  {name:22} {manifests.load_encoder_manifest(name).title}")
    print("protocols:\n  " + "\n  ".join(batch.list_protocols(notebooks)))
    print("profiles:")
    for name in ("demo", "paper"):
        profile = manifests.load_profile(name)
        for i, protocol in enumerate(profile.protocols):
            usual = profile.choice(protocol)
            print(f"  {'' if i else name:22} {protocol} of {' '.join(usual.quick)}")
            print(f"  {'':22} {'':{len(protocol)}} with {' '.join(usual.encoders)}")
    return 0


def sync_or_check(options: argparse.Namespace, notebooks: Path) -> int:
    """--sync writes notebooks, --sync --check compares them, --check also reads every manifest."""
    if not options.sync:
        print(f"manifests: {manifests.check_manifests()} entries are right")
    drifted = batch.sync(check=options.check, notebooks=notebooks)
    if options.check and drifted:
        print(batch.describe_drift(drifted), file=sys.stderr)
        return 1
    print("\n".join(f"wrote {path}" for path in drifted) or "notebooks: all are as their canonical one has them")
    return 0


def add_dataset(options: argparse.Namespace, notebooks: Path) -> int:
    """Writes a manifest and notebooks for a CSV of the user's, and says the next command."""
    folder = workspace.settle_folder("data_root", options.data_root) / "own"
    card, said, csv = data.make_own_manifest(options.new_dataset, options.images, options.name, folder)
    path = manifests.write_dataset_manifest(card)
    print("\n".join(f"- {line}" for line in said))
    print(f"- the manifest is {path}; correct there what was guessed wrong, then run: {myself()} --sync")
    stamped = batch.sync(datasets=[card.name], notebooks=notebooks)
    print("\n".join(f"- wrote {notebook}" for notebook in stamped))
    made = [path, *stamped, *([csv] if csv != workspace.settle_path(options.new_dataset) else [])]
    print(f"- git tracks none of these files until you add them; to undo all this: rm {' '.join(map(typed, made))}")
    print("\nNext, with the tiny encoder that needs neither a GPU nor a download:\n")
    print(f"  {myself()} --profile paper --datasets {card.name} --protocols linear_probe --encoders panderm_tiny")
    return 0


def myself() -> str:
    """Returns what to type for this program: `python run_all.py` where that is it, else with paths."""
    found = shutil.which("python")
    same = found and os.path.abspath(found) == os.path.abspath(sys.executable)  # noqa: PTH100 - symbolic links matter
    return f"{'python' if same else typed(Path(sys.executable))} {typed(Path(__file__).resolve())}"


def typed(path: Path) -> str:
    """Returns a path as one would type it here."""
    return shlex.quote(str(path.relative_to(Path.cwd()) if Path.cwd() in path.parents else path))


if __name__ == "__main__":
    sys.exit(main())

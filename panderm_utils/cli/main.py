"""What `python run_all.py` does with its flags."""

import argparse
import contextlib
import os
import signal
import sys
from concurrent.futures import BrokenExecutor
from functools import partial
from pathlib import Path

from panderm_utils import batch, manifests, pool, protocols, results, system, workspace
from panderm_utils.cli.audit import audit_data
from panderm_utils.cli.cite import cite
from panderm_utils.cli.features import write_features
from panderm_utils.cli.fetch import fetch
from panderm_utils.cli.own_data import add_dataset
from panderm_utils.cli.parser import parse_arguments, program, program_name
from panderm_utils.cli.predict import predict

INTERRUPTED = 130  # the exit status after Ctrl-C


def main(arguments: list[str] | None = None, notebooks: Path = batch.NOTEBOOKS) -> int:
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    if options.pixels not in (None, True):
        os.environ[workspace.PIXELS] = options.pixels  # for the notebooks' kernels too
    try:
        with ending_cleanly():
            status = act(options, notebooks)
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print(f"{program_name()}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe; the flush at exit must not fail either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a name that is too long, a folder without write permission
        print(f"{program_name()}: {error}", file=sys.stderr)
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

    numbers = [number for number in system.END_SIGNALS if number != signal.SIGINT]
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
        if options.features:
            return write_features(options)
        if options.predict:
            return predict(options)
        if options.fetch is not None:
            return fetch(options)
        if options.check_data is not None:
            return check_data(options)
        if options.audit is not None:
            return audit_data(options)
        if options.cite:
            return cite(options)
        if options.sync or options.check:
            return sync_or_check(options, notebooks)
        folders = (options.data_root, options.weights_root, options.output_root)
        selection = (options.datasets, options.encoders, options.protocols, options.seeds)
        space = workspace.open_workspace(options.profile, *folders)
        workspace.pixel_budget()  # refuses a wrong one before anything runs
        gpus = batch.read_gpus(options.gpus) if options.gpus else ()
        planned = batch.make_plan(space, *selection, overrides=options.p, notebooks=notebooks)
        if options.only is not None:
            planned = batch.select_runs(planned, options.only)
        if gpus:
            batch.check_gpus(planned.runs, gpus)
        if options.slurm_script and not options.plan:
            return batch.print_script(planned, options)
    except ValueError as error:  # raised by the package for errors that the user can fix
        print(f"{program_name()}: {error}", file=sys.stderr)
        return 2
    if options.verify:
        return verify(space, options.jobs or 2)
    if options.calibrate:
        print(f"wrote {batch.calibrate(planned, options.force)}; estimates: the same command with --plan")
        return 0
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

    if note := batch.toy_note(planned):
        say(note)
    live = sys.stderr.isatty() and not os.environ.get("CI")
    batch_options = batch.BatchOptions(options.jobs or 1, gpus, options.force, options.timeout, options.retries, live)
    # Tasks of a printed Slurm script share the folder, each with its own run, so they neither lock nor clean it.
    shared = "SLURM_ARRAY_TASK_ID" in os.environ and not planned.report
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
        print(f"{program_name()}: {error}", file=sys.stderr)
        return 2
    print(batch.describe_outcomes(outcomes))
    print(f"outputs: {planned.space.root}", flush=True)
    status = batch.exit_status(outcomes)
    if status != INTERRUPTED and planned.report:
        report(options, planned, notebooks)
    return status


def report(options: argparse.Namespace, planned: batch.Plan, notebooks: Path) -> bool:
    """Writes the report of the whole profile, whatever the selection; returns whether there is one."""
    jobs = list(planned.runs)
    # Notebooks or manifests outside the selection may be invalid; the report is written all the same.
    with contextlib.suppress(batch.PlanError):
        profile = manifests.load_profile(options.profile, planned.space.weights_root)
        stamped, usual = batch.list_protocols(notebooks), profile.usual
        names = [name for name in usual if name in stamped]
        # Named only where needed: of a protocol that is not named, runs that make no sense are left out.
        named = [] if names == usual else names
        jobs += batch.make_plan(planned.space, ["all"], protocols=named, notebooks=notebooks).runs
    jobs = list({job.name: job for job in jobs}.values())
    try:
        written = pool.in_another_process(partial(_write_report, planned.space), jobs)
    except (OSError, BrokenExecutor) as error:  # a full disk, a folder without write permission; no memory left
        print(f"{program_name()}: the report could not be written: {error}", file=sys.stderr)
        return False
    if written is None:
        print(f"{program_name()}: no report: {planned.space.root} has no record yet", file=sys.stderr)
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
        print(f"{program_name()}: {space.root} has no record yet", file=sys.stderr)
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
        print(f"{program_name()}: no dataset is in {root}; see {program()} --profile paper --plan", file=sys.stderr)
        return 1
    text, usable = batch.check_data(there, root, options.pixels is True)
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
        print(f"  {name:22} {card.title} ({card.modality}, {card.content}{remark})")
    print("encoders (also timm:<model>):")
    for name in manifests.list_encoders():
        print(f"  {name:22} {manifests.load_encoder_manifest(name).title}")
    print("protocols:\n  " + "\n  ".join(batch.list_protocols(notebooks)))
    print("profiles:")
    for name in workspace.PROFILES:
        profile = manifests.load_profile(name)
        for i, protocol in enumerate(profile.protocols):
            defaults = profile.choice(protocol)
            datasets = " ".join(defaults.quick) or "your data; add some with --new-dataset"
            remark = ", if named with --protocols" if protocol in profile.on_request else ""
            print(f"  {'' if i else name:22} {protocol} on {datasets}{remark}")
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

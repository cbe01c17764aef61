"""Accidents: who is hit, when, and what must hold afterwards.

A round is a batch on a new output folder that is hit, started again by the same command, hit again, and so on until
nothing is left to hit; then it must have ended with the answers of a batch that nothing happened to.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import house
import psutil

from panderm_utils.batch.lock import start_time

LOOK, LOOK_CLOSELY = 0.02, 0.002  # seconds; closely for what is over in a moment
LIMIT = 300  # seconds in which a batch of seconds must end
PROBE, TUNE = house.run_name("linear_probe"), house.run_name("fine_tune")


@dataclass
class Scene:
    """A batch that runs, as an accident sees it."""

    outputs: Path
    driver: subprocess.Popen
    token: str

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Returns the living processes of the batch by what they are; those below a run also by the run."""
        found: dict[str, list[psutil.Process]] = {}
        for process, environment in living(self.token):
            with contextlib.suppress(psutil.Error):
                kind = self._kind(process)
                run = Path(environment.get("PANDERM_RUN", "")).stem
                for key in (kind, f"{kind} {run}"):
                    found.setdefault(key, []).append(process)
        return found

    def _kind(self, process: psutil.Process) -> str:
        command = " ".join(process.cmdline())
        if process.pid == self.driver.pid:
            return "run_all"
        if "warm_server" in command:  # also a fork of it that is none of the below yet
            return "server"
        if "ipykernel" in command:  # forked workers keep the command of their kernel
            above = process.parent()
            return "worker" if above and "ipykernel" in " ".join(above.cmdline()) else "kernel"
        return "papermill" if "-m papermill" in command or "run_module('papermill'" in command else "other"

    @property
    def root(self) -> Path:
        return self.outputs / "paper"

    def writers(self) -> list[psutil.Process]:
        """Returns the processes that write a record now, by the names of the folders that they write."""
        pids = [int(path.name.split(".")[-2]) for path in self.root.glob("records/.*.new")]
        return [psutil.Process(pid) for pid in pids if start_time(pid)]

    def is_writing(self) -> bool:
        return bool(self.writers())

    def is_extracting(self) -> bool:
        return any(self.outputs.glob("cache/features/*/*.shard")) and not (self.root / "records" / PROBE).exists()

    def is_training(self) -> bool:
        checkpoint = self.root / "checkpoints" / TUNE / "last.safetensors"
        return checkpoint.exists() and not (self.root / "records" / TUNE).exists()


@dataclass(frozen=True)
class Accident:
    """Something that happens to a batch.

    Attributes:
        victim: "run_all", "writer" (of a record), or a key of `Scene.processes`, of which one is hit; or "all".
        when: What must have come before; then it strikes within `spread` seconds, or of the length of a batch.
        signal: What the victim gets; SIGSTOP is taken back after two seconds.
    """

    name: str
    victim: str
    when: Callable[[Scene], bool] = lambda scene: True
    spread: float | None = None
    signal: int = signal.SIGKILL

    @property
    def kills(self) -> bool:
        return self.signal == signal.SIGKILL


ACCIDENTS = (
    Accident("run_all killed", "run_all"),
    Accident("papermill killed", "papermill"),
    Accident("kernel killed", "kernel"),
    Accident("server of warm starts killed", "server"),
    Accident("data-loader worker killed", "worker", lambda scene: scene.is_extracting() or scene.is_training(), 0.5),
    Accident("feature extraction killed", f"kernel {PROBE}", Scene.is_extracting, 0.5),
    Accident("fine-tuning killed", f"kernel {TUNE}", Scene.is_training, 2.0),
    Accident("record being written, its kernel killed", "writer", Scene.is_writing, 0.01),
    Accident("record being written, run_all killed", "run_all", Scene.is_writing, 0.01),
)
GENTLE = (
    Accident("SIGTERM to run_all", "run_all", signal=signal.SIGTERM),
    Accident("SIGHUP to run_all", "run_all", signal=signal.SIGHUP),
    Accident("all stopped for two seconds", "all", signal=signal.SIGSTOP),
)


@dataclass
class Tally:
    """What came of the accidents of each name."""

    tried: Counter = field(default_factory=Counter)
    lost: Counter = field(default_factory=Counter)
    left: Counter = field(default_factory=Counter)
    differing: Counter = field(default_factory=Counter)
    twice: Counter = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)

    def add(self, accidents: list[Accident], **found: list[str]) -> None:
        """Counts a round; what was found counts for each of its accidents."""
        for accident in accidents:
            self.tried[accident.name] += 1
            for column, what in found.items():
                getattr(self, column)[accident.name] += len(what)
        self.told += [f"{column}: {line}" for column, what in found.items() for line in what]

    @property
    def kills(self) -> int:
        return sum(self.tried[accident.name] for accident in ACCIDENTS)

    def table(self) -> str:
        titles = ("accident", "tried", "lost records", "leftover processes", "differing results", "done twice")
        lines = ["| " + " | ".join(titles) + " |", "|---|" + "---:|" * 5]
        columns = (self.tried, self.lost, self.left, self.differing, self.twice)
        for name in [accident.name for accident in (*ACCIDENTS, *GENTLE) if self.tried[accident.name]]:
            lines.append(f"| {name} | " + " | ".join(str(column[name]) for column in columns) + " |")
        totals = " | ".join(str(sum(column.values())) for column in columns)
        return "\n".join([*lines, f"| all ({self.kills} kills) | {totals} |"])


class Chaos:
    """Rounds of accidents, drawn from a seed; counts what came of them."""

    def __init__(self, at: house.House, seed: int, meanwhile: Callable[[subprocess.Popen, Path], None] | None = None):
        """Runs a batch to which no accident happens; `meanwhile(batch, outputs)` is called while it is at work."""
        self.house, self.rng, self.tally = at, random.Random(seed), Tally()
        outputs, began = at.new_outputs(), time.monotonic()
        batch = at.start(outputs)
        if meanwhile is not None:
            meanwhile(batch, outputs)
        assert batch.wait(LIMIT) == 0, house.said(outputs).read_text()
        self.seconds = time.monotonic() - began
        self.expected = house.answers(outputs)
        assert len(self.expected) == 2 and all(self.expected.values())

    def all_rounds(self, kills: int) -> None:
        """Has accidents happen until there were so many kills, those that were tried least first."""
        while self.tally.kills < kills:
            tried = {a: self.tally.tried[a.name] * (1 if a.kills else 4) for a in ACCIDENTS + GENTLE}
            least = sorted(tried, key=lambda accident: (tried[accident], self.rng.random()))[:8]
            self.rng.shuffle(least)
            self.round(*(least[at : at + 2] for at in range(0, len(least), 2)))
            print("\n".join([f"{self.tally.kills} of {kills} kills", *self.tally.told]), flush=True)

    def round(self, *lives: list[Accident]) -> None:
        """Starts one batch after another on one output folder, each hit by the accidents of its life, then a last one.

        An accident for which the moment does not come is left to the next life; once all is done, none comes any more.
        """
        outputs, happened, missed = self.house.new_outputs(), [], []
        retries = self.rng.choice("001")  # of a killed kernel: by the next batch, or by the same
        seen: dict[str, tuple] = {}
        lost, left, differing, twice, trained = [], [], [], [], []
        log = outputs / "paper/logs/another.log"  # as of a Slurm task here
        mark = f"{os.getpid()} {start_time(os.getpid())} {log}"
        beside = subprocess.Popen(["sleep", "100000"], env={"PANDERM_RUN": mark})
        for life in [*lives, None]:
            if life is not None and set(house.answers(outputs)) == set(self.expected):
                continue
            life = [] if life is None else [*missed, *life]
            driver = self.house.start(outputs, "--retries", retries)
            hit = self._live(Scene(outputs, driver, self.house.token), life, left)
            happened += hit
            missed = [accident for accident in life if accident not in hit]
            answers, now = house.answers(outputs), house.finished(outputs)
            lost += [f"{outputs}: {path}" for path in seen if "/records/" in path and path not in now]
            twice += [path for path, stamp in seen.items() if path in now and now[path] != stamp]
            differing += [f"{outputs}: {name}" for name, found in answers.items() if found != self.expected[name]]
            before, trained = trained, house.epochs(outputs)
            twice += [f"{outputs}: epoch {row['epoch']}" for row in before if row not in trained]
            seen |= now
            if driver.returncode >= 0:  # after one that was killed, or ended before it could listen, the next does it
                left += [f"{outputs}: {process}" for process, _ in living(self.house.token)]
        assert beside.poll() is None, "a process that is none of the batch's was ended"
        beside.kill()
        beside.wait()
        lost += [f"{outputs}: {name} is not there" for name in self.expected if name not in answers]
        if driver.returncode:
            lost.append(f"{outputs}: the last batch ended with {driver.returncode}: {house.said(outputs).read_text()}")
        left += [str(path) for path in outputs.rglob(".*") if path.is_file() and _half(path)]
        self.tally.add(happened, lost=lost, left=left, differing=differing, twice=twice)
        if not (lost or left or differing or twice):
            shutil.rmtree(outputs)

    def _live(self, scene: Scene, life: list[Accident], left: list[str]) -> list[Accident]:
        """Waits for a batch to end and has accidents happen to it; returns those that did."""
        due = {accident: self._draw(accident) for accident in life if accident.spread is None}
        waiting, hit, began, looked = list(life), [], time.monotonic(), 0.0
        while scene.driver.poll() is None:
            now = time.monotonic() - began
            assert now < LIMIT, f"{scene.outputs} does not end: {house.said(scene.outputs).read_text()}"
            for accident in waiting:
                if accident not in due and accident.when(scene):
                    due[accident] = now + self._draw(accident)
            for accident in [accident for accident in waiting if due.get(accident, now + 1) <= now]:
                if self._strike(accident, scene):
                    waiting.remove(accident)
                    hit.append(accident)
            if now > looked + 0.5:
                looked = now
                for key, found in scene.processes().items():
                    if key.startswith("papermill ") and len(found) > 1:
                        left.append(f"{scene.outputs}: {len(found)} at once: {key}")
            closely = any(accident.when is Scene.is_writing for accident in waiting)
            time.sleep(LOOK_CLOSELY if closely else LOOK)
        return hit

    def _draw(self, accident: Accident) -> float:
        return self.rng.uniform(0, self.seconds if accident.spread is None else accident.spread)

    def _strike(self, accident: Accident, scene: Scene) -> bool:
        """Signals a victim; returns False where there is none, or the moment has passed."""
        if accident.victim == "run_all":
            scene.driver.send_signal(accident.signal)
            return True
        if accident.victim == "writer":
            return bool(writers := scene.writers()) and _signal(writers, signal.SIGKILL)
        found = scene.processes()
        if accident.signal == signal.SIGSTOP:
            everybody = [process for key, some in found.items() if " " not in key for process in some]
            _signal(everybody, signal.SIGSTOP)
            time.sleep(2)
            _signal(everybody, signal.SIGCONT)
            return bool(everybody)
        victims = found.get(accident.victim)
        return bool(victims) and _signal([self.rng.choice(victims)], accident.signal)


def living(token: str) -> list[tuple[psutil.Process, dict[str, str]]]:
    """Returns the living processes, each with its environment, that a test of this token has started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            if environment.get(house.TOKEN) == token and process.status() != psutil.STATUS_ZOMBIE:
                found.append((process, environment))
    return found


def _signal(processes: list[psutil.Process], number: int) -> bool:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
    return bool(processes)


def _half(path: Path) -> bool:
    """Whether a hidden file is one that should have been renamed; those of the cache are swept after an hour."""
    return path.suffix in (".new", ".old", ".ipynb") and "cache" not in path.parts

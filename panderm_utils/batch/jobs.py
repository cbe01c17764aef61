"""A batch as it is planned: the notebooks to execute, and what they need."""

from dataclasses import dataclass
from pathlib import Path

from panderm_utils.batch.needs import Need
from panderm_utils.workspace import Workspace

PAPER = "paper"  # the folder of the notebooks that make tables and figures from records


@dataclass(frozen=True, eq=False)
class Job:
    """A notebook to execute.

    Attributes:
        name: The run id, or the paper notebook's name.
        output: The executed notebook; `log`: what papermill and the cells print.
        protocol: Its name; PAPER for a paper notebook.
        record: The folder of the run's record, or None for a paper notebook.
        needs: The data and weights that it reads.
        features: (dataset, encoder) of all features that it reads, or extracts if no run has yet; () of a training.
    """

    name: str
    notebook: Path
    parameters: dict
    output: Path
    log: Path
    protocol: str = PAPER
    record: Path | None = None
    needs: tuple[Need, ...] = ()
    features: tuple[tuple[str, str], ...] = ()

    @property
    def missing(self) -> tuple[Need, ...]:
        return tuple(need for need in self.needs if need.state in ("missing", "incomplete"))


@dataclass(frozen=True)
class Plan:
    """A batch: its runs, the paper notebooks to execute after them, and whether the report is written at the end."""

    space: Workspace
    runs: tuple[Job, ...]
    paper: tuple[Job, ...]
    report: bool = True

    @property
    def needs(self) -> list[Need]:
        return list(dict.fromkeys(need for run in self.runs for need in run.needs))


def count_runs(count: int) -> str:
    """Returns "1 run", "2 runs", ..."""
    return f"{count} run{'s' * (count != 1)}"

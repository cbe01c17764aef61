"""The short form of the chaos tests: some of everything; `make chaos` is the long one."""

import subprocess
import time
from functools import partial

import house
import pytest
from accidents import ACCIDENTS, GENTLE, Chaos


def start_a_second(at, first, outputs):
    """Starts a batch on the folder of one that is at work; notes on the house what came of it."""
    while not list(outputs.glob("paper/logs/*.log")):
        assert first.poll() is None, house.said(outputs).read_text()
        time.sleep(0.05)
    second = at.start(outputs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, told = second.communicate()
    at.second = first.pid, second.returncode, out, told


@pytest.fixture(scope="module")
def chaos(tmp_path_factory):
    """Batches whose data lie on a disk that is read-only, where a test may mount one."""
    at = house.House(tmp_path_factory.mktemp("chaos"))
    bound = subprocess.run(["mount", "--bind", at.data, at.data], capture_output=True).returncode == 0
    if bound:
        subprocess.run(["mount", "-o", "remount,ro,bind", at.data], check=True)
        with pytest.raises(OSError, match="Read-only"):
            (at.data / "x").touch()
    yield Chaos(at, seed=0, meanwhile=partial(start_a_second, at))
    if bound:
        subprocess.run(["umount", "--lazy", at.data], check=True)


LIVES = (  # of one round; a life costs a batch's start
    ["feature extraction killed", "fine-tuning killed", "all stopped for two seconds", "run_all killed"],
    ["data-loader worker killed", "papermill killed", "kernel killed", "SIGTERM to run_all"],
    ["record being written, its kernel killed", "record being written, run_all killed"],
)


def test_the_same_command_again_ends_with_the_same_records(chaos):
    named = {accident.name: accident for accident in (*ACCIDENTS, *GENTLE)}
    chaos.round(*[[named[name] for name in life] for life in LIVES])
    assert chaos.tally.told == [], chaos.tally.table()
    assert sum(chaos.tally.tried.values()) >= 3  # a moment may not come, as where a record is written too quickly


def test_a_second_batch_on_one_folder_names_the_first_and_touches_nothing(chaos):
    first, status, out, told = chaos.house.second
    assert (status, out) == (2, "")
    assert f"in use by another batch (process {first} on " in told and "wait until it ends" in told
    assert "killed here" not in (chaos.house.root / "outputs-1.txt").read_text()  # and it ended well, see Chaos

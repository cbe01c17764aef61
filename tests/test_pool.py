"""Several processes: results in order, errors as they are, and nothing left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tqdm.auto import tqdm

from panderm_utils.pool import in_another_process, in_processes

ROOT = Path(__file__).parent.parent


def square(number):
    for _ in tqdm(range(3), desc="inside"):
        time.sleep(0.01 * (number % 3))
    return number**2, os.getpid()


def fail_or_sleep(number):
    if number == 1:
        raise ValueError("number 1 is bad")
    time.sleep(60)


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_keep_the_order_of_the_things(jobs, capfd):
    found = in_processes(square, iter(range(20)), jobs, "squares")
    assert [number for number, _ in found] == [number**2 for number in range(20)]
    assert len({process for _, process in found}) == min(jobs, os.cpu_count())
    assert ("inside" in capfd.readouterr().err) == (jobs == 1)  # two bars would overwrite each other


def test_an_error_ends_the_rest_at_once():
    before = set(multiprocessing.active_children())
    with pytest.raises(ValueError, match="number 1 is bad"):
        in_processes(fail_or_sleep, [1, 2, 3, 4], 2, "failing")
    assert set(multiprocessing.active_children()) <= before  # none of them sleeps on


def sleep(number):
    time.sleep(600)


def two_sleep(number):
    print(os.getpid(), flush=True)
    in_processes(sleep, [1, 2], 2, "sleeping")


def test_another_process_has_its_own_imports_and_tells_its_errors():
    result, process = in_another_process(square, 7)
    assert (result, process != os.getpid()) == (49, True)
    with pytest.raises(ValueError, match="number 1 is bad"):
        in_another_process(fail_or_sleep, 1)


def sleep_on(number):
    print(os.getpid(), flush=True)
    try:
        time.sleep(600)
    except KeyboardInterrupt:  # lost, as that of a signal during a fork
        time.sleep(600)


def test_who_does_not_hear_is_asked_again():
    code = "from tests.test_pool import *; in_another_process(sleep_on, 0)"
    main = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    other = psutil.Process(int(main.stdout.readline()))
    main.send_signal(signal.SIGINT)
    main.wait(60)
    assert not other.is_running()


@pytest.mark.parametrize(("number", "seconds"), [(signal.SIGKILL, 10), (signal.SIGINT, 0)])
def test_whatever_ends_a_process_ends_all_below_it(number, seconds):
    code = "from tests.test_pool import *; in_another_process(two_sleep, 0)"
    main = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    main.stdout.readline()
    while len(below := psutil.Process(main.pid).children(recursive=True)) < 3:
        time.sleep(0.01)
    main.send_signal(number)
    main.wait(60)
    _, left = psutil.wait_procs(below, timeout=seconds)
    assert left == []

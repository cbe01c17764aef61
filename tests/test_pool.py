"""Several processes: results in order, errors as they are, and nothing left behind."""

import multiprocessing
import os
import time

import pytest
from tqdm.auto import tqdm

from panderm_utils.pool import in_processes


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

"""What every test may rely on."""

import signal

import pytest
import torch

# A shell starts background commands with SIGINT ignored, nohup with SIGHUP, and every process below inherits that: the
# tests that send them would wait for nothing. They run as from a terminal, however the suite was started.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)


# Files that take longest: they begin first, so that none is still running when the other process has nothing left.
LONGEST = (
    "tests/notebooks/",
    "tests/batch/test_slurm",
    "tests/chaos/",
    "tests/batch/",
    "tests/protocols/",
    "tests/data/",
)


def pytest_collection_modifyitems(items):
    def place(item):
        return next((i for i, name in enumerate(LONGEST) if item.nodeid.startswith(f"tests/{name}")), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(scope="module")
def one_thread():
    """For models so small that threads would only wait for each other, and sums whose order matters.

    A module asks for it with `pytestmark`.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

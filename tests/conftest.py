"""What every test may rely on."""

import signal

import pytest
import torch

# A shell starts background commands with SIGINT ignored, and every process below inherits that: the tests that
# interrupt a process would wait for nothing. They run as from a terminal, however the suite was started.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def one_thread():
    """For models so small that threads would only wait for each other, and sums whose order matters.

    A module asks for it with `pytestmark`.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

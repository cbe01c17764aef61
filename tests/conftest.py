"""What every test may rely on."""

import gc
import os
import signal
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # a core each: threads of several processes on one core wait for each other
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # UMAP starts threads all the same
    for threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(threads, "1")

import pytest
import torch

gc.disable()  # until all tests are imported: it would take a quarter of that time, and find nothing

# A shell starts background commands with SIGINT ignored, nohup with SIGHUP, and every process below inherits that: the
# tests that send them would wait for nothing. They run as from a terminal, however the suite was started.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)


# Folders and files that take longest: they begin first, so that neither process is left alone with one of them.
LONGEST = ("notebooks/", "batch/test_slurm", "chaos/", "batch/", "protocols/", "tutorial/", "classifiers/", "data/")
LONGEST += ("report/", "figures/", "test_system", "encoders/", "demo/", "results/")
# What starts processes, kernels, browsers or trainings, or draws many figures; `make test-fast` runs the others.
SLOW = (
    "notebooks/",
    "batch/",
    "chaos/",
    "classifiers/",
    "cli/",
    "demo/",
    "report/",
    "test_disk",
    "test_messages",
    "test_pool",
    "test_system",
    "test_torchvision",
    "test_project",
    "audit/test_leakage",
    "data/test_hostile",
    "data/test_own",
    "encoders/test_attention",
    "encoders/test_features",
    "encoders/test_encoders",
    "figures/test_plots",
    "stats/test_embedding",
    "protocols/test_finetune",
    "protocols/test_label_efficiency_plots",
    "protocols/test_toy",
    "results/test_comparison",
    "results/test_records",
    "results/test_scoreboard",
    "tutorial/test_lessons",
)


def pytest_ignore_collect(collection_path, config):
    """Leaves files of slow tests alone where none is wanted: importing them takes seconds, too."""
    if "not slow" in config.option.markexpr:
        place = collection_path.relative_to(Path(__file__).parent).as_posix() + "/" * collection_path.is_dir()
        return place.startswith(SLOW) or None


def pytest_collection_modifyitems(items):
    def starts(item, name):
        return item.nodeid.startswith(f"tests/{name}")

    for item in items:
        if any(starts(item, name) for name in SLOW):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: next((i for i, name in enumerate(LONGEST) if starts(item, name)), len(LONGEST)))


def pytest_collection_finish():
    gc.freeze()  # what is imported stays; looking through it again and again takes a twentieth of tests of figures
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def empty_folders(tmp_path_factory):
    """Tests find no data, weights or outputs but their own, whatever is in this checkout or set by its user."""
    empty = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("data", "weights", "output"):
            patch.setenv(f"PANDERM_{folder.upper()}_ROOT", str(empty / folder))
        yield
    assert list(empty.iterdir()) == [], "a test wrote where the next one would find it"


@pytest.fixture(scope="module")
def one_thread():
    """For models so small that threads would only wait for each other, and sums whose order matters.

    A module asks for it with `pytestmark`.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

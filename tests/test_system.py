"""Without what Windows lacks: every module can be imported, and a notebook runs from the command line to its record.

Processes started here show `panderm_utils`, and no other package, the `os`, `signal`, ... of Windows. What Windows does
beyond that, such as refusing to replace an open file, this cannot show.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path
from unittest import mock

import psutil
import pytest

from panderm_utils import results, system, workspace
from panderm_utils.demo import stand_ins
from panderm_utils.manifests import load_dataset_manifest
from panderm_utils.protocols import load_protocol

ROOT = Path(__file__).parent.parent
# Python imports a module of this name before anything else, also in the processes that a process starts.
SITECUSTOMIZE = '''
import builtins, multiprocessing, os, select, signal, socket, sys, types, warnings

ABSENT = {"fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "syslog"}
OS = """fork forkpty setsid getsid killpg getpgid getpgrp setpgid sched_getaffinity sched_setaffinity pidfd_open waitid
  wait wait3 wait4 WNOHANG nice getuid geteuid getgid getegid chown lchown mkfifo mknod statvfs fstatvfs uname sysconf
  confstr pathconf tcgetpgrp tcsetpgrp ctermid ttyname openpty posix_spawn sendfile pread pwrite readv writev fchmod
  getloadavg register_at_fork fchown fdatasync memfd_create getxattr posix_fallocate sync O_CLOEXEC O_NOFOLLOW
  O_DIRECTORY O_NONBLOCK"""
SIGNALS = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN"}
SIGNALS |= {"signal", "getsignal", "strsignal", "valid_signals", "raise_signal", "default_int_handler", "Signals"}

class Windows(types.ModuleType):
    def __init__(self, module, hidden, **changed):
        self.__dict__.update(module=module, hidden=hidden, **changed)
    def __getattr__(self, name):
        if name in self.__dict__["hidden"]:
            raise AttributeError(f"Windows has no {self.module.__name__}.{name}")
        return getattr(self.__dict__["module"], name)
    def __setattr__(self, name, value):
        setattr(self.module, name, value)

SHOWN = {
    "os": Windows(os, set(OS.split())),
    "signal": Windows(signal, set(dir(signal)) - SIGNALS),
    "select": Windows(select, {"poll", "epoll"}),
    "socket": Windows(socket, {"AF_UNIX", "send_fds", "recv_fds"}),
    "sys": Windows(sys, set(), platform="win32"),
}
real = builtins.__import__

def import_as_on_windows(name, globals=None, locals=None, fromlist=(), level=0):
    # but for torchvision_shim: it repairs this machine's torchvision, of which Windows has another build
    importer = str(globals.get("__name__")) if globals else ""
    if importer.startswith("panderm_utils") and not importer.endswith("torchvision_shim"):
        if name in ABSENT:
            raise ModuleNotFoundError(f"Windows has no {name}")
        if name in SHOWN:
            return SHOWN[name]
    return real(name, globals, locals, fromlist, level)

builtins.__import__ = import_as_on_windows
multiprocessing.set_start_method("spawn")
warnings.filterwarnings("error", category=EncodingWarning, module="panderm_utils")  # its encoding is not UTF-8
'''
SMALL = stand_ins.Size(train=24, val=4, test=12)


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    """Returns a function that runs Python with arguments and returns its output, which it asserts to be a success."""
    folder = tmp_path_factory.mktemp("windows")
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT))), "PYTHONWARNDEFAULTENCODING": "1"}

    def run(*arguments, status=0):
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **paths, "CI": "1"})
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


IMPORT_ALL = """
import gc, importlib, pkgutil, subprocess, sys
gc.disable()  # it would take a quarter of the imports' time, see `warm_server`
import psutil
import panderm_utils
from panderm_utils import batch, pool, results, system

for module in pkgutil.walk_packages(panderm_utils.__path__, "panderm_utils."):
    importlib.import_module(module.name)
assert "panderm_utils.protocols.training.processes" in sys.modules

assert system.WINDOWS and not system.FORKS and system.count_cores() >= 1
assert results.peak_memory_mb()["process"] > 50
assert pool.in_another_process(len, "four") == 4

from panderm_utils.batch import leftovers
from panderm_utils.data import loading
assert loading._choose_workers("cpu", 20) == 0
sleeper = psutil.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
assert leftovers.end_processes(lambda: [sleeper] if sleeper.poll() is None else []) == 1
assert sleeper.poll() is not None
"""


def test_every_module_can_be_imported_and_processes_start_and_end(windows):
    windows("-c", IMPORT_ALL)


def test_a_notebook_runs_from_the_command_line_to_its_record(windows, tmp_path):
    space = workspace.open_workspace("demo", output_root=tmp_path)
    with mock.patch.object(stand_ins, "STAND_IN", SMALL):
        stand_ins.make_stand_in(load_dataset_manifest("ddi"), space.data_root)
    one = ("--protocols", "linear_probe", "--datasets", "ddi", "--encoders", "panderm_tiny", "-p", "replicates=20")
    command = ("run_all.py", "--profile", "demo", *one, "--only", "*", "--output-root", tmp_path)
    assert "1 done" in windows(*command, "--jobs", "1")
    probe = results.run_id(load_protocol("linear_probe"), "demo", "ddi", "panderm_tiny", 0, replicates=20)
    assert results.read_record(space.records / probe)["peak_memory_mb"]["process"] > 50
    assert "Slurm runs on Linux" in windows(*command, "--slurm", status=2)


def test_here_nothing_is_lacking():
    assert not system.WINDOWS
    assert system.has_parent(os.getppid()) and not system.has_parent(os.getpid())
    assert system.peak_memory() >= psutil.Process().memory_info().rss // 2e6
    assert system.peak_memory(children=True) is not None


KEEPING = """
import ctypes, resource
from panderm_utils import encoders

c, size, count = ctypes.CDLL(None), 24 << 20, 4
c.malloc.restype, c.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
c.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def use_and_free():
    blocks = [c.malloc(ctypes.c_size_t(size)) for _ in range(count)]
    for block in blocks:
        c.memset(block, 1, size)
    for block in blocks:
        c.free(block)

encoders.choose_device("cpu")
use_and_free()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use_and_free()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_process_that_computes_on_a_cpu_keeps_its_freed_memory():
    done = subprocess.run([sys.executable, "-c", KEEPING], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(done.stdout) < 96 << 8  # the pages of one of the ten times

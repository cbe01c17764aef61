"""The process from which runs are forked, and what the forks execute; see `warm_kernels`, which starts it.

It only imports packages: it uses no GPU and computes nothing, so that it has a single thread, as a fork copies only the
thread that forks. Each fork becomes papermill, which at once forks a standby process that becomes its kernel when the
provisioner (`kernels`) asks for one. The kernel is thus papermill's child, as in a cold start, and killed processes,
leftover processes and peak memory are detected in the same way.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import threading
from pathlib import Path

import panderm_utils
from panderm_utils.batch.leftovers import RUN

MAX_REQUEST = 16_384  # bytes of a request, and of the memory reserved for a run's mark and command line
# ipykernel is first: with it, tqdm chooses notebook progress bars when it is imported.
IMPORTS = (
    "ipykernel.kernelapp",
    "ipykernel.debugger",
    "papermill.cli",
    "sqlite3",
    "tabulate",
    "tornado.platform.asyncio",
)
INLINE = "module://matplotlib_inline.backend_inline"  # set by ipykernel before a notebook imports anything
PR_SET_PDEATHSIG = 1  # of Linux's prctl

_standby: "_Standby | None" = None  # in a forked papermill: the process that becomes its kernel


def wake_kernel(command: list[str], environment: dict[str, str], folder: str | None) -> "_Standby | None":
    """Returns this papermill's standby process, now its kernel, or None if the kernel must start cold.

    Args:
        command: `python -m module arguments`.
        folder: Working directory; None for the current one.
    """
    global _standby
    standby, _standby = _standby, None
    if not standby or command[:2] != [sys.executable, "-m"]:
        return None
    order = {"command": command[2:], "environment": environment, "folder": folder or str(Path.cwd())}
    return standby if standby.wake(json.dumps(order).encode()) else None


class _Standby:
    """A forked process that waits to become a kernel, with the parts of `subprocess.Popen` that jupyter_client uses."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int, order: socket.socket) -> None:
        self.pid, self.returncode, self._order = pid, None, order

    def wake(self, order: bytes) -> bool:
        """Sends the kernel's command to the process; returns False if the process has been killed."""
        with self._order:
            try:
                self._order.sendall(order)
            except OSError:
                return False
        return True

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def wait(self) -> int:
        return self._reap(0)

    def _reap(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def serve(requests: int) -> None:
    """Forks a run per request until the batch ends; in a fork, executes the run's command.

    Args:
        requests: File descriptor of the socket on which `warm_kernels.Server` sends requests.
    """
    _run_module(_fork_runs(requests))


def _fork_runs(requests: int) -> list[str]:
    """Forks a run per request; returns only in a fork, with the module to run and its arguments."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.close(os.pidfd_open(os.getpid()))  # raises where Linux or a container lacks it; then all runs start cold
    gc.disable()  # collections would take a quarter of the time of the imports, and find nothing
    _import_all()
    gc.collect()
    gc.freeze()  # otherwise the first collection in a fork would copy all memory shared with the server
    gc.enable()
    incoming = socket.socket(fileno=requests)
    running: dict[int, tuple[int, int]] = {}  # pidfd of a run -> its pid, and the socket for its exit status
    while True:
        for ready in select.select([requests, *running], [], [])[0]:
            if ready == requests:
                message, files, *_ = socket.recv_fds(incoming, MAX_REQUEST, 2)
                if not message:  # the batch has ended
                    os._exit(0)
                log, answer = files
                if pid := _fork():
                    running[os.pidfd_open(pid)] = pid, answer
                    os.close(log)
                    continue
                for other in (requests, *running, *(answer for _, answer in running.values())):
                    os.close(other)
                incoming.detach()
                return _become_run(json.loads(message), log, answer)
            pid, answer = running.pop(ready)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            with contextlib.suppress(OSError):  # the run was abandoned
                os.write(answer, str(code).encode())
            os.close(answer)
            os.close(ready)


def _import_all() -> None:
    """Imports what papermill, kernels and notebooks import, as a kernel would."""
    import nbformat  # not above: batches, too, import this module

    backend = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = backend or INLINE
    modules = [module.name for module in pkgutil.walk_packages(panderm_utils.__path__, f"{panderm_utils.__name__}.")]
    for name in (*IMPORTS, *modules):
        importlib.import_module(name)
    nbformat.validate(nbformat.v4.new_notebook())  # loads the notebook schema
    if backend is None:
        del os.environ["MPLBACKEND"]


def _fork() -> int:
    """Forks as `os.fork` does, and reseeds the random generators in the fork, as in a new process."""
    pid = os.fork()
    if not pid:
        sys.modules["numpy"].random.seed()  # Python reseeds `random` by itself
        sys.modules["torch"].default_generator.seed()
    return pid


def _become_run(request: dict, log: int, answer: int) -> list[str]:
    """Turns this fork into a run's papermill; returns its command, or in the standby the kernel's, once woken."""
    global _standby
    os.setsid()
    command, environment = _spans()
    _overwrite(environment, request["mark"].encode(errors="surrogateescape"), after=f"{RUN}=".encode())
    os.environ[RUN] = request["mark"]
    for output in (1, 2):
        os.dup2(log, output)
    os.close(log)
    # From here on, this process is found by its mark. A batch that abandoned it earlier may not have found it.
    if select.select([answer], [], [], 0)[0]:
        os._exit(0)
    os.close(answer)
    order, theirs = socket.socketpair()
    if pid := _fork():
        theirs.close()
        _standby = _Standby(pid, order)
        _set_command_line(command, request["command"])
        return request["command"]
    order.close()
    return _become_kernel(theirs, command)


def _become_kernel(order: socket.socket, command: tuple[int, int]) -> list[str]:
    """Waits until woken and returns the kernel's command; ends if papermill does."""
    os.setsid()
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback in the log if interrupted while it waits
    with order, order.makefile("rb") as file:
        message = file.read()
    if not message:
        os._exit(0)
    kernel = json.loads(message)
    os.environ.clear()
    os.environ.update(kernel["environment"])
    os.chdir(kernel["folder"])
    _set_command_line(command, kernel["command"])
    signal.signal(signal.SIGINT, handler)
    return kernel["command"]


def _spans() -> list[tuple[int, int]]:
    """Returns (address, size) of the memory from which Linux reads this process's command line, and its environment."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    ends = [int(field) for field in fields[45:49]]
    return [(start, end - start) for start, end in (ends[:2], ends[2:])]


def _set_command_line(span: tuple[int, int], command: list[str]) -> None:
    """Makes `ps` and others show a fork's command instead of the server's."""
    _overwrite(span, "\0".join([sys.executable, "-m", *command]).encode(errors="surrogateescape"))


def _overwrite(span: tuple[int, int], text: bytes, after: bytes = b"") -> None:
    """Writes text into a span of memory, from behind `after`, and fills the rest with zeros."""
    address, size = span
    at = ctypes.string_at(address, size).index(after) + len(after)
    ctypes.memmove(address + at, text[: size - at - 1].ljust(size - at, b"\0"), size - at)


def _run_module(command: list[str]) -> None:
    """Executes a module with its arguments as `python -m` does, and exits this process.

    The exit skips the cleanup of imported modules, which takes half a second and copies shared memory.
    """
    sys.argv = command
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        code = end.code or 0
    threading._shutdown()  # as multiprocessing does in its forks
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

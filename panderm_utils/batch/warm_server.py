"""The process from which runs are forked, and what the forks do; see `warm_kernels`, which starts it.

It only imports: it touches no GPU and computes nothing, so that no thread runs in it, for a fork copies only the thread
that forks. Each run is forked as papermill, which at once forks the process that becomes its kernel when the
provisioner (`kernels`) asks for one. So the kernel is papermill's child as ever, and who is killed, left over or out of
memory is found out as ever.
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

ROOM = 16_384  # bytes of a request, and so of what a run writes over its environment and its command line
# ipykernel comes first: it tells tqdm, as that is imported, to draw its bars for a notebook.
IMPORTS = (
    "ipykernel.kernelapp",
    "ipykernel.debugger",
    "papermill.cli",
    "sqlite3",
    "tabulate",
    "tornado.platform.asyncio",
)
INLINE = "module://matplotlib_inline.backend_inline"  # as ipykernel sets it before anything is imported
PR_SET_PDEATHSIG = 1  # of Linux's prctl

_spare: "_Spare | None" = None  # in a forked papermill: the process that becomes its kernel


def wake_kernel(command: list[str], environment: dict[str, str], folder: str | None) -> "_Spare | None":
    """Makes the process that was forked for it this papermill's kernel; returns None where the kernel is to start cold.

    Args:
        command: `python -m module arguments`.
        folder: Where it is to work; None: here.
    """
    global _spare
    spare, _spare = _spare, None
    if not spare or command[:2] != [sys.executable, "-m"]:
        return None
    order = {"command": command[2:], "environment": environment, "folder": folder or str(Path.cwd())}
    return spare if spare.wake(json.dumps(order).encode()) else None


class _Spare:
    """A forked process that waits to become a kernel, and as much of `subprocess.Popen` as jupyter_client uses."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int, order: socket.socket) -> None:
        self.pid, self.returncode, self._order = pid, None, order

    def wake(self, order: bytes) -> bool:
        """Tells it what to become; returns False where it was killed meanwhile."""
        with self._order:
            try:
                self._order.sendall(order)
            except OSError:
                return False
        return True

    def poll(self, options: int = os.WNOHANG) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int:
        return self.poll(0)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def serve(requests: int) -> None:
    """Forks runs as they are asked for, until the batch has ended; in a fork, does what that is for.

    Args:
        requests: The file descriptor of the socket through which `warm_kernels.Server` asks.
    """
    _run(_fork_runs(requests))


def _fork_runs(requests: int) -> list[str]:
    """Forks runs as they are asked for; returns only in a fork: the module that it is to run, and its arguments."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.close(os.pidfd_open(os.getpid()))  # a Linux or a container without it raises here, and all starts cold
    _import_all()
    gc.collect()
    gc.freeze()  # or the first collection in a fork would write to, and so copy, all that it shares with the others
    incoming = socket.socket(fileno=requests)
    running: dict[int, tuple[int, int]] = {}  # by what becomes readable when a run ends: its pid, and where to tell
    while True:
        for ready in select.select([requests, *running], [], [])[0]:
            if ready == requests:
                message, files, *_ = socket.recv_fds(incoming, ROOM, 2)
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
            with contextlib.suppress(OSError):  # nobody waits
                os.write(answer, str(code).encode())
            os.close(answer)
            os.close(ready)


def _import_all() -> None:
    """Imports what papermill, kernels and notebooks import, as a kernel would."""
    import nbformat  # not above, as batches import this module too

    given = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = given or INLINE
    ours = [module.name for module in pkgutil.walk_packages(panderm_utils.__path__, f"{panderm_utils.__name__}.")]
    for name in (*IMPORTS, *ours):
        importlib.import_module(name)
    nbformat.validate(nbformat.v4.new_notebook())  # reads the schema of notebooks
    if given is None:
        del os.environ["MPLBACKEND"]


def _fork() -> int:
    """Forks as `os.fork` does; what a fork would have in common with the others, it draws anew as a new process."""
    pid = os.fork()
    if not pid:
        sys.modules["numpy"].random.seed()  # Python's own `random` does so by itself
        sys.modules["torch"].default_generator.seed()
    return pid


def _become_run(request: dict, log: int, answer: int) -> list[str]:
    """Makes this process a run's first; returns what papermill is to do, and in its child, once asked, the kernel."""
    global _spare
    os.setsid()
    command, environment = _spans()
    _write(environment, request["mark"].encode(errors="surrogateescape"), after=f"{RUN}=".encode())
    os.environ[RUN] = request["mark"]
    for output in (1, 2):
        os.dup2(log, output)
    os.close(log)
    # From here on, this process is found by its mark. Whoever let go of it before may not have seen that.
    if select.select([answer], [], [], 0)[0]:
        os._exit(0)
    os.close(answer)
    order, theirs = socket.socketpair()
    if pid := _fork():
        theirs.close()
        _spare = _Spare(pid, order)
        _show(command, request["command"])
        return request["command"]
    order.close()
    return _become_kernel(theirs, command)


def _become_kernel(order: socket.socket, command: tuple[int, int]) -> list[str]:
    """Waits to be woken; ends if papermill does."""
    os.setsid()
    usual = signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback in the log if it is ended as it waits
    with order, order.makefile("rb") as file:
        told = file.read()
    if not told:
        os._exit(0)
    told = json.loads(told)
    os.environ.clear()
    os.environ.update(told["environment"])
    os.chdir(told["folder"])
    _show(command, told["command"])
    signal.signal(signal.SIGINT, usual)
    return told["command"]


def _spans() -> list[tuple[int, int]]:
    """Returns where the system reads this process's command line and environment: address and size of each."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    ends = [int(field) for field in fields[45:49]]
    return [(start, end - start) for start, end in (ends[:2], ends[2:])]


def _show(span: tuple[int, int], command: list[str]) -> None:
    """Has `ps` and others show what a fork does instead of what the server was called with."""
    _write(span, "\0".join([sys.executable, "-m", *command]).encode(errors="surrogateescape"))


def _write(span: tuple[int, int], text: bytes, after: bytes = b"") -> None:
    """Writes into memory that the system reads, from `after` to the end of its span, and zeros behind."""
    address, size = span
    at = ctypes.string_at(address, size).index(after) + len(after)
    ctypes.memmove(address + at, text[: size - at - 1].ljust(size - at, b"\0"), size - at)


def _run(command: list[str]) -> None:
    """Does what `python -m` does with a module and its arguments, and ends this process as that would.

    Only it does not take down what was imported, which takes half a second and copies what it shares with the others.
    """
    sys.argv = command
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        code = end.code or 0
    threading._shutdown()  # so does multiprocessing in its forks
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

"""Starts runs warm: forks them from a process that has already imported what all notebooks import.

A cold run pays seven to ten seconds before it works: papermill starts, its kernel starts, torch and the rest are
imported. A warm one pays for two forks.

    batch ── server ──┬── papermill ── kernel        a run
                      └── papermill ── kernel        another

The server lives as long as its batch, has the environment that the runs shall have, and only imports: it touches no GPU
and computes nothing, so that no thread runs in it, for a fork copies only the thread that forks. Each run is forked as
papermill, which at once forks the process that becomes its kernel when the provisioner (`kernels`) asks for one. So the
kernel is papermill's child as ever, and who is killed, left over or out of memory is found out as ever.

A run starts cold (`start` returns None) on other systems than Linux, where it has another environment than the server,
such as a GPU of its own, and once the server is dead.
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
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import panderm_utils
from panderm_utils.leftovers import RUN
from panderm_utils.workspace import REPOSITORY

START = "PANDERM_START"  # "cold": never from a server; "warm": always; else where that is sooner
LOST = "lost"  # what became of a run whose server was killed: nobody knows
ROOM = 16_384  # bytes of a request, and so of what a run writes over its environment and its command line
INLINE = "module://matplotlib_inline.backend_inline"  # as ipykernel sets it before anything is imported
PR_SET_PDEATHSIG = 1  # of Linux's prctl

_spare: "_Spare | None" = None  # in a forked papermill: the process that becomes its kernel


class Server:
    """Forks the runs of a batch; ends with the `with` block, or with the batch, however that ends."""

    def __init__(self) -> None:
        self._environment: dict[str, str] = {}
        self._process: subprocess.Popen | None = None
        self._requests: socket.socket | None = None

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def prepare(self, environment: dict[str, str], waiting: int, at_once: int) -> None:
        """Starts the server for runs of an environment, unless the runs start as soon without it.

        To be called by a thread that lasts as long as the server shall: Linux takes it for the parent.

        Args:
            waiting: How many runs there are; if all run at once, each imports while the server would.
        """
        wanted = os.environ.get(START)
        if sys.platform != "linux" or wanted == "cold" or (waiting <= at_once and wanted != "warm"):
            return
        if self._process and self._environment == environment:
            return
        self.close()
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # RUN comes last: what stands after it is hidden once a run has written its mark there.
        padded = {name: value for name, value in environment.items() if name != RUN} | {RUN: "-" * ROOM}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), " " * ROOM],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # what is wrong with an import is told by the cold start that follows
                stderr=subprocess.DEVNULL,
                env=padded,
                cwd=REPOSITORY,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._environment = environment

    def start(
        self, module: str, arguments: Sequence[str], environment: dict[str, str], mark: str, log: BinaryIO
    ) -> "Run | None":
        """Asks for a fork that does `python -m module arguments`; returns None where the run is to start cold.

        Args:
            environment: Of the run, without its mark.
            mark: By which its processes are found; see `leftovers`.
            log: Takes what it prints.
        """
        if not self._process or environment != self._environment:
            return None
        request = json.dumps({"command": [module, *arguments], "mark": mark}).encode()  # longer than the mark
        if len(request) > ROOM:
            return None
        answer, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._requests, [request], [log.fileno(), theirs.fileno()])
            except OSError:  # the server is dead
                answer.close()
                return None
        return Run(answer)

    def close(self) -> None:
        """Ends the server; the runs that it has forked are not touched."""
        if self._process:
            self._requests.close()
            self._process.kill()
            self._process.wait()
        self._process = self._requests = None


class Run:
    """A run that was asked for."""

    def __init__(self, answer: socket.socket) -> None:
        self._answer, self._code = answer, None
        answer.setblocking(False)

    def poll(self) -> int | str | None:
        """Returns None until it has ended, then its exit status as of `subprocess.Popen`, or LOST."""
        if self._code is None:
            with contextlib.suppress(BlockingIOError):
                told = self._answer.recv(16)
                self._code = int(told) if told else LOST
        return self._code

    def let_go(self) -> None:
        """Says that nobody waits any more: if it has not begun, it never will; if it has, its mark is to be seen."""
        self._answer.close()


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


def _serve(requests: int) -> list[str]:
    """Forks runs as they are asked for; returns only in a forked process, with what that is to do.

    Args:
        requests: The socket's file descriptor.

    Returns:
        A module and its arguments.
    """
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
    """Imports what notebooks import, as a kernel would: ipykernel first, by which tqdm knows where its bars go."""
    given = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = given or INLINE
    importlib.import_module("ipykernel.kernelapp")
    importlib.import_module("papermill.cli")
    for module in pkgutil.walk_packages(panderm_utils.__path__, f"{panderm_utils.__name__}."):
        importlib.import_module(module.name)
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


if __name__ == "__main__":
    from panderm_utils import warm_kernels  # this module as the provisioner finds it, not as __main__

    warm_kernels._run(warm_kernels._serve(int(sys.argv[1])))

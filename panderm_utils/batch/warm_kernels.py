"""Starts runs warm: forks them from a server process that has already imported what all notebooks import.

A cold start takes seven to ten seconds: papermill starts, its kernel starts, torch and other packages are imported. A
warm start takes two forks.

    batch ── server ──┬── papermill ── kernel        a run
                      └── papermill ── kernel        another

The server (`warm_server`) ends with its batch and has the environment of the runs. A run starts cold (`start` returns
None) on systems other than Linux, if its environment differs from the server's, as with an assigned GPU, and if the
server is dead.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import BinaryIO

from panderm_utils import system
from panderm_utils.batch.leftovers import RUN
from panderm_utils.batch.warm_server import MAX_REQUEST
from panderm_utils.workspace import REPOSITORY

START = "PANDERM_START"  # "cold": never use a server; "warm": always; unset: for two runs or more
SERVE = "import sys; from panderm_utils.batch import warm_server; warm_server.serve(int(sys.argv[1]))"
LOST = "lost"  # exit status of a run whose server was killed: unknown


class Server(contextlib.AbstractContextManager):
    """Forks the runs of a batch; ends with the `with` block, or with the batch process, even a killed one."""

    def __init__(self) -> None:
        self._environment: dict[str, str] = {}
        self._process: subprocess.Popen | None = None
        self._requests: socket.socket | None = None

    def __exit__(self, *_) -> None:
        self.close()

    def prepare(self, environment: dict[str, str], waiting: int) -> None:
        """Starts the server for runs with this environment, unless a cold start is as fast.

        Call it from a thread that outlives the server: Linux ends the server with the thread that started it.

        Args:
            waiting: How many runs there are. A single one starts cold: the server imports no less than its processes.
        """
        mode = os.environ.get(START)
        if not system.FORKS or mode == "cold" or (waiting < 2 and mode != "warm"):
            return
        if self._process and self._environment == environment:
            return
        self.close()
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # RUN is last, because a run that writes its mark there hides the variables after it.
        padded = {name: value for name, value in environment.items() if name != RUN} | {RUN: "-" * MAX_REQUEST}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVE, str(theirs.fileno()), " " * MAX_REQUEST],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # the cold start that follows shows import errors
                stderr=subprocess.DEVNULL,
                env=padded,
                cwd=REPOSITORY,
                pass_fds=[theirs.fileno()],
                **system.DETACHED,
            )
        self._environment = environment

    def start(
        self, module: str, arguments: Sequence[str], environment: dict[str, str], mark: str, log: BinaryIO
    ) -> "Run | None":
        """Requests a fork that executes `python -m module arguments`; returns None if the run must start cold.

        Args:
            environment: Environment of the run, without its mark.
            mark: Value of RUN, by which its processes are found; see `leftovers`.
            log: File for its output.
        """
        if not self._process or environment != self._environment:
            return None
        request = json.dumps({"command": [module, *arguments], "mark": mark}).encode()  # longer than the mark
        if len(request) > MAX_REQUEST:
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
        """Ends the server, but not the runs that it has forked."""
        if self._process:
            self._requests.close()
            self._process.kill()
            self._process.wait()
        self._process = self._requests = None


class Run:
    """A run requested from the server, with the `poll` of `subprocess.Popen`."""

    def __init__(self, answer: socket.socket) -> None:
        self._answer, self._code = answer, None
        answer.setblocking(False)

    def poll(self) -> int | str | None:
        """Returns None until the run has ended, then its exit status as `subprocess.Popen` gives it, or LOST."""
        if self._code is None:
            with contextlib.suppress(BlockingIOError):
                status = self._answer.recv(16)
                self._code = int(status) if status else LOST
        return self._code

    def abandon(self) -> None:
        """Stops waiting: a run that has not begun never will; one that has begun can be found by its mark."""
        self._answer.close()

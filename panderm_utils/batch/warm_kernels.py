"""Starts runs warm: forks them from a process that has already imported what all notebooks import.

A cold run pays seven to ten seconds before it works: papermill starts, its kernel starts, torch and the rest are
imported. A warm one pays for two forks.

    batch ── server ──┬── papermill ── kernel        a run
                      └── papermill ── kernel        another

The server (`warm_server`) lives as long as its batch and has the environment that the runs shall have. A run starts
cold (`start` returns None) on other systems than Linux, where it has another environment than the server, such as a
GPU of its own, and once the server is dead.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import BinaryIO

from panderm_utils.batch.leftovers import RUN
from panderm_utils.batch.warm_server import ROOM
from panderm_utils.workspace import REPOSITORY

START = "PANDERM_START"  # "cold": never from a server; "warm": always; else where that is sooner
SERVE = "import sys; from panderm_utils.batch import warm_server; warm_server.serve(int(sys.argv[1]))"
LOST = "lost"  # what became of a run whose server was killed: nobody knows


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
                [sys.executable, "-c", SERVE, str(theirs.fileno()), " " * ROOM],
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

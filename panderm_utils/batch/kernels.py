"""Logs how a run's kernel ended, where papermill logs only that it died, and connects kernels without TCP ports.

Kernels that start at the same time may be assigned the same TCP port, and then one of them dies (papermill issue 511).

jupyter_client starts kernels through the provisioner in JUPYTER_DEFAULT_PROVISIONER_NAME; pyproject.toml registers
this one as "panderm", and `execution.child_environment` selects it.
"""

import asyncio
import os
import signal
import sys
import uuid
from typing import Any

from jupyter_client.provisioning import LocalProvisioner

from panderm_utils import system
from panderm_utils.batch.warm_server import wake_kernel
from panderm_utils.messages import EXTENSION

EXIT_LINE = "the kernel ended with exit code {code}; its peak memory was {megabytes:,} MB"  # read by `execution`
SETTLE = 0.05  # seconds within which a kernel that has answered becomes idle


class TellingProvisioner(LocalProvisioner):
    """Starts and ends kernels as LocalProvisioner does, but over Unix sockets on Linux.

    Prints the exit code, as shells give it (137: killed), and the peak memory.
    """

    printed = False

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        # "@": an abstract socket, which leaves no file behind. A restarted kernel keeps its address.
        if system.LINUX and self.parent and self.parent.transport == "tcp":
            self.parent.transport, self.parent.ip = "ipc", f"@panderm-{uuid.uuid4().hex}"
        return await super().pre_launch(**kwargs)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict[str, Any]:
        # jupyter_client's launcher sets JPY_PARENT_PID, but here ipykernel was imported, and read it, long before.
        parent = f"--IPKernelApp.parent_handle={os.getpid()}"
        cmd = [*cmd, f"--IPKernelApp.extra_extensions={EXTENSION}"]  # a warm kernel does not import the package again
        environment = kwargs["env"] | {"JPY_PARENT_PID": str(os.getpid())}
        kernel = wake_kernel([*cmd, parent], environment, kwargs.get("cwd"))
        if kernel is None:
            return await super().launch_kernel(cmd, **kwargs)
        self.process, self.pid, self.pgid = kernel, kernel.pid, kernel.pid  # it leads its own session
        return self.connection_info

    async def send_signal(self, signum: int) -> None:
        # jupyter_client interrupts a kernel before it requests the shutdown. A kernel that has answered but is not idle
        # yet would lose that request in its KeyboardInterrupt, and be killed seconds later.
        if signum == signal.SIGINT and self.parent and self.parent.shutting_down:
            await asyncio.sleep(SETTLE)
        await super().send_signal(signum)

    async def poll(self) -> int | None:
        code = await super().poll()
        if self.process and code is not None and not self.printed:
            self.printed = True
            if (peak := system.peak_memory(children=True)) is not None:
                line = EXIT_LINE.format(code=code if code >= 0 else 128 - code, megabytes=peak)
                print(line, file=sys.stderr, flush=True)
        return code

"""Says in a run's log how its kernel ended, where papermill says only that it died; and spares kernels TCP ports.

Kernels that start at the same time may be told the same TCP port, and then one of them dies (papermill issue 511).

jupyter_client starts kernels through the provisioner that JUPYTER_DEFAULT_PROVISIONER_NAME names; pyproject.toml makes
this one known as "panderm", and `execution.child_environment` asks for it.
"""

import asyncio
import os
import resource
import signal
import sys
import uuid
from typing import Any

from jupyter_client.provisioning import LocalProvisioner

from panderm_utils.batch.warm_server import wake_kernel

SAYS = "the kernel ended with exit code {code}; its peak memory was {megabytes:,} MB"  # read by `execution`
SETTLE = 0.05  # seconds in which a kernel that has answered becomes idle


class TellingProvisioner(LocalProvisioner):
    """Starts and ends a kernel as ever, but without ports.

    Tells its exit code, as a shell counts (137: killed), and its peak memory.
    """

    told = False

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        # "@": a socket of Linux that is no file, so nothing is left behind. A kernel that is restarted keeps its own.
        if sys.platform == "linux" and self.parent and self.parent.transport == "tcp":
            self.parent.transport, self.parent.ip = "ipc", f"@panderm-{uuid.uuid4().hex}"
        return await super().pre_launch(**kwargs)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict[str, Any]:
        # jupyter_client's launcher sets JPY_PARENT_PID, and ipykernel has read it by now, as it was imported.
        parent = f"--IPKernelApp.parent_handle={os.getpid()}"
        environment = kwargs["env"] | {"JPY_PARENT_PID": str(os.getpid())}
        kernel = wake_kernel([*cmd, parent], environment, kwargs.get("cwd"))
        if kernel is None:
            return await super().launch_kernel(cmd, **kwargs)
        self.process, self.pid, self.pgid = kernel, kernel.pid, kernel.pid  # it leads a session of its own
        return self.connection_info

    async def send_signal(self, signum: int) -> None:
        # Before a shutdown, jupyter_client interrupts the kernel. One that has answered but is not quite idle yet would
        # lose the request that follows in its KeyboardInterrupt, and be ended seconds later.
        if signum == signal.SIGINT and self.parent and self.parent.shutting_down:
            await asyncio.sleep(SETTLE)
        await super().send_signal(signum)

    async def poll(self) -> int | None:
        code = await super().poll()
        if self.process and code is not None and not self.told:
            self.told = True
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # bytes on macOS, kilobytes elsewhere
            megabytes = round(peak / (1e6 if sys.platform == "darwin" else 1e3))
            print(SAYS.format(code=code if code >= 0 else 128 - code, megabytes=megabytes), file=sys.stderr, flush=True)
        return code

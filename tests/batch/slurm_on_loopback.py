"""A real Slurm of two nodes on this machine, for tests: slurm-wlm and munge of Debian, own ports, own folder.

Its default partition has the first node only; partition `both` has two.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

NODES = ("first", "second")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
SEARCH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
CONF = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MaxArraySize=4
MinJobAge=3600
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName=first NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=16 RealMemory=8000
NodeName=second NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=16 RealMemory=8000
PartitionName=main Default=YES Nodes=first PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=first PriorityTier=2
PartitionName=both Nodes=first,second PriorityTier=1
"""


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]


@contextlib.contextmanager
def slurm_on_loopback():
    """Yields a running Slurm, to which SLURM_CONF points; at the end all its jobs and daemons are ended."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o711)  # munge's clients must reach its socket
    for name in ("state", "spool-first", "spool-second"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    host, ports = socket.gethostname().split(".")[0], [_free_port() for _ in range(3)]
    (folder / "slurm.conf").write_text(CONF.format(host=host, ports=ports, user=getpass.getuser(), folder=folder))
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    slurm = Slurm(folder)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        slurm.start("munged", *[f"--{option}={folder}/munge.{ending}" for option, ending in files.items()])
        slurm.start("slurmctld", "-c")
        for node in NODES:
            slurm.start("slurmd", "-N", node)
        until(lambda: slurm("sinfo", "--noheader", "--Node", "--partition=both", "--format=%T").split() == ["idle"] * 2)
        yield slurm
        until(lambda: slurm("scancel", f"--user={getpass.getuser()}") or not slurm("squeue", "--noheader"))
    finally:
        for name in (*(f"slurmd-{node}" for node in NODES), "slurmctld", "munge"):
            slurm.stop(name)
        del os.environ["SLURM_CONF"]
        shutil.rmtree(folder)


class Slurm:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def start(self, name: str, *arguments: str) -> None:
        subprocess.run([shutil.which(name, path=SEARCH), *arguments], check=True)

    def stop(self, name: str) -> None:
        file = self.folder / f"{name}.pid"
        if file.is_file():
            pid = int(file.read_text())
            os.kill(pid, signal.SIGTERM)
            until(lambda: not Path(f"/proc/{pid}").exists())

    def facts(self, job_id: str) -> dict[str, str]:
        """Returns what `scontrol show job` says."""
        return dict(part.split("=", 1) for part in self("scontrol", "show", "job", job_id).split() if "=" in part)

    def hurry(self, job_id: str, *changes: str) -> None:
        """Starts a job that was queued again, in spite of the two minutes for which Slurm would let it wait."""

        def waits() -> bool:
            return self.facts(job_id)["Reason"] == "BeginTime"

        def went_on() -> bool:  # where the two minutes have passed, on a busy machine
            facts = self.facts(job_id)
            return facts["Restarts"] != "0" and facts["JobState"] in ("RUNNING", "COMPLETED")

        until(lambda: waits() or went_on(), told=lambda: self.facts(job_id))
        if waits():
            # Not at once: what lets a task start is dated in whole seconds, and that of its earlier life was revoked.
            self("scontrol", "update", f"JobId={job_id}", "StartTime=now+2seconds", *changes)


def until(condition, seconds: float = 120.0, told=lambda: "it did not happen") -> None:
    """Waits for something that another process does; fails with what `told` returns."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, told()
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]

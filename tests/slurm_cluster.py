"""A real SLURM on this machine for the tests: munged, slurmctld and three slurmd, in a directory of its own.

Partitions and GRES are named as on Alpine, the GPUs are fake (links to /dev/null), the hardware is pretended, and
scheduling is quick: an eight-job afterok chain takes about two seconds. Nothing of it outlives `stop`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

SBIN = os.environ["PATH"] + os.pathsep + "/usr/sbin" + os.pathsep + "/sbin"
NODES = ("c1", "c2", "g1")
DONE = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


def lacking() -> str:
    """What keeps SLURM from running here; "" if nothing does."""
    absent = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name, path=SBIN)]
    return f"{', '.join(absent)} not installed (apt-get install slurmctld slurmd slurm-client munge)" if absent else ""


class Cluster:
    """The daemons, and what tests ask of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.conf = root / "slurm.conf"
        self.environment = {"SLURM_CONF": str(self.conf), "PATH": SBIN}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    # ---- life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything and wait until all nodes are idle; RuntimeError with the daemons' words otherwise."""
        for name in ("log", "state", "run", "dev", *(f"spool/{node}" for node in NODES)):
            (self.root / name).mkdir(parents=True)
        for gpu in range(3):
            (self.root / "dev" / f"nvidia{gpu}").symlink_to("/dev/null")
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self._configure()
        run = self.root / "run"
        self._spawn("munged", "--foreground", "--force", f"--socket={run}/munge.socket", f"--key-file={key}",
                    f"--log-file={self.root}/log/munged.log", f"--pid-file={run}/munged.pid",
                    f"--seed-file={run}/munged.seed", "--origin=127.0.0.1")  # fmt: skip
        self.until(lambda: (run / "munge.socket").exists(), 10, "munged")
        self._spawn("slurmctld", "-D", "-c", "-f", str(self.conf))
        for node in NODES:
            self.start_node(node)
        self.until(self._all_idle, 40, "all nodes idle")

    def _configure(self) -> None:
        root, ports, user = self.root, _free_ports(1 + len(NODES)), _user()
        lines = f"""
ClusterName=alpine
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/run/munge.socket,cred_expire=10
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd.%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
ProctrackType=proctrack/linuxproc
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
Epilog={root}/epilog.sh
MinJobAge=3600
KillWait=3
SlurmdTimeout=10
ReturnToService=2
EnforcePartLimits=ALL
JobCompType=jobcomp/filetxt
JobCompLoc={root}/log/jobcomp.log
NodeName=DEFAULT Sockets=1 CoresPerSocket=64 ThreadsPerCore=1 RealMemory=524288 State=UNKNOWN
NodeName=c1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]}
NodeName=c2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]}
NodeName=g1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[3]} Gres=gpu:a100_80gb:3
PartitionName=DEFAULT State=UP DefMemPerCPU=3840 DefaultTime=04:00:00 MaxTime=24:00:00 OverSubscribe=NO
PartitionName=acpu Nodes=c1,c2 Default=YES
PartitionName=aa100 Nodes=g1
PartitionName=atesting Nodes=c1,c2 MaxTime=01:00:00 DefaultTime=00:10:00
"""
        if socket.gethostbyname("localhost") == "127.0.0.1" and _host_is_loopback():
            lines += "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny\n"  # listen on loopback alone
        self.conf.write_text(lines)
        (root / "gres.conf").write_text(
            f"AutoDetect=off\nNodeName=g1 Name=gpu Type=a100_80gb File={root}/dev/nvidia[0-2] Flags=nvidia_gpu_env\n"
        )
        # v1 touches no file until it is used; detecting the version fails in a container without systemd.
        (root / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (root / "plugstack.conf").write_text("")
        # With an epilog slurmd reports a job's end at once, and dependents start without waiting for the next tick.
        epilog = root / "epilog.sh"
        epilog.write_text("#!/bin/sh\nexit 0\n")
        epilog.chmod(0o755)

    def _spawn(self, name: str, *arguments: str, key: str = "") -> None:
        with (self.root / "log" / f"{key or name}.err").open("ab") as errors:
            self._daemons[key or name] = subprocess.Popen(
                [shutil.which(name, path=SBIN) or name, *arguments],
                env=_outside_a_job() | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def start_node(self, node: str) -> None:
        """slurmd of a node, first or again."""
        self._spawn("slurmd", "-D", "-N", node, "-f", str(self.conf), key=f"slurmd {node}")

    def lose_node(self, node: str) -> None:
        """The node dies: its slurmd, its job steps and their processes, all at once."""
        self._daemons.pop(f"slurmd {node}").kill()
        for step in self._steps(f"{self.root}/log/slurmd.{node}.log"):
            _kill_tree(step)

    def _steps(self, mark: str) -> list[int]:
        """Processes named slurmstepd that hold a file whose path begins with `mark`."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (process / "comm").read_text().strip() == "slurmstepd" and any(
                    str(descriptor.readlink()).startswith(mark) for descriptor in (process / "fd").iterdir()
                ):
                    found.append(int(process.name))
        return found

    def stop(self) -> None:
        """Cancel every job, end every daemon, leave no process."""
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            self.cancel_all()
        for step in self._steps(str(self.root)):
            _kill_tree(step)
        for daemon in reversed(list(self._daemons.values())):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(5)
        self._daemons.clear()

    def cancel_all(self) -> None:
        """Cancel all jobs and wait until none runs: the state in which a test starts."""
        ids = self("squeue", "-h", "-o", "%A").split()
        if ids:
            self("scancel", *sorted(set(ids)))
        self.until(lambda: not self("squeue", "-h", "-o", "%A").split(), 20, "an empty queue")

    # ---- questions -------------------------------------------------------------------------------------------

    def __call__(self, *words: str) -> str:
        """Standard output of a SLURM command."""
        return subprocess.run(
            words, env=_outside_a_job() | self.environment, capture_output=True, text=True, timeout=30, check=False
        ).stdout

    def field(self, job: str, name: str) -> str:
        """A field of `scontrol show job`, "" where the job is not known."""
        for word in self("scontrol", "-o", "show", "job", job).split():
            if word.startswith(f"{name}="):
                return word.split("=", 1)[1]
        return ""

    def state(self, job: str) -> str:
        return self.field(job, "JobState")

    def wait(self, job: str, state: str | set[str] = DONE, seconds: float = 60) -> str:
        """Wait until the job is in (one of) the states; AssertionError names the state it is in."""
        wanted = {state} if isinstance(state, str) else state
        self.until(lambda: self.state(job) in wanted | DONE, seconds, f"job {job}: {' or '.join(sorted(wanted))}")
        assert self.state(job) in wanted, self("scontrol", "show", "job", job)
        return self.state(job)

    def release(self, job: str) -> None:
        """Let a requeued job start: SLURM keeps it for two minutes, so that its first run is surely gone."""
        self.until(lambda: self.state(job) == "PENDING", 20, f"job {job} pending again")
        time.sleep(2)
        self("scontrol", "update", f"jobid={job}", "starttime=now")

    def until(self, test: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait for a condition; AssertionError with the queue and slurmctld's last words after `seconds`."""
        end = time.monotonic() + seconds
        while not test():
            if time.monotonic() > end:
                words = (self.root / "log" / "slurmctld.err").read_text()[-1500:] if self._daemons else ""
                raise AssertionError(f"not within {seconds} s: {what}\n{self('squeue')}\n{words}")
            time.sleep(0.05)

    def _all_idle(self) -> bool:
        return self("sinfo", "-h", "-N", "-o", "%N %T").split().count("idle") >= len(NODES)


def _outside_a_job() -> dict[str, str]:
    """The environment without the marks of a job or a cluster that the tests may run in."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _host_is_loopback() -> bool:
    try:
        return socket.gethostbyname(socket.gethostname()).startswith("127.")
    except OSError:
        return False


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _end_with_parent() -> None:
    """In a new daemon: SIGTERM when the test process dies, however it dies (prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _kill_tree(process: int) -> None:
    """SIGKILL to a process, then to its descendants: a parent that is gone starts no new ones."""
    children = _children(process)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    for child in children:
        _kill_tree(child)


def _children(process: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = stat.read_text().rpartition(")")[2].split()[1]  # after "pid (name)": state, parent
            if int(parent) == process:
                found.append(int(stat.parent.name))
    return found

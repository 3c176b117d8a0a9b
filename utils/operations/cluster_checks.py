"""Would this cluster take the jobs? Each distinct request is tried by sbatch --test-only and compared with sinfo.

Both are needed: with EnforcePartLimits=NO, SLURM's default, sbatch accepts what no node or partition ever allows, and
the job is pending for ever. Torch-free; nothing is queued.
"""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from utils.core.environment import for_sbatch
from utils.core.errors import UserError
from utils.core.settings import Settings
from utils.core.text import one_line, slurm_time
from utils.operations.check import OK, PROBLEM, WARNING, Check
from utils.pipeline.stages import STAGES, Stage
from utils.slurm import cluster, sbatch
from utils.slurm.cluster import NoAnswer
from utils.slurm.multi_seed_submission import AGGREGATE
from utils.slurm.site import Site, resolve

TEST_SECONDS = 60
NO_CONTROLLER = re.compile(
    r"[Uu]nable to contact slurm controller|Communication connection failure|Socket timed out|Connection refused"
    r"|Zero Bytes were transmitted|Unable to connect|controller not responding"
)
CALLED_THAT = "try again in some minutes (scontrol ping tells); if it stays, ask the cluster's support"
EDIT = "edit SLURM_PARTITION, SLURM_QOS, SLURM_ACCOUNT or SLURM_GRES (sinfo; sacctmgr show assoc user=$USER)"


@dataclass(frozen=True)
class NodeKind:
    """Nodes of one kind in a partition, from sinfo. minutes: the partition's limit; inf where it has none."""

    partition: str
    minutes: float
    memory_mb: int
    cpus: int
    gres: str
    is_up: bool

    def gpus(self, kind: str) -> int:
        """How many GPUs of a kind ("gpu", "gpu:a100") such a node has."""
        found = re.findall(r"([^,(]+):(\d+)(?:\([^)]*\))?", self.gres)
        return sum(int(count) for name, count in found if f"{name.strip()}:".startswith(f"{kind}:"))


@dataclass(frozen=True)
class Request:
    """What one or more stages ask for alike. gres: "" for none."""

    partition: str
    qos: str
    gres: str
    memory_mb: int
    minutes: int
    cpus: int
    tasks: int

    def __str__(self) -> str:
        gpu = f", {self.gres}" if self.gres else ""
        return f"{slurm_time(self.minutes)}, {self.memory_mb / 1024:.0f} GB, {self.cpus} cores{gpu}"


def cluster_checks(settings: Settings) -> Iterator[Check]:
    """A line for SLURM where it cannot be asked, else one each for CPU and GPU jobs, or one for each refusal."""
    if not cluster.has_slurm():
        yield Check(WARNING, "SLURM", "sbatch is not found here", "on this machine: ./run_all.sh --local or --demo")
        return
    try:
        kinds = node_kinds()
    except NoAnswer as error:
        yield Check(PROBLEM, "SLURM", f"the controller does not answer, so nothing was tried: {error}", CALLED_THAT)
        return
    try:
        site = resolve(settings)
        sbatch.check_extra_options(settings)
    except UserError as error:
        yield Check(PROBLEM, "SLURM", str(error), "edit the cluster's lines in configs/experiment_config.py")
        return
    wanted, limits = requests(settings, site), qos_minutes()
    for name, gpu in (("CPU jobs", False), ("GPU jobs", True)):
        mine = {request: stages for request, stages in wanted.items() if stages[0].gpu == gpu}
        checks = [_try(request, stages, settings, site, kinds, limits) for request, stages in mine.items()]
        refused = [check for check in checks if check]
        if refused:
            yield from (replace(check, name=name) for check in refused)
            continue
        request = next(iter(mine))
        where = f"partition {request.partition or '(default)'}, QoS {request.qos or '-'}, account {site.account or '-'}"
        where += f", {request.gres}" if gpu else ""
        yield Check(OK, name, f"accepted: {where}; {len(mine)} different requests tried")


def requests(settings: Settings, site: Site) -> dict[Request, list[sbatch.Job]]:
    """The distinct requests of a run, and of the aggregate of several seeds, with the stages that make each."""
    found: dict[Request, list[sbatch.Job]] = {}
    jobs: list[sbatch.Job] = [*STAGES, AGGREGATE]
    for stage in jobs:
        request = Request(
            site.partition if stage.gpu else site.cpu_partition,
            site.qos if stage.gpu else site.cpu_qos,
            site.gres if stage.gpu else "",
            sbatch.memory_mb(stage, settings),
            sbatch.time_limit(stage, settings),
            settings.SLURM_CPUS_PER_TASK,
            sbatch.array_tasks(stage, settings),
        )
        found.setdefault(request, []).append(stage)
    return found


def _try(
    request: Request,
    stages: Sequence[sbatch.Job],
    settings: Settings,
    site: Site,
    kinds: Sequence[NodeKind],
    limits: Mapping[str, float],
) -> Check | None:
    """None if the request is within the limits of partition and QoS, and sbatch would take it."""
    names = ", ".join(stage.key if isinstance(stage, Stage) else "the aggregate of seeds" for stage in stages)
    if problem := beyond_limits(request, kinds) or _beyond_qos(request, limits):
        text, fix = problem
        return Check(PROBLEM, "", f"{names} ({request}): {text}", fix)
    words = sbatch.command(stages[0], settings, site, name="mono_s2s_validate", arguments=["--seed", "42"])
    words.insert(1, "--test-only")
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", env=for_sbatch(), timeout=TEST_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check(PROBLEM, "", f"{names}: sbatch --test-only: {error}", CALLED_THAT)
    answer = one_line(done.stderr or done.stdout or f"exit code {done.returncode}")
    if done.returncode == 0:
        return None
    if NO_CONTROLLER.search(answer):
        return Check(PROBLEM, "", f"the controller does not answer: {answer}", CALLED_THAT)
    where = f"partition {request.partition}, QoS {request.qos}, account {site.account}"
    return Check(PROBLEM, "", f"{names} refused with {where} ({request}): {answer}", EDIT)


def beyond_limits(request: Request, kinds: Sequence[NodeKind]) -> tuple[str, str] | None:
    """What no node of the request's partitions gives, and what to do; None if some node gives all of it."""
    names = [name.strip() for name in request.partition.split(",") if name.strip()]
    mine = [kind for kind in kinds if kind.partition in names] if names else list(kinds)
    if not mine:
        return None  # hidden, or nothing known: sbatch will say
    where = request.partition or "this cluster"
    if not any(kind.is_up for kind in mine):
        return f"partition {where} is down", "choose another SLURM_PARTITION or SLURM_CPU_PARTITION, or wait (sinfo -s)"
    kind_of_gpu, _, count = request.gres.rpartition(":") if request.gres[-1:].isdigit() else (request.gres, "", "1")
    gpu = kind_of_gpu.startswith("gpu") and "," not in request.gres
    fits = [
        (lambda kind: kind.minutes >= request.minutes, "time", lambda kind: kind.minutes),
        (
            lambda kind: kind.memory_mb <= 1 or kind.memory_mb >= request.memory_mb,
            "memory",
            lambda kind: kind.memory_mb,
        ),
        (lambda kind: kind.cpus >= request.cpus, "cores", lambda kind: kind.cpus),
        (lambda kind: not gpu or kind.gpus(kind_of_gpu) >= int(count), "GPUs", lambda kind: kind.gpus(kind_of_gpu)),
    ]
    if any(all(test(kind) for test, *_ in fits) for kind in mine if kind.is_up):
        return None
    for test, thing, value in fits:
        if not any(test(kind) for kind in mine):
            return _too_much(thing, max(value(kind) for kind in mine), where, request, kinds)
    return f"no single node of {where} gives all of it", EDIT


def _beyond_qos(request: Request, limits: Mapping[str, float]) -> tuple[str, str] | None:
    """`beyond_limits` of the request's QoS: sbatch accepts a longer job, which is then pending for ever."""
    if request.minutes <= (most := limits.get(request.qos, math.inf)):
        return None
    longer = sorted(name for name, minutes in limits.items() if minutes >= request.minutes)
    return (
        f"QoS {request.qos} allows {slurm_time(int(most))} at most: the job would wait for ever",
        "lower SLURM_TIME_SCALE (progress is saved, jobs requeue themselves), or another SLURM_QOS or SLURM_CPU_QOS"
        + (f"; QoS that allow it: {', '.join(longer)}" if longer else ""),
    )


def qos_minutes() -> dict[str, float]:
    """The time limit of each QoS, inf where it has none; empty where the cluster keeps no accounts."""
    try:
        text = cluster.ask("sacctmgr", "--noheader", "--parsable2", "show", "qos", "format=Name,MaxWall")
    except NoAnswer:
        return {}
    parts = (line.partition("|") for line in text.splitlines() if line.strip())
    return {name: minutes_of(limit) for name, _, limit in parts}


def _too_much(thing: str, most: float, where: str, request: Request, kinds: Sequence[NodeKind]) -> tuple[str, str]:
    if thing == "time":
        longer = sorted({k.partition for k in kinds if k.minutes >= request.minutes and (k.gres or not request.gres)})
        others = f"; partitions that allow it: {', '.join(longer)}" if longer else ""
        return (
            f"partition {where} allows {slurm_time(int(most))} at most: the job would wait for ever",
            f"lower SLURM_TIME_SCALE (progress is saved, jobs requeue themselves), or another partition{others}",
        )
    if thing == "memory":
        return (
            f"no node of {where} has more than {most / 1024:.0f} GB",
            "lower SLURM_MEMORY_SCALE, or another partition",
        )
    if thing == "cores":
        return f"no node of {where} has more than {most:.0f} cores", "lower SLURM_CPUS_PER_TASK"
    return (
        f"no node of {where} has {request.gres} (at most {most:.0f})",
        "edit SLURM_GRES or SLURM_PARTITION (sinfo -o '%P %G')",
    )


def node_kinds() -> list[NodeKind]:
    """Every kind of node in every partition that sinfo shows; NoAnswer if it does not answer."""
    text = cluster.ask("sinfo", "--all", "--noheader", "--format=%R|%l|%m|%c|%G|%a")
    kinds = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split("|")]
        if len(parts) != 6:
            continue
        name, limit, memory, cpus, gres, state = parts
        memory_mb, cores = (int(re.sub(r"\D", "", part) or 0) for part in (memory, cpus))  # 64+ where nodes differ
        kinds.append(NodeKind(name, minutes_of(limit), memory_mb, cores, "" if "null" in gres else gres, state == "up"))
    return kinds


def minutes_of(limit: str) -> float:
    """Minutes of a time limit as sinfo writes it: 30:00, 1:00:00, 2-00:00:00, infinite."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if not match:
        return math.inf
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return days * 1440 + hours * 60 + minutes + seconds / 60

"""The cluster settings as this cluster can take them: "a|b" resolved, and what its partitions allow. Torch-free."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from utils.core.errors import UsageError
from utils.core.settings import Settings
from utils.slurm.cluster import NoAnswer, ask


@dataclass(frozen=True)
class Site:
    """The cluster settings with every "a|b" resolved to one value; "" leaves the option out of the sbatch line."""

    account: str
    partition: str
    qos: str
    gres: str
    cpu_partition: str
    cpu_qos: str


def resolve(settings: Settings) -> Site:
    """The site settings as this cluster can take them; UsageError names every one that it cannot take.

    Where sinfo gives no answer, or there is none, the first candidates: sbatch will say what is wrong with them.
    """
    known, gres, qos = None, None, None
    if shutil.which("sinfo"):
        try:
            known = partitions()
        except NoAnswer:
            known = None
    if known is not None:
        qos = qos_names()
    problems: list[str] = []

    def choose(name: str, available: Sequence[str] | None, names_of: Callable[[str], list[str]] = _parts) -> str:
        try:
            return first(name, str(getattr(settings, name)), available, names_of)
        except UsageError as error:
            problems.append(str(error))
            return ""

    partition = choose("SLURM_PARTITION", known)
    cpu_partition = choose("SLURM_CPU_PARTITION", known)
    if known is not None:
        gres = gres_of(partition)  # of all nodes where the partition is wrong: a GRES that no node has is named as well
    site = Site(
        account=settings.SLURM_ACCOUNT,
        partition=partition,
        cpu_partition=cpu_partition,
        qos=choose("SLURM_QOS", qos),
        cpu_qos=choose("SLURM_CPU_QOS", qos),
        gres=choose("SLURM_GRES", gres, _gres_names),
    )
    if problems:
        raise UsageError(" ".join(problems))
    return site


def first(
    name: str, value: str, available: Sequence[str] | None, names_of: Callable[[str], list[str]] | None = None
) -> str:
    """The first of the candidates "a|b,c|d" whose names are all available (None: unknown, so the first).

    A candidate may be a list, as sbatch takes it, or empty: the option is then left out. UsageError if none fits.
    """
    candidates = [part.strip() for part in value.split("|")]
    for candidate in candidates:
        if available is None or all(item in available for item in (names_of or _parts)(candidate)):
            return candidate
    raise UsageError(f"{name}={value}: this cluster has none of them. It has {', '.join(available or ()) or 'none'}.")


def partitions() -> list[str]:
    """Names of the partitions, hidden ones included."""
    return _unique(ask("sinfo", "--all", "--noheader", "--format=%R").split())


def qos_names() -> list[str] | None:
    """Names of the QoS, None where the cluster keeps no accounts or does not tell."""
    try:
        return _unique(ask("sacctmgr", "--noheader", "--parsable2", "show", "qos", "format=Name").split()) or None
    except NoAnswer:
        return None


def gres_of(partition: str) -> list[str] | None:
    """GRES of the nodes of a partition (of a list, of all where it is ""), as they are asked for, without numbers."""
    where = [f"--partition={partition}"] if partition else ["--all"]
    try:
        text = ask("sinfo", "--noheader", *where, "--format=%G")
    except NoAnswer:
        return None
    found = []
    for item in re.sub(r"\([^)]*\)", "", text).replace("\n", ",").split(","):
        name = _without_count(item)
        if name and name != "null":
            found += [name, name.split(":")[0]]
    return _unique(found)


def _parts(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _gres_names(value: str) -> list[str]:
    return [_without_count(part) for part in _parts(value)]


def _without_count(gres: str) -> str:
    return re.sub(r":\d+[KMGT]?$", "", gres.strip())


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))

"""What runs or waits in a work directory, so that nothing is deleted or repeated under it. Torch-free.

Known from the queue (recorded jobs, and jobs typed by hand) and from the locks that stages and local runs hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from utils.core.errors import UsageError
from utils.core.locks import is_locked
from utils.core.paths import Paths
from utils.operations.seed_facts import SeedFacts, collect
from utils.slurm import cluster
from utils.slurm.cluster import NoAnswer
from utils.slurm.live_jobs import at_work_here


def refuse_while_running(paths: Paths, seeds: Sequence[int] | None) -> str:
    """UsageError that names what runs or waits for these seeds (None: for any), and how to end it.

    NoAnswer where SLURM does not say what became of recorded jobs. Returns what could not be looked at, in sentences.
    """
    silence = ""
    for facts in collect(seeds, paths, flags=False):
        for text in running(facts, paths, shared=seeds is None):
            raise UsageError(text)
        if facts.unknown:
            raise NoAnswer(f"{facts.unknown} Whether jobs of seed {facts.seed} run is not known.")
        silence = facts.silence
    if seeds is None and is_locked(paths.runs / "submission.lock"):
        raise UsageError("a submission is being made here. Wait until it is done.")
    notes = [f"{silence} Jobs that were submitted by hand are not seen."] if silence and cluster.has_slurm() else []
    if any(is_locked(path) is None for path in paths.work.glob("*/*.lock")):
        notes.append(f"{paths.work} has no file locks (or not ours): a stage or local run here is not seen.")
    return " ".join(notes)


def running(facts: SeedFacts, paths: Paths, *, shared: bool) -> Iterator[str]:
    """Sentences about what runs or waits for this seed. `shared`: setup and data count as well."""
    seed = facts.seed
    if facts.live_ids:
        ids = ", ".join(facts.live_ids)
        yield f"seed {seed} has jobs in the queue ({ids}). Cancel them: ./run_all.sh --cancel {seed}"
    for aggregate in facts.aggregates:
        if aggregate.job.live:
            record = aggregate.record
            yield f"the {record} is in the queue ({aggregate.job.job_id}). Cancel it: {record.command} --cancel"
    for stage in (stage for stage in facts.stages if stage.stage.per_seed or shared):
        yield from (f"{job}. Cancel it: scancel {job.state.job_id}" for job in stage.by_hand)
    yield from at_work_here(seed, paths, shared=shared)

"""What the user asked for, as the command line read it. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunOptions:
    """run_all.sh. `executor` is slurm or local; stages `first` to `last` are wanted.

    `after`: job ids that have to end, however they end, before the seed's own stages start; `after_for_data`: before
    setup and data. `made_by`: id of a run of the same command that makes setup and data for this seed, too.
    """

    seed: int
    executor: str
    demo: bool = False
    first: int = 0
    last: int = 7
    force: bool = False
    dry_run: bool = False
    cancel: bool = False
    after: tuple[str, ...] = ()
    after_for_data: tuple[str, ...] = ()
    made_by: str = ""


@dataclass(frozen=True)
class MultiSeedOptions:
    """run_multi_seed.sh: at least two different seeds, in the order given; `variants`: a file of experiments, or ""."""

    seeds: tuple[int, ...]
    executor: str
    demo: bool = False
    force: bool = False
    dry_run: bool = False
    cancel: bool = False
    variants: str = ""

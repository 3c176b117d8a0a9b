"""The whole tree of multi_seed_results.json: what several seeds say together, in figures and words. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from utils.analysis.final import Sentences, Sha256, Surroundings
from utils.analysis.multi_seed import SeedResults, SeedRun
from utils.analysis.records import Count
from utils.analysis.results import Seconds
from utils.core.codec import Pattern
from utils.core.files import sha256_of

COMBINED = "multi_seed_results.json"
# What is read of a seed; its final_results.json holds the hashes of all its other files.
READ = ("final_results.json", "predictions.jsonl", "hotflip_records.jsonl", "uat_records.jsonl")


@dataclass(frozen=True, kw_only=True)
class CombinedResults(SeedResults):
    """What several seeds say together, and the answer in words."""

    verdict: Sentences
    mixed: Annotated[list[str], "what differs between the runs besides the seed, with --allow-mixed"]


@dataclass(frozen=True, kw_only=True)
class CombinedMetadata(Surroundings):
    """When, where and from what the seeds were put together."""

    timestamp: Annotated[str, Pattern(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"), "local time"]
    run_id: Annotated[str, Pattern(r"\d{8}_\d{6}_seeds(_\d+)+")]
    seed: Annotated[list[Count], "of the trainings"]
    unix_timestamp: float
    profile: Literal["full", "quick", "demo"]
    full_test_sets: bool
    settings: Annotated[dict[str, Any], "that the numbers depend on"]
    config_fingerprint: Annotated[str, "of the first seed's settings"]
    seconds: Seconds
    inputs: Annotated[dict[str, Sha256], "files of the seeds that this was made from"]
    files: Annotated[dict[str, Sha256], "every other file of this directory"]


@dataclass(frozen=True, kw_only=True)
class CombinedFile:
    """multi_seed_results.json of mono-s2s.

    ROUGE, rates and shares are from 0 to 1, losses in nats per token, times in seconds.
    """

    results: CombinedResults
    _metadata: CombinedMetadata


def inputs_of(runs: Sequence[SeedRun]) -> dict[str, str]:
    """sha256 of each file that the seeds' results are put together from, by path."""
    return {str(run.directory / name): sha256_of(run.directory / name) for run in runs for name in READ}

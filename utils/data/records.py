"""What stage 1 writes about the data, as types: statistics of a split, of a set, of everything, and the manifest.

JSON in data_statistics.json, statistics.json and manifest.json; shares are in [0, 1], lengths in words or tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class TextFacts:
    """What is noticed about the text of one row that stays.

    `summary_longer`: in characters. `identical`: document and summary. `written_list`: a cell such as "['a', 'b']" or
    "'a b'", a program's value that was written as text. `unreadable`: characters without a piece in the vocabulary, of
    `characters` looked at; `unknown_tokens`: <unk> among the `tokens` of document and summary.
    """

    summary_longer: bool
    identical: bool
    written_list: bool
    characters: int
    unreadable: Mapping[str, int]
    tokens: int
    unknown_tokens: int


@dataclass(frozen=True)
class Unknown:
    """What the vocabulary cannot read: shares of characters and of tokens, and the most frequent characters."""

    characters: float
    tokens: float
    examples: str


@dataclass(frozen=True)
class SideFacts:
    """Documents or summaries of a split: quantiles and histograms of lengths, and the share cut at `token_limit`."""

    words: dict[str, Any]
    tokens: dict[str, Any]
    token_limit: int
    share_truncated: float


@dataclass(frozen=True)
class SplitFacts:
    """One split. Everything from `document` on is None, and not in the JSON, where nothing was kept.

    raw = usable + rows without (enough) text + rows not drawn; usable = kept + repeats and overlaps that left.
    `removed` counts rows by reason, `repeated_documents` rows whose document came before, removed or not.
    `several_references`: rows with alternative summaries, of which the first is used. `compression`: words of the
    document per word of summary. `sampled`: of up to 1,000 rows novelty, lead-3 ROUGE and the share that has the most
    frequent summary.
    """

    raw: int
    usable: int
    kept: int
    removed: dict[str, int]
    repeated_documents: int
    several_references: int
    document: SideFacts | None = None
    summary: SideFacts | None = None
    compression: float | None = None
    summary_longer: float | None = None
    identical: float | None = None
    written_lists: float | None = None
    unknown: Unknown | None = None
    sampled: dict[str, Any] | None = None


@dataclass(frozen=True)
class SetFacts:
    """One data set: its name and terms, where it came from, `in_domain` (training sets that contain it), its splits."""

    title: str
    role: str
    licence: str
    note: str
    own: bool
    in_domain: list[str]
    origin: dict[str, Any]
    splits: dict[str, SplitFacts]


@dataclass(frozen=True)
class PreparedSet:
    """A data set of the prepared directory: its rows and the hash of its content."""

    rows: int
    sha256: str


@dataclass(frozen=True)
class DataStatistics:
    """Everything that is told about the data: what reports print and later stages check."""

    sets: dict[str, SetFacts]
    missing: dict[str, str]
    prepared: dict[str, PreparedSet]
    overlap: list[dict[str, Any]]
    duplicates: list[dict[str, Any]]
    attack_dataset: str
    deduplicate_training: bool
    overlap_method: dict[str, Any]
    removed_ids: str
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        content = asdict(self)
        for entry in content["sets"].values():
            for split, facts in entry["splits"].items():
                entry["splits"][split] = {name: value for name, value in facts.items() if value is not None}
        return content


@dataclass(frozen=True)
class Manifest:
    """What a prepared directory holds and what made it; `key` is the hash of `made_from`."""

    format: int
    key: str
    made_from: dict[str, Any]
    missing: dict[str, str]
    sets: dict[str, PreparedSet]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

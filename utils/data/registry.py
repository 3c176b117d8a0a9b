"""The data sets: place on the hub, columns, expected row counts; and how DATASETS_FILE changes them.

Ids carry their namespace (the client refuses bare names). Row counts are of the published sets; a download with
others is refused, because a test set with other rows is another test set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from utils.core.errors import InputError, UsageError

SUFFIXES = {".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True)
class Mirror:
    """One place on the hub that has a data set: a repository and a revision of it (branch, tag, ref or commit)."""

    repository: str
    revision: str = "main"


@dataclass(frozen=True)
class DatasetSource:
    """One data set.

    `splits` maps the splits that are needed to their names in the repository; nothing else is downloaded. `mirrors`
    are tried in order after `repository`. `raw_rows` are the rows of each split as published, `row_tolerance` the
    share by which a copy may differ (0: not at all); `usable_rows` those with text. `contains` names sets whose
    training part is inside this one. With `files` (split -> local files) nothing comes from the hub.
    """

    key: str
    title: str
    role: str
    document: str
    summary: str
    splits: Mapping[str, str]
    repository: str = ""
    config: str = "default"
    revision: str = "main"
    mirrors: tuple[Mirror, ...] = ()
    raw_rows: Mapping[str, int] = field(default_factory=dict)
    usable_rows: Mapping[str, int] = field(default_factory=dict)
    row_tolerance: float = 0.0
    licence: str = ""
    note: str = ""
    contains: tuple[str, ...] = ()
    files: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)

    @property
    def hub_copies(self) -> tuple[Mirror, ...]:
        """Every place on the hub to try, in order."""
        return (Mirror(self.repository, self.revision), *self.mirrors)


_TRAIN = {"train": "train", "validation": "validation"}
_CONVERTED = "refs/convert/parquet"  # the hub's own conversion: for repositories that hold a loading script

DEFAULTS: tuple[DatasetSource, ...] = (
    DatasetSource(
        key="dialogsum",
        title="DialogSum",
        role="train",
        repository="knkarthick/dialogsum",
        mirrors=(Mirror("knkarthick/dialogsum", _CONVERTED),),
        document="dialogue",
        summary="summary",
        splits=_TRAIN,
        raw_rows={"train": 12460, "validation": 500},
        licence="CC BY-NC-SA 4.0",
        note="two-speaker dialogues; about 600 of the training dialogues are repeats",
    ),
    DatasetSource(
        key="highlightsum",
        title="HighlightSum",
        role="train",
        repository="knkarthick/highlightsum",
        mirrors=(Mirror("knkarthick/highlightsum", _CONVERTED),),
        document="dialogue",
        summary="summary",
        splits=_TRAIN,
        raw_rows={"train": 27401, "validation": 1360},
        row_tolerance=0.02,  # inferred from the sizes of its parts, never counted
        licence="MIT on its card; its parts are CC BY-NC-SA and CC BY-NC-ND 4.0",
        note="DialogSum, SAMSum and AMI in one",
        contains=("dialogsum", "samsum"),
    ),
    DatasetSource(
        key="arxiv",
        title="arXiv",
        role="train",
        repository="ccdv/arxiv-summarization",
        config="document",  # the whole paper from its first line; "section" marks sections inside the text
        mirrors=(Mirror("ccdv/arxiv-summarization", _CONVERTED),),
        document="article",
        summary="abstract",
        splits=_TRAIN,
        raw_rows={"train": 203037, "validation": 6436},
        licence="none stated",
        note="scientific papers and their abstracts",
    ),
    DatasetSource(
        key="cnn_dm",
        title="CNN/DM",
        role="test",
        repository="abisee/cnn_dailymail",
        config="3.0.0",
        mirrors=(Mirror("abisee/cnn_dailymail", _CONVERTED),),
        document="article",
        summary="highlights",
        splits={"test": "test", "validation": "validation"},
        raw_rows={"test": 11490, "validation": 13368},
        licence="Apache-2.0 on its card; publisher text",
        note="news with highlights; its validation part is for optimising triggers",
    ),
    DatasetSource(
        key="xsum",
        title="XSum",
        role="test",
        repository="EdinburghNLP/xsum",
        mirrors=(Mirror("EdinburghNLP/xsum", _CONVERTED),),
        document="document",
        summary="summary",
        splits={"test": "test"},
        raw_rows={"test": 11334},
        usable_rows={"test": 11333},
        licence="none stated; BBC text",
        note="news, one-sentence summaries",
    ),
    DatasetSource(
        key="samsum",
        title="SAMSum",
        role="test",
        repository="knkarthick/samsum",
        mirrors=(Mirror("knkarthick/samsum", _CONVERTED),),
        document="dialogue",
        summary="summary",
        splits={"test": "test"},
        raw_rows={"test": 819},
        licence="CC BY-NC-ND 4.0",
        note="messenger chats; the original repository has left the hub",
    ),
)
_TEXT_FIELDS = ("document", "summary", "repository", "config", "revision", "licence", "note")
_FIELDS = (*_TEXT_FIELDS, "files", "contains")


def sources(datasets_file: Path | None = None) -> dict[str, DatasetSource]:
    """The six sources by key, changed by `datasets_file` where it is given.

    The file is JSON, for example {"dialogsum": {"files": {"train": "d/train.csv", "validation": "d/val.csv"},
    "document": "dialogue", "summary": "summary"}}. A split is one file, a list of files or a directory of them
    (.jsonl, .csv, .parquet); relative paths start at the JSON file. A field that is not given keeps its default.
    UsageError for a file that says something unknown, InputError for a path that is not there.
    """
    known = {source.key: source for source in DEFAULTS}
    if datasets_file is None:
        return known
    for key, entry in _read(datasets_file).items():
        if key not in known:
            raise UsageError(f"{datasets_file}: no data set is called {key!r}; there are {', '.join(known)}.")
        known[key] = _changed(known[key], entry, datasets_file)
    return known


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"DATASETS_FILE={path}: no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"DATASETS_FILE={path}: cannot be read ({error}).") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {error.lineno}: not JSON ({error.msg}).") from None
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise UsageError(f'{path}: expected {{"dialogsum": {{"files": ...}}, ...}}.')
    return content


def _changed(source: DatasetSource, entry: dict[str, Any], path: Path) -> DatasetSource:
    unknown = sorted(set(entry) - set(_FIELDS))
    if unknown:
        raise UsageError(f"{path}, {source.key}: no field {unknown[0]!r}; there are {', '.join(_FIELDS)}.")
    for name in _TEXT_FIELDS:
        if name in entry and not (isinstance(entry[name], str) and entry[name]):
            raise UsageError(f"{path}, {source.key}: {name} must be a text.")
    changes: dict[str, Any] = {name: entry[name] for name in _TEXT_FIELDS if name in entry}
    if {"repository", "files"} <= set(entry):
        raise UsageError(f"{path}, {source.key}: give either files or repository.")
    if "repository" in entry and entry["repository"].count("/") != 1:
        raise UsageError(f"{path}, {source.key}: repository must be namespace/name, not {entry['repository']!r}.")
    if {"repository", "files"} & set(entry):  # another copy: nothing that we know about the published one holds
        changes |= {"mirrors": (), "raw_rows": {}, "usable_rows": {}}
    if "contains" in entry:
        if not isinstance(entry["contains"], list) or not all(isinstance(key, str) for key in entry["contains"]):
            raise UsageError(f"{path}, {source.key}: contains must be a list of data sets.")
        changes["contains"] = tuple(entry["contains"])
    if "files" in entry:
        changes["files"] = _files(source, entry["files"], path)
    return replace(source, **changes)


def _files(source: DatasetSource, value: Any, path: Path) -> dict[str, tuple[Path, ...]]:
    if not isinstance(value, dict):
        raise UsageError(f'{path}, {source.key}: files must be {{"SPLIT": "path", ...}}.')
    absent = sorted(set(source.splits) - set(value))
    if absent:
        raise UsageError(f"{path}, {source.key}: files for the split {absent[0]!r} are not given.")
    files = {}
    for split in source.splits:
        given = value[split] if isinstance(value[split], list) else [value[split]]
        if not given or not all(isinstance(item, str) and item for item in given):
            raise UsageError(f"{path}, {source.key}: files for {split!r} must be a path or a list of paths.")
        files[split] = tuple(file for item in given for file in _expanded(path.parent / item, path, source.key))
    return files


def _expanded(file: Path, path: Path, key: str) -> list[Path]:
    if file.is_dir():
        inside = sorted(child for child in file.iterdir() if child.suffix.lower() in SUFFIXES)
        if not inside:
            raise InputError(f"{file}: no .jsonl, .csv or .parquet file in this directory ({path}, {key}).")
        return inside
    if not file.is_file():
        raise InputError(f"{file}: no such file ({path}, {key}).")
    if file.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{file}: expected .jsonl, .csv or .parquet ({path}, {key}).")
    return [file]

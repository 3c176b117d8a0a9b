"""The data sets: place on the hub, columns, expected row counts; and how DATASETS_FILE changes them or adds others.

Ids carry their namespace (the client refuses bare names). Row counts are of the published sets; a download with
others is refused, because a test set with other rows is another test set.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from utils.core.errors import InputError, UsageError
from utils.data.cleaning import clean_text
from utils.data.discovery import SPLITS, NoFiles, directory_files
from utils.data.readers import LISTS, SUFFIX_NAMES, format_of

NOT_STATED = "not stated"


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
    training part is inside this one. With `files` (split -> local files) nothing comes from the hub. `document_list`
    and `summary_list` tell what a cell with a list is (readers.LISTS); `own`: the user's data, not a published set.
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
    document_list: str = ""
    summary_list: str = ""
    encoding: str = "utf-8"
    own: bool = False

    @property
    def hub_copies(self) -> tuple[Mirror, ...]:
        """Every place on the hub to try, in order."""
        return (Mirror(self.repository, self.revision), *self.mirrors)

    @property
    def reading(self) -> dict[str, str]:
        """Keyword arguments of `readers.read_rows`: columns, lists, encoding."""
        names = ("document", "summary", "document_list", "summary_list", "encoding")
        return {name: getattr(self, name) for name in names}


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
        note="two-speaker dialogues; 965 training rows leave as repeats of others",
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
_TEXT_FIELDS = (
    *("title", "document", "summary", "repository", "config", "revision", "licence", "note"),
    *("document_list", "summary_list", "encoding"),
)
_FIELDS = (*_TEXT_FIELDS, "files", "splits", "contains", "copy")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{,63}")  # it becomes part of file names
_RESERVED = "comparisons"  # stands beside the sets in the results
_COLUMNS = ("document", "summary")


def sources(datasets_file: Path | None = None) -> dict[str, DatasetSource]:
    """The six sources by key, changed and added to by `datasets_file` where it is given.

    The file is JSON, for example {"dialogsum": {"files": {"train": "d/train.csv", "validation": "d/val.csv"},
    "document": "dialogue", "summary": "summary"}}; docs/own-data.md has every field. A split is one file, a list of
    files or a directory of them; relative paths start at the JSON file. A key that is none of the six is a further
    data set. UsageError for a file that says something unknown, InputError for a path that is not there.
    """
    known = {source.key: source for source in DEFAULTS}
    if datasets_file is None:
        return known
    entries = _read(datasets_file)
    for key, entry in entries.items():
        known[key] = _changed(known.get(key) or _added(key, entry, datasets_file), entry, datasets_file)
    for key in entries:
        strange = sorted(set(known[key].contains) - set(known))
        if strange:
            raise UsageError(f"{datasets_file}, {key}: contains {strange[0]!r}; there are {', '.join(known)}.")
    return known


def chosen_sources(
    known: Mapping[str, DatasetSource], train_keys: Sequence[str], test_keys: Sequence[str], attack_key: str
) -> dict[str, DatasetSource]:
    """The sources that an experiment uses, each with its role and the splits that it needs there.

    Training sets: train and validation. Test sets: test; the one that attacks are measured on also validation.
    UsageError for a key that is not known; InputError for files that do not hold a split.
    """
    for key in (*train_keys, *test_keys):
        if key not in known:
            fix = "Describe it in DATASETS_FILE (docs/own-data.md)"
            raise UsageError(f"no data set is called {key!r}; there are {', '.join(known)}. {fix}.")
    chosen: dict[str, DatasetSource] = {}
    for key in dict.fromkeys((*train_keys, *test_keys)):
        for other in chosen.values():
            if other.title == known[key].title:
                raise UsageError(
                    f"{other.key} and {key} both have the title {other.title!r}. Give one of them another."
                )
        source, needed = known[key], set()
        if key in train_keys:
            needed |= {"train", "validation"}
        if key in test_keys:
            needed |= {"test", "validation"} if key == attack_key else {"test"}
        if key in test_keys and source.summary_list == "references":
            raise UsageError(
                f"{key}: a test set with several references a row is not scored here, each summary has one. Give every "
                'reference a row of its own with the document again, or "sentences" where the list is one summary.'
            )
        splits = {split: source.splits.get(split, split) for split in SPLITS if split in needed}
        if source.files and (absent := [split for split in splits if split not in source.files]):
            raise InputError(f"{key}: files for the split {absent[0]!r} are not given (DATASETS_FILE).")
        files = {split: source.files[split] for split in splits} if source.files else {}
        role = "test" if key in test_keys else "train"
        chosen[key] = replace(source, role=role, splits=splits, files=files)
    return chosen


def _read(path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        doubled = [name for name in names if names.count(name) > 1]
        if doubled:
            raise UsageError(f"{path}: {doubled[0]!r} is given twice. Keep one of them.")
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
    except FileNotFoundError:
        raise InputError(f"DATASETS_FILE={path}: no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"DATASETS_FILE={path}: cannot be read ({error}).") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {error.lineno}: not JSON ({error.msg}).") from None
    except RecursionError:
        raise UsageError(f"{path}: not JSON that can be read (lists inside each other without end).") from None
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise UsageError(f'{path}: expected {{"dialogsum": {{"files": ...}}, ...}}.')
    return content


def _added(key: str, entry: dict[str, Any], path: Path) -> DatasetSource:
    if not _KEY.fullmatch(key) or key == _RESERVED:
        raise UsageError(
            f"{path}: {key[:80]!r} must be made of up to 64 letters, digits, _ and -, and not be {_RESERVED}."
        )
    for name in ("document", "summary"):
        if name not in entry:
            raise UsageError(f"{path}, {key}: a further data set needs {name}, the name of that column.")
    if not {"files", "repository"} & set(entry):
        raise UsageError(f"{path}, {key}: a further data set needs files or repository.")
    if entry.get("copy"):
        raise UsageError(f"{path}, {key}: copy is for the published sets, and this is none of them.")
    return DatasetSource(key, key, "", entry["document"], entry["summary"], {})


def _changed(source: DatasetSource, entry: dict[str, Any], path: Path) -> DatasetSource:
    key = source.key
    unknown = sorted(set(entry) - set(_FIELDS))
    if unknown:
        raise UsageError(f"{path}, {key}: no field {unknown[0]!r}; there are {', '.join(_FIELDS)}.")
    for name in _TEXT_FIELDS:
        if name in entry and not (isinstance(entry[name], str) and entry[name].strip()):
            raise UsageError(f"{path}, {key}: {name} must be a text.")
    # In tables and cards a text is one line; the name of a column is what it is.
    changes: dict[str, Any] = {
        name: entry[name] if name in _COLUMNS else " ".join(clean_text(entry[name]).split())
        for name in _TEXT_FIELDS
        if name in entry
    }
    if {"repository", "files"} <= set(entry):
        raise UsageError(f"{path}, {key}: give either files or repository.")
    if "repository" in entry and entry["repository"].count("/") != 1:
        raise UsageError(f"{path}, {key}: repository must be namespace/name, not {entry['repository']!r}.")
    if entry.get("copy", False) not in (True, False):
        raise UsageError(f"{path}, {key}: copy must be true or false.")
    _check_reading(source, entry, path)
    if {"repository", "files"} & set(entry):
        changes["mirrors"] = ()
        if not entry.get("copy"):  # other data: nothing that is known about the published set is true of them
            blank: dict[str, Any] = {"title": key, "licence": NOT_STATED, "note": "", "contains": (), "splits": {}}
            blank |= {"config": "", "revision": "main", "raw_rows": {}, "usable_rows": {}, "own": True}
            changes = blank | changes
    if "contains" in entry:
        if not isinstance(entry["contains"], list) or not all(isinstance(item, str) for item in entry["contains"]):
            raise UsageError(f"{path}, {key}: contains must be a list of data sets.")
        changes["contains"] = tuple(entry["contains"])
    if "splits" in entry:
        changes["splits"] = {**changes.get("splits", source.splits), **_splits(entry["splits"], key, path)}
    if "files" in entry:
        named = changes.get("splits", source.splits)
        changes["files"] = _files(replace(source, splits=named, config=changes.get("config", "")), entry["files"], path)
    return replace(source, **changes)


def _check_reading(source: DatasetSource, entry: dict[str, Any], path: Path) -> None:
    for side, allowed in (("document_list", LISTS[:1]), ("summary_list", LISTS)):
        if side in entry and entry[side] not in allowed:
            raise UsageError(f"{path}, {source.key}: {side} must be {' or '.join(allowed)}, not {entry[side]!r}.")
    if entry.get("document", source.document) == entry.get("summary", source.summary):
        raise UsageError(f"{path}, {source.key}: document and summary are the same column.")
    try:
        b"ab".decode(entry.get("encoding", "utf-8"), "replace")
    except (LookupError, ValueError):  # also hex and idna, which are no encodings of texts
        raise UsageError(f"{path}, {source.key}: there is no encoding {entry['encoding']!r}.") from None


def _splits(value: Any, key: str, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(name, str) and name for name in value.values()):
        raise UsageError(f'{path}, {key}: splits must be {{"validation": "its name there", ...}}.')
    _known_splits(value, key, path)
    return dict(value)


def _known_splits(names: Collection[str], key: str, path: Path) -> None:
    for name in names:
        if name not in SPLITS:
            raise UsageError(f"{path}, {key}: no split {name!r}; there are {', '.join(SPLITS)}.")


def _files(source: DatasetSource, value: Any, path: Path) -> dict[str, tuple[Path, ...]]:
    if not isinstance(value, dict):
        raise UsageError(f'{path}, {source.key}: files must be {{"SPLIT": "path", ...}}.')
    _known_splits(value, source.key, path)
    absent = sorted(set(source.splits) - set(value))
    if absent:
        raise UsageError(f"{path}, {source.key}: files for the split {absent[0]!r} are not given.")
    files = {}
    for split in (name for name in SPLITS if name in value):
        given = value[split] if isinstance(value[split], list) else [value[split]]
        if not given or not all(isinstance(item, str) and item for item in given):
            raise UsageError(f"{path}, {source.key}: files for {split!r} must be a path or a list of paths.")
        try:
            places = [path.parent / Path(item).expanduser() for item in given]
            files[split] = tuple(file for place in places for file in _expanded(place, split, source, path))
        except (OSError, RuntimeError) as error:  # a name that is too long, the home of nobody
            raise InputError(f"{path}, {source.key}/{split}: {' '.join(str(error).split())[:200]}.") from None
    return files


def _expanded(file: Path, split: str, source: DatasetSource, path: Path) -> list[Path]:
    if file.is_dir():
        try:
            return directory_files(file, source.splits.get(split, split), config=source.config)
        except NoFiles as error:
            fix = f'Name the files, or the split by "splits": {{"{split}": "..."}}'
            raise InputError(f"{file}: {error} ({path}, {source.key}/{split}). {fix}.") from None
    if not file.is_file():
        raise InputError(f"{file}: no such file ({path}, {source.key}).")
    if format_of(file) is None:
        raise UsageError(f"{file}: expected {SUFFIX_NAMES} ({path}, {source.key}).")
    if (called := source.splits.get(split, split)) != split:
        fix = "Name its directory, or remove the entry from splits"
        raise UsageError(f"{path}, {source.key}: splits has {called!r} for {split}, but files names a file. {fix}.")
    return [file]

"""Fetch the files of each data set (local or hub) and stream their rows from JSONL, CSV or parquet.

Files are read as a stream with the reader of their format, only the two columns that are needed, everything as text:
a dialogue "N/A" stays one, and 3.5 GB of papers never stand in memory.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.core.errors import StageError
from utils.core.files import sha256_of
from utils.data.cleaning import as_text
from utils.data.hub import (
    Exhausted,
    Pin,
    RemoteFile,
    RetryOptions,
    Unavailable,
    UnknownRevision,
    download,
    resolve,
    split_files,
    sweep_broken_downloads,
)
from utils.data.registry import SUFFIXES, DatasetSource, Mirror

ROWS_AT_A_TIME = 500

log = logging.getLogger("mono_s2s.data")


@dataclass(frozen=True)
class Row:
    """A row as published: its number in the split (from 0) and its two texts, not cleaned."""

    number: int
    document: str
    summary: str


@dataclass(frozen=True)
class Fetched:
    """The local files of one data set by split, and where they came from (JSON-ready)."""

    files: dict[str, tuple[Path, ...]]
    origin: dict[str, Any] = field(default_factory=dict)


def local_files(source: DatasetSource) -> Fetched:
    """The files that the registry names, with their hashes; they were checked to exist when it was read."""
    hashes = {str(path): sha256_of(path) for paths in source.files.values() for path in paths}
    origin = {"from": "local files", "files": {path: {"sha256": digest} for path, digest in hashes.items()}}
    return Fetched({split: tuple(paths) for split, paths in source.files.items()}, origin)


def read_rows(files: Sequence[Path], document: str, summary: str) -> Iterator[Row]:
    """The rows of `files` in order, numbered through.

    A list in the document column is joined by spaces (sentences), of a list in the summary column the first item is
    used (references). StageError names the file and what is wrong: a column that is not there and those that are, a
    line that cannot be read, a cell that is no text.
    """
    number = 0
    for path in files:
        for document_cell, summary_cell in _READERS[SUFFIXES[path.suffix.lower()]](path, document, summary):
            texts = as_text(document_cell), as_text(summary_cell, first=True)
            for column, text in zip((document, summary), texts, strict=True):
                if text is None:
                    raise StageError(f"{path}, row {number}: column {column!r} holds something that is not text.")
            yield Row(number, texts[0] or "", texts[1] or "")
            number += 1


def _jsonl(path: Path, document: str, summary: str) -> Iterator[tuple[Any, Any]]:
    with path.open("rb") as handle:
        for line_number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise StageError(f"{path}, line {line_number}: not JSON ({error}).") from None
            if not isinstance(row, dict):
                raise StageError(f"{path}, line {line_number}: expected an object with named columns.")
            _check_columns(path, (document, summary), row)
            yield row[document], row[summary]


def _csv(path: Path, document: str, summary: str) -> Iterator[tuple[Any, Any]]:
    import pandas

    options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
    try:
        _check_columns(path, (document, summary), list(pandas.read_csv(path, nrows=0, **options).columns))
        for part in pandas.read_csv(path, chunksize=ROWS_AT_A_TIME, usecols=[document, summary], **options):
            yield from zip(part[document], part[summary], strict=True)
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise StageError(f"{path}: not a readable CSV file ({error}).") from None


def _parquet(path: Path, document: str, summary: str) -> Iterator[tuple[Any, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        # Reading ahead is off, and row groups come one by one: by default arrow keeps all it has read of the file.
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            _check_columns(path, (document, summary), file.schema_arrow.names)
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(ROWS_AT_A_TIME, row_groups=[group], columns=[document, summary]):
                    yield from zip(batch[document].to_pylist(), batch[summary].to_pylist(), strict=True)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise StageError(f"{path}: not a readable parquet file ({error}).") from None


def _check_columns(path: Path, wanted: Sequence[str], present: Any) -> None:
    for column in wanted:
        if column not in present:
            raise StageError(f"{path}: no column {column!r}; there are {', '.join(map(str, present))}.")


_READERS = {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet}


def fetch(
    sources: Mapping[str, DatasetSource],
    *,
    cache_dir: Path,
    allow_partial: bool,
    max_retries: int,
    retry_delay: float,
) -> tuple[dict[str, Fetched], dict[str, str]]:
    """The files of every source, checked, by key; and of those that cannot be had the reason, by key.

    StageError at the first one that cannot be had, unless `allow_partial`. What the user named as local files must be
    right in any case.
    """
    fetched: dict[str, Fetched] = {}
    missing: dict[str, str] = {}
    sweep_broken_downloads(cache_dir)
    for key, source in sources.items():
        if source.files:
            fetched[key] = local_files(source)
            check(source, fetched[key])
            continue
        try:
            fetched[key] = from_hub(source, cache_dir=cache_dir, max_retries=max_retries, retry_delay=retry_delay)
        except Unavailable as error:
            if not allow_partial:
                raise StageError(
                    f"{source.title} cannot be had. {error}. Name a local copy in DATASETS_FILE, "
                    "or go on without it: DATASET_ALLOW_PARTIAL=true (every output then says so)."
                ) from error
            missing[key] = str(error)
            log.warning(
                "going on without %s: %s. Every output will say so. When it can be had, do stage 1 again with --force",
                source.title,
                error,
            )
    return fetched, missing


def from_hub(source: DatasetSource, *, cache_dir: Path, max_retries: int, retry_delay: float) -> Fetched:
    """The files of a source from the first of its places that has them right; Unavailable with every place's reason."""
    reasons = []
    for place in source.hub_copies:
        try:
            return _from_place(source, place, cache_dir=cache_dir, max_retries=max_retries, retry_delay=retry_delay)
        except Unavailable as error:
            reasons.append(str(error))
            log.warning("%s: %s", source.key, error)
            if isinstance(error, Exhausted):  # the hub is out of reach: its other places are, too
                break
        except StageError as error:
            reasons.append(f"{place.repository}@{place.revision}: {str(error).rstrip('.')}")
            log.warning("%s: %s", source.key, reasons[-1])
    raise Unavailable("; ".join(reasons))


def _from_place(
    source: DatasetSource, place: Mirror, *, cache_dir: Path, max_retries: int, retry_delay: float
) -> Fetched:
    retry_options: RetryOptions = {"cache_dir": cache_dir, "max_retries": max_retries, "retry_delay": retry_delay}
    began = time.monotonic()
    pin = resolve(place.repository, place.revision, **retry_options)
    try:
        remote, local = _download(source, pin, retry_options)
    except UnknownRevision:  # the hub's own conversions are rewritten: the commit of an earlier run may be gone
        pin = resolve(place.repository, place.revision, known=False, **retry_options)
        remote, local = _download(source, pin, retry_options)
    origin = {
        "from": "hub",
        "repository": pin.repository,
        "revision": pin.revision,
        "commit": pin.commit,
        "files": {file.path: _hash(file) for files in remote.values() for file in files},
    }
    fetched = Fetched(local, origin)
    check(source, fetched)
    log.info(
        "%s: %s@%s, commit %s, %.1f s",
        source.key,
        pin.repository,
        pin.revision,
        pin.commit[:10],
        time.monotonic() - began,
    )
    return fetched


def _download(
    source: DatasetSource, pin: Pin, retry_options: RetryOptions
) -> tuple[dict[str, tuple[RemoteFile, ...]], dict[str, tuple[Path, ...]]]:
    remote = {split: split_files(pin, source.config, name) for split, name in source.splits.items()}
    local = {split: tuple(download(pin, file, **retry_options) for file in files) for split, files in remote.items()}
    return remote, local


def _hash(file: RemoteFile) -> dict[str, Any]:
    return {"sha256": file.sha256} if file.sha256 else {"git_sha1": file.git_sha1}


def check(source: DatasetSource, fetched: Fetched) -> None:
    """StageError unless the files have the two columns, rows, and as many as the published set."""
    for split, files in fetched.files.items():
        if next(read_rows(files, source.document, source.summary), None) is None:
            raise StageError(f"{source.key}/{split}: no rows in {', '.join(map(str, files))}.")
        published = source.raw_rows.get(split)
        if not published:
            continue
        rows = sum(count_rows(path, source.document, source.summary) for path in files)
        if abs(rows - published) > source.row_tolerance * published:
            raise StageError(f"{source.key}/{split}: {rows} rows, but the published set has {published}")


def count_rows(path: Path, document: str, summary: str) -> int:
    """Rows of one file; of a parquet file without reading them."""
    if SUFFIXES[path.suffix.lower()] == "parquet":
        from pyarrow import parquet

        return parquet.read_metadata(path).num_rows
    return sum(1 for _ in read_rows([path], document, summary))

"""Fetch the files of each data set, local or from the hub, and check them before anything is made of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.core.errors import StageError
from utils.core.files import sha256_of
from utils.data.hub import (
    AccessNeeded,
    Exhausted,
    OfflineError,
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
from utils.data.readers import count_rows, read_rows
from utils.data.registry import DatasetSource, Mirror

log = logging.getLogger("mono_s2s.data")


@dataclass(frozen=True)
class Fetched:
    """The local files of one data set by split, and where they came from (JSON-ready)."""

    files: dict[str, tuple[Path, ...]]
    origin: dict[str, Any] = field(default_factory=dict)


def check_separate(source: DatasetSource) -> None:
    """StageError if a local file, or a copy of it, is given for two splits, or twice for one."""
    by_size: dict[int, list[tuple[str, Path]]] = {}
    for split, paths in source.files.items():
        for path in paths:
            others = by_size.setdefault(path.stat().st_size, [])
            for other, same in others:
                if path != same and sha256_of(path) != sha256_of(same):
                    continue
                if other == split:
                    raise StageError(f"{source.key}/{split}: {path} is there twice ({same}). Name it once.")
                raise StageError(
                    f"{source.key}: {other} and {split} have the same content ({same}, {path}). "
                    "Name another file for one of them: nothing would be held out."
                )
            others.append((split, path))


def local_files(source: DatasetSource) -> Fetched:
    """The files that the registry names, with their hashes. StageError if two splits have the same content."""
    check_separate(source)
    hashes = {path: sha256_of(path) for paths in source.files.values() for path in paths}
    origin = {"from": "local files", "files": {str(path): {"sha256": digest} for path, digest in hashes.items()}}
    return Fetched({split: tuple(paths) for split, paths in source.files.items()}, origin)


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
    """The files of a source from the first hub copy that has them right; Unavailable with the reason of each."""
    reasons = []
    for mirror in source.hub_copies:
        try:
            return _from_mirror(source, mirror, cache_dir=cache_dir, max_retries=max_retries, retry_delay=retry_delay)
        except Unavailable as error:
            reasons.append(str(error))
            log.warning("%s: %s", source.key, error)
            if isinstance(error, Exhausted):  # the hub is out of reach: its other copies are, too
                break
        except StageError as error:
            reasons.append(f"{mirror.repository}@{mirror.revision}: {str(error).rstrip('.')}")
            log.warning("%s: %s", source.key, reasons[-1])
    raise Unavailable("; ".join(reasons))


def _from_mirror(
    source: DatasetSource, mirror: Mirror, *, cache_dir: Path, max_retries: int, retry_delay: float
) -> Fetched:
    retry_options: RetryOptions = {"cache_dir": cache_dir, "max_retries": max_retries, "retry_delay": retry_delay}
    began = time.monotonic()
    pin = resolve(mirror.repository, mirror.revision, **retry_options)
    try:
        fetched = _download(source, pin, retry_options)
    except (AccessNeeded, Exhausted):
        raise
    except (Unavailable, StageError) as error:
        # The hub's own conversions are rewritten: the commit of an earlier run may be gone. And what the user
        # downloaded may be old or lack a split.
        if not isinstance(error, UnknownRevision) and not pin.cached:
            raise
        try:
            pin = resolve(mirror.repository, mirror.revision, known=False, **retry_options)
        except (OfflineError, Exhausted) as unreachable:
            raise type(unreachable)(f"{str(error).rstrip('.')}; {unreachable}") from error
        fetched = _download(source, pin, retry_options)
    lasted = time.monotonic() - began
    log.info("%s: %s@%s, commit %s, %.1f s", source.key, pin.repository, pin.revision, pin.commit[:10], lasted)
    return fetched


def _download(source: DatasetSource, pin: Pin, retry_options: RetryOptions) -> Fetched:
    reading = retry_options if source.own else None  # the layout of a published set is known without its README
    remote = {split: split_files(pin, source.config, name, reading) for split, name in source.splits.items()}
    local = {split: tuple(download(pin, file, **retry_options) for file in files) for split, files in remote.items()}
    origin = {
        "from": "hub",
        "repository": pin.repository,
        "revision": pin.revision,
        "commit": pin.commit,
        "files": {file.path: _hash(file) for files in remote.values() for file in files},
    }
    fetched = Fetched(local, origin)
    check(source, fetched)
    return fetched


def _hash(file: RemoteFile) -> dict[str, Any]:
    return {"sha256": file.sha256} if file.sha256 else {"git_sha1": file.git_sha1}


def check(source: DatasetSource, fetched: Fetched) -> None:
    """StageError unless the files have the two columns, rows, and as many as the published set."""
    for split, files in fetched.files.items():
        if next(read_rows(files, **source.reading), None) is None:
            raise StageError(f"{source.key}/{split}: no rows in {', '.join(map(str, files))}.")
        published = source.raw_rows.get(split)
        if not published:
            continue
        rows = sum(count_rows(path, **source.reading) for path in files)
        if abs(rows - published) > source.row_tolerance * published:
            raise StageError(f"{source.key}/{split}: {rows} rows, but the published set has {published}")

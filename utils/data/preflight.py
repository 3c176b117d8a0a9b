"""Pre-flight of the data sets (test_dataset_loading.py): read a few rows of each, in seconds; judge their text.

Nothing is kept: of a parquet file on the hub only its directory and the first rows are read, by ranges; the cache of
the experiment is read (stage 1 takes from it what is there) but not written. Stage 1 reads and checks every byte.
"""

from __future__ import annotations

import io
import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from utils.core.errors import StageError, UserError
from utils.data.hub import (
    AccessNeeded,
    Exhausted,
    RemoteFile,
    RetryOptions,
    Unavailable,
    download,
    first_line,
    known_pin,
    local_copy,
    resolve,
    split_files,
    with_retries,
)
from utils.data.judgement import sample_warnings, usable
from utils.data.loading import check_separate
from utils.data.readers import Row, check_columns, read_rows, rows_of_batch
from utils.data.registry import DatasetSource, Mirror

ROWS = 20  # of each split
TRIES = 2
DELAY = 1.0  # seconds before the second try


@dataclass(frozen=True)
class Finding:
    """One line of the table: `works` or not, `reasons` why a copy on the hub was of no use, `advice` what to do then.

    `warnings` are about the text of the rows that were read. `hub_down`: the hub could not be reached at all, there is
    no use in asking it for other sets.
    """

    key: str
    where: str
    revision: str
    rows: str
    seconds: float
    works: bool
    reasons: tuple[str, ...] = ()
    advice: str = ""
    hub_down: bool = False
    warnings: tuple[str, ...] = ()


LOCAL = "name a local copy in DATASETS_FILE (docs/own-data.md)"
PARTIAL = "or go on without the set: MONO_S2S_DATASET_ALLOW_PARTIAL=true"


def look(source: DatasetSource, cache_dir: Path | None = None) -> Finding:
    """Read a few rows of every split that the experiment needs; `cache_dir` is that of the experiment."""
    from huggingface_hub import constants

    began = time.monotonic()
    if source.files:
        where = str(next(iter(source.files.values()))[0].parent)
        try:
            check_separate(source)
            rows = [_few(list(files), source) for files in source.files.values()]
        except UserError as error:
            lasted = time.monotonic() - began
            return Finding(source.key, where, "local files", "-", lasted, False, (str(error),), "fix the file")
        return _judged(source, where, "local files", rows, time.monotonic() - began, ())
    problems: list[Exception] = []
    for mirror in source.hub_copies:
        try:
            commit, rows = _from_hub(source, mirror, cache_dir)
        except (Unavailable, StageError) as error:
            problems.append(error)
            if isinstance(error, Exhausted):  # out of reach: its other copies are, too
                break
            continue
        where, reasons = f"{mirror.repository}@{mirror.revision}", tuple(map(str, problems))
        return _judged(source, where, commit[:10], rows, time.monotonic() - began, reasons)
    down = isinstance(problems[-1], Exhausted) or constants.HF_HUB_OFFLINE
    return Finding(
        source.key,
        source.repository,
        "-",
        "-",
        time.monotonic() - began,
        False,
        tuple(map(str, problems)),
        _advice(source, problems, down),
        down and not constants.HF_HUB_OFFLINE,  # offline, another set may lie in a cache
    )


def _judged(
    source: DatasetSource, where: str, revision: str, rows: list[list[Row]], seconds: float, reasons: tuple[str, ...]
) -> Finding:
    """What to say of the rows that were read; a split without one usable row among them does not work."""
    warnings, useless = [], []
    for split, part in zip(source.splits, rows, strict=True):
        warnings += sample_warnings(f"{source.key}/{split}", part)
        if not any(usable(row, split) for row in part):
            useless.append(f"{source.key}/{split}: none of the first {len(part)} rows has enough text")
    columns = f"columns {source.document!r} and {source.summary!r}"
    advice = f"look at the {columns}, or at the files" if useless else ""
    counted = ", ".join(f"{split} {len(part)}" for split, part in zip(source.splits, rows, strict=True))
    found = (*reasons, *useless) if useless else reasons
    return Finding(source.key, where, revision, counted, seconds, not useless, found, advice, warnings=tuple(warnings))


def _advice(source: DatasetSource, problems: list[Exception], down: bool) -> str:
    from huggingface_hub import constants

    if down:
        switch = " with HF_HUB_OFFLINE unset" if constants.HF_HUB_OFFLINE else ""
        return f"run this where there is internet{switch}, {LOCAL}, {PARTIAL}"
    if any(isinstance(error, AccessNeeded) for error in problems):
        page = f"{constants.ENDPOINT}/datasets/{source.repository}"
        return f"sign in at {page}, accept its terms, export HF_TOKEN=your token; or {LOCAL}, {PARTIAL}"
    return f"{LOCAL}, or another repository, {PARTIAL}"


def _from_hub(source: DatasetSource, mirror: Mirror, cache_dir: Path | None) -> tuple[str, list[list[Row]]]:
    """The commit and the first rows: from the caches where all files are there, as stage 1 does, else from the hub."""
    from huggingface_hub import constants

    if cache_dir is not None and (found := _from_cache(source, mirror, cache_dir)) is not None:
        return found
    if cache_dir is not None and constants.HF_HUB_OFFLINE:  # this refuses, and names the caches of the experiment
        resolve(mirror.repository, mirror.revision, cache_dir=cache_dir, max_retries=1, retry_delay=0.0, known=False)
    with tempfile.TemporaryDirectory() as folder:
        options: RetryOptions = {"cache_dir": Path(folder), "max_retries": TRIES, "retry_delay": DELAY}
        pin = resolve(mirror.repository, mirror.revision, known=False, **options)
        rows = []
        for name in source.splits.values():
            file = split_files(pin, source.config, name, options if source.own else None)[0]
            if file.path.endswith(".parquet"):
                rows.append(_first_rows(pin.repository, pin.commit, file, source))
            else:
                rows.append(_few([download(pin, file, **options)], source))
        return pin.commit, rows


def _from_cache(source: DatasetSource, mirror: Mirror, cache_dir: Path) -> tuple[str, list[list[Row]]] | None:
    options: RetryOptions = {"cache_dir": cache_dir, "max_retries": 1, "retry_delay": 0.0}
    pin = known_pin(mirror.repository, mirror.revision, cache_dir=cache_dir)
    if pin is None:
        return None
    try:
        reading = options if source.own else None
        parts = [split_files(pin, source.config, name, reading) for name in source.splits.values()]
    except Unavailable:
        return None
    copies = [[local_copy(pin, file, cache_dir=cache_dir) for file in files] for files in parts]
    present = [[path for path in part if path is not None] for part in copies]
    if any(len(part) < len(files) for part, files in zip(present, parts, strict=True)):
        return None
    return pin.commit, [_few(part, source) for part in present]


def _first_rows(repository: str, commit: str, file: RemoteFile, source: DatasetSource) -> list[Row]:
    """The first rows of a parquet file on the hub, by ranges; Unavailable also where every try failed."""
    read = partial(_read_first_rows, repository, commit, file, source)
    try:
        return with_retries(read, label=f"{repository}/{file.path}", max_retries=TRIES, retry_delay=DELAY)
    except Exhausted as error:
        raise Unavailable(str(error)) from error


def _read_first_rows(repository: str, commit: str, file: RemoteFile, source: DatasetSource) -> list[Row]:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status
    from pyarrow import ArrowInvalid, parquet

    columns = [source.document, source.summary]
    url = hf_hub_url(repository, file.path, repo_type="dataset", revision=commit)

    def fetch(start: int, end: int) -> bytes:
        headers = build_hf_headers() | {"Range": f"bytes={start}-{end - 1}"}
        answer = get_session().get(url, headers=headers, follow_redirects=True, timeout=30)
        hf_raise_for_status(answer)
        return answer.content if answer.status_code == 206 else answer.content[start:end]

    try:
        with io.BufferedReader(_Ranges(fetch, file.size or 0), buffer_size=1 << 20) as handle:
            table = parquet.ParquetFile(handle)
            check_columns(Path(file.path), columns, table.schema_arrow.names)
            batch = next(table.iter_batches(ROWS, columns=columns))
    except (ArrowInvalid, StopIteration) as error:
        raise Unavailable(f"{repository}/{file.path}: cannot be read as parquet ({first_line(error)})") from error
    return list(rows_of_batch(batch, Path(file.path), **source.reading))


class _Ranges(io.RawIOBase):
    """A file of known size of which `fetch(start, end)` gets the bytes."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch, self._size, self._place = fetch, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        end = min(self._place + len(buffer), self._size)
        if end <= self._place:
            return 0
        content = self._fetch(self._place, end)
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)


def _few(files: list[Path], source: DatasetSource) -> list[Row]:
    rows = list(itertools.islice(read_rows(files, **source.reading), ROWS))
    if not rows:
        raise StageError(f"no rows in {', '.join(map(str, files))}")
    return rows

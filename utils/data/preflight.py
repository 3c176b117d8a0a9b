"""Pre-flight of the data sets (test_dataset_loading.py): read a few rows of each, in seconds; report source and commit.

Nothing is kept: of a parquet file on the hub only its directory and the first rows are read, by ranges; the cache of
the experiment is not touched. Stage 1 downloads in full and checks every byte.
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
    resolve,
    split_files,
    with_retries,
)
from utils.data.loading import Row, read_rows
from utils.data.registry import DatasetSource, Mirror

ROWS = 3  # of each split
TRIES = 2
DELAY = 1.0  # seconds before the second try


@dataclass(frozen=True)
class Finding:
    """One line of the table: `works` or not, `reasons` why a place was of no use, `advice` what to do about it.

    `hub_down`: the hub could not be reached at all, there is no use in asking it for other sets.
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


LOCAL = "name a local copy in DATASETS_FILE (README, Your own data)"
PARTIAL = "or go on without the set: MONO_S2S_DATASET_ALLOW_PARTIAL=true"


def look(source: DatasetSource) -> Finding:
    """Read a few rows of every split that the experiment needs."""
    from huggingface_hub import constants

    began = time.monotonic()
    if source.files:
        where = str(next(iter(source.files.values()))[0].parent)
        try:
            rows = [_few(list(files), source) for files in source.files.values()]
        except UserError as error:
            lasted = time.monotonic() - began
            return Finding(source.key, where, "local files", "-", lasted, False, (str(error),), "mend the file")
        return Finding(source.key, where, "local files", _counted(source, rows), time.monotonic() - began, True)
    problems: list[Exception] = []
    for place in source.hub_copies:
        try:
            commit, rows = _from_hub(source, place)
        except (Unavailable, StageError) as error:
            problems.append(error)
            if isinstance(error, Exhausted) or constants.HF_HUB_OFFLINE:  # out of reach: its other places are, too
                break
            continue
        where, reasons = f"{place.repository}@{place.revision}", tuple(map(str, problems))
        lasted = time.monotonic() - began
        return Finding(source.key, where, commit[:10], _counted(source, rows), lasted, True, reasons)
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
        down,
    )


def _advice(source: DatasetSource, problems: list[Exception], down: bool) -> str:
    from huggingface_hub import constants

    if down:
        switch = " with HF_HUB_OFFLINE unset" if constants.HF_HUB_OFFLINE else ""
        return f"run this where there is internet{switch}, {LOCAL}, {PARTIAL}"
    if any(isinstance(error, AccessNeeded) for error in problems):
        page = f"{constants.ENDPOINT}/datasets/{source.repository}"
        return f"sign in at {page}, accept its terms, export HF_TOKEN=your token; or {LOCAL}, {PARTIAL}"
    return f"{LOCAL}, or another repository, {PARTIAL}"


def _from_hub(source: DatasetSource, place: Mirror) -> tuple[str, list[list[Row]]]:
    with tempfile.TemporaryDirectory() as folder:
        options: RetryOptions = {"cache_dir": Path(folder), "max_retries": TRIES, "retry_delay": DELAY}
        pin = resolve(place.repository, place.revision, **options)
        found = []
        for name in source.splits.values():
            file = split_files(pin, source.config, name)[0]
            if file.path.endswith(".parquet"):
                found.append(_first_rows(pin.repository, pin.commit, file, source))
            else:
                found.append(_few([download(pin, file, **options)], source))
        return pin.commit, found


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
            present = table.schema_arrow.names
            absent = [column for column in columns if column not in present]
            if absent:
                raise StageError(f"{file.path}: no column {absent[0]!r}; there are {', '.join(present)}.")
            batch = next(table.iter_batches(ROWS, columns=columns)).to_pydict()
    except (ArrowInvalid, StopIteration) as error:
        raise Unavailable(f"{repository}/{file.path}: cannot be read as parquet ({first_line(error)})") from error
    return [Row(n, *texts) for n, texts in enumerate(zip(*(batch[column] for column in columns), strict=True))]


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
    rows = list(itertools.islice(read_rows(files, source.document, source.summary), ROWS))
    if not rows:
        raise StageError(f"no rows in {', '.join(map(str, files))}")
    return rows


def _counted(source: DatasetSource, rows: list[list[Row]]) -> str:
    return ", ".join(f"{split} {len(some)}" for split, some in zip(source.splits, rows, strict=True))

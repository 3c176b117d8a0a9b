"""Download files from the Hugging Face hub: pin the revision, retry transient failures, verify every file's hash.

Measured with huggingface_hub 2.4 against a hub with injected faults: the client retries
some failures by itself, but not a 5xx answer to the request for a file's content, a reset connection, or a short
file; it reports a hub that is down as "entry not found"; and it keeps wrong bytes of the right length for ever.
So each step is tried again with exponential back-off, and a file whose hash is not the hub's is fetched once more.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import json
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict, TypeVar

from utils.core.files import write_json

T = TypeVar("T")

SECONDS_FOR_AN_ANSWER = 30.0
MAX_PAUSE = 300.0  # seconds
ABANDONED_SECONDS = 3600  # a download that nothing was written to for this long is dead
TRANSIENT_STATUS = (408, 425, 429)  # and 5xx

log = logging.getLogger("mono_s2s.data")


class Unavailable(Exception):
    """Something of the hub cannot be had; the message says what and why, in one line."""


class UnknownRevision(Unavailable):
    """The repository is there, the revision is not (or no more)."""


class AccessNeeded(Unavailable):
    """The hub has it, for those whom it lets in."""


class Exhausted(Unavailable):
    """It failed at every try for reasons that pass. Where `resolve` says so: the hub, or the way to it, is down."""


class RetryOptions(TypedDict):
    """Where downloads are kept, how often a failed one is tried, and seconds before the second try."""

    cache_dir: Path
    max_retries: int
    retry_delay: float


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: `sha256` of its content where the hub keeps it as a large file, else its git hash."""

    path: str
    size: int | None
    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True)
class Pin:
    """A repository at one commit: what `revision` pointed to when it was first asked for."""

    repository: str
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]


def sweep_broken_downloads(cache_dir: Path) -> None:
    """Remove what killed processes left of their downloads: the client begins a file anew under a name of its own."""
    for left in cache_dir.rglob("*.incomplete"):
        with contextlib.suppress(FileNotFoundError):  # another process may be sweeping, too
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                left.unlink()


def with_retries(action: Callable[[], T], *, label: str, max_retries: int, retry_delay: float) -> T:
    """`action()`, tried up to `max_retries` times while it fails for reasons that pass; one log line per failure.

    The pause before the second try is about `retry_delay` seconds and doubles (jitter of a quarter, so that many jobs
    do not come back at once). Unavailable for a failure that stays, UnknownRevision for a revision that is not there;
    a full disk is an OSError as ever. Exhausted if no try succeeded.
    """
    for attempt in range(1, max_retries + 1):
        try:
            return action()
        except _failures() as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise
            if not is_transient(error):
                raise _final(error, label) from error
            last = error
        if attempt < max_retries:
            pause = min(MAX_PAUSE, retry_delay * 2 ** (attempt - 1)) * random.uniform(0.75, 1.25)
            log.warning(
                "%s: try %d of %d failed (%s); next in %.0f s", label, attempt, max_retries, first_line(last), pause
            )
            time.sleep(pause)
    raise Exhausted(f"{label}: no success in {max_retries} tries, last: {first_line(last)}") from last


def is_transient(error: BaseException) -> bool:
    """Whether a failure of the hub or of the way to it may be over at the next try."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx

    if isinstance(error, errors.OfflineModeIsEnabled):
        return False
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code if error.response is not None else 500
        return status in TRANSIENT_STATUS or status >= 500
    if isinstance(error, errors.LocalEntryNotFoundError):  # the client's words for "could not ask the hub"
        return error.__cause__ is None or is_transient(error.__cause__)
    if isinstance(error, httpx.HTTPError | ConnectionError | TimeoutError):
        return True
    if isinstance(error, ValueError):  # "force download failed due to the above error"
        return error.__cause__ is not None and is_transient(error.__cause__)
    if type(error) is RuntimeError:  # how hf_xet, the carrier of large files, reports its network errors
        return True
    return isinstance(error, OSError) and "Consistency check failed" in str(error)


def pin_record(cache_dir: Path, repository: str, revision: str) -> Path:
    """Where the commit is kept that `revision` of a repository was first found at."""
    return cache_dir / "pins" / f"{repository}@{revision}.json".replace("/", "--")


def resolve(
    repository: str, revision: str, *, cache_dir: Path, max_retries: int, retry_delay: float, known: bool = True
) -> Pin:
    """The repository pinned at the commit that `revision` names; the first answer is kept in `cache_dir` and reused.

    So all later runs on this cache read the same data, also without a network. `known=False` asks the hub again.
    """
    record = pin_record(cache_dir, repository, revision)
    if known and (pin := _recorded(record)) is not None:
        return pin
    label = f"{repository}@{revision}"
    pin = with_retries(
        lambda: _ask(repository, revision), label=label, max_retries=max_retries, retry_delay=retry_delay
    )
    if not known and (old := _recorded(record)) is not None and old.commit != pin.commit:
        log.warning("%s: commit %s of an earlier run is gone; now %s", label, old.commit[:10], pin.commit[:10])
    write_json(record, asdict(pin))
    return pin


def download(pin: Pin, file: RemoteFile, *, cache_dir: Path, max_retries: int, retry_delay: float) -> Path:
    """The local copy of a file, its content checked against the hub's hash; wrong content is fetched again, once.

    Unavailable also where every try failed for reasons that pass: another place may have the file.
    """
    try:
        return _download(pin, file, cache_dir=cache_dir, max_retries=max_retries, retry_delay=retry_delay)
    except Exhausted as error:
        raise Unavailable(str(error)) from error


def _download(pin: Pin, file: RemoteFile, *, cache_dir: Path, max_retries: int, retry_delay: float) -> Path:
    from huggingface_hub import hf_hub_download

    label = f"{pin.repository}/{file.path}"

    def fetch(force: bool) -> Path:
        path = hf_hub_download(
            pin.repository,
            file.path,
            repo_type="dataset",
            revision=pin.commit,
            cache_dir=cache_dir / "hub",
            force_download=force,
        )
        return Path(path)

    path = with_retries(lambda: fetch(False), label=label, max_retries=max_retries, retry_delay=retry_delay)
    if (problem := content_problem(path, file)) is None:
        return path
    log.warning("%s: %s; fetching it again", label, problem)
    path = with_retries(lambda: fetch(True), label=label, max_retries=max_retries, retry_delay=retry_delay)
    if (problem := content_problem(path, file)) is not None:
        raise Unavailable(f"{label}: {problem}, and so was a second copy")
    return path


def content_problem(path: Path, file: RemoteFile) -> str | None:
    """Why the content of `path` is not that of the hub's file, or None if it is (as far as the hub tells)."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"{size} bytes instead of {file.size}"
    if file.sha256 is not None:
        digest, expected = hashlib.sha256(), file.sha256
    elif file.git_sha1 is not None:
        digest, expected = hashlib.sha1(b"blob %d\0" % size), file.git_sha1
    else:
        return None
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return None if digest.hexdigest() == expected else "the content is not what the hub says (wrong hash)"


def split_files(pin: Pin, config: str, split: str) -> tuple[RemoteFile, ...]:
    """The data files of one split of one configuration, by the names that repositories use.

    Parquet is preferred, then CSV, then JSON lines; in the folder of the configuration, in data/, at the top.
    Unavailable (with the reason) if there are none, or if shards are missing.
    """
    for suffix in (".parquet", ".csv", ".jsonl", ".json"):
        for folder in (f"{config}/", "data/", ""):
            for shape in ("{}-*", "{}/*", "{}", "*[-_]{}", "{}[-_]*"):
                pattern = folder + shape.format(split) + suffix
                depth = pattern.count("/")
                found = [
                    file
                    for file in pin.files
                    if fnmatch.fnmatchcase(file.path, pattern) and file.path.count("/") == depth
                ]
                if found:
                    return _complete(pin, sorted(found, key=lambda file: file.path))
    if any(file.path == f"{pin.repository.split('/')[1]}.py" for file in pin.files):
        raise Unavailable(f"{pin.repository}@{pin.revision}: holds a loading script instead of data files")
    names = ", ".join(file.path for file in pin.files[:8]) or "nothing"
    raise Unavailable(f"{pin.repository}@{pin.revision}: no files for {config}/{split}; there are {names}")


def _complete(pin: Pin, files: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
    _, of, count = files[0].path.rpartition("-of-")
    if of and count.split(".")[0].isdigit() and int(count.split(".")[0]) != len(files):
        raise Unavailable(f"{pin.repository}@{pin.revision}: {len(files)} files like {files[0].path}")
    return tuple(files)


def _ask(repository: str, revision: str) -> Pin:
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(repository, revision=revision, files_metadata=True, timeout=SECONDS_FOR_AN_ANSWER)
    if not info.sha:
        raise Unavailable(f"{repository}@{revision}: the hub names no commit")
    files = tuple(
        RemoteFile(item.rfilename, item.size, item.lfs.sha256 if item.lfs else None, item.blob_id)
        for item in info.siblings or ()
    )
    return Pin(repository, revision, info.sha, files)


def _recorded(record: Path) -> Pin | None:
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        return Pin(**content | {"files": tuple(RemoteFile(**file) for file in content["files"])})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        log.warning("%s: damaged; asking the hub again", record)
        return None


def _failures() -> tuple[type[Exception], ...]:
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx

    return (OSError, httpx.HTTPError, ValueError, RuntimeError, errors.EntryNotFoundError)


def _final(error: Exception, label: str) -> Unavailable:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return AccessNeeded(f"{label}: access must be granted; accept its terms on the hub and set HF_TOKEN")
    if isinstance(error, errors.RepositoryNotFoundError):
        return Unavailable(f"{label}: no such repository, or it is private (then set HF_TOKEN)")
    if isinstance(error, errors.RevisionNotFoundError):
        return UnknownRevision(f"{label}: no such revision")
    if isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        return Unavailable(f"{label}: not in the cache, and HF_HUB_OFFLINE keeps the hub off")
    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
        return AccessNeeded(f"{label}: the hub answers {error.response.status_code}; it may want HF_TOKEN")
    return Unavailable(f"{label}: {first_line(error)}")


def first_line(error: BaseException) -> str:
    """The first line of the error that lies at the bottom."""
    while isinstance(error, ValueError | FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160].rstrip('. ') if lines else 'no message'}"

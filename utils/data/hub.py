"""Download files from the Hugging Face hub: pin the revision, retry transient failures, verify every file's hash.

Measured with huggingface_hub 2.4 against a hub with injected faults: the client retries
some failures by itself, but not a 5xx answer to the request for a file's content, a reset connection, or a short
file; it reports a hub that is down as "entry not found"; and it keeps wrong bytes of the right length for ever.
So each step is tried again with exponential back-off, and a file whose hash is not the hub's is fetched once more.
Most of its requests have no deadline at all: utils/data/deadlines.py gives every one a limit.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict, TypeVar

from utils.core.files import write_json
from utils.data.deadlines import set_deadlines
from utils.data.discovery import NoFiles, split_names

T = TypeVar("T")

SECONDS_FOR_AN_ANSWER = 30.0
MAX_PAUSE = 300.0  # seconds
ABANDONED_SECONDS = 3600  # a download that nothing was written to for this long is dead
TRANSIENT_STATUS = (408, 425, 429)  # and 5xx
SHA256_DIGITS = 64

log = logging.getLogger("mono_s2s.data")


class Unavailable(Exception):
    """Something of the hub cannot be had; the message says what and why, in one line."""


class UnknownRevision(Unavailable):
    """The repository is there, the revision is not (or no more)."""


class OfflineError(Unavailable):
    """It is not in the cache, and HF_HUB_OFFLINE forbids to ask the hub."""


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
    """A repository at one commit: what `revision` pointed to when it was first asked for.

    `cached`: as it lies in the user's cache, where files of it may be absent.
    """

    repository: str
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]
    cached: bool = False


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
    set_deadlines()
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
    from huggingface_hub import constants

    cause = f"no success in {max_retries} tries, last: {first_line(last)}"
    raise Exhausted(f"{label}: {cause} (hub: {constants.ENDPOINT})") from last


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


def cache_places(cache_dir: Path) -> tuple[Path, ...]:
    """Where downloads are looked for: in `cache_dir`, then in the standard cache (HF_HOME, HF_HUB_CACHE).

    `cache_dir` may be a HF_HOME (with hub/ in it) or a hub cache itself; new downloads go to its hub/.
    """
    from huggingface_hub import constants

    return tuple(dict.fromkeys((cache_dir / "hub", cache_dir, Path(constants.HF_HUB_CACHE))))


def snapshots(repository: str, revision: str, *, cache_dir: Path, kind: str = "dataset") -> Iterator[Path]:
    """Cached directories of a repository at `revision`, best first; the name of each is its commit."""
    for place in cache_places(cache_dir):
        folder = place / f"{kind}s--{repository.replace('/', '--')}"
        kept = sorted(path for path in (folder / "snapshots").glob("*") if path.is_dir())
        try:
            commit = (folder / "refs" / revision).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            # load_dataset leaves refs/main only where there is a README. Our own downloads leave none: pins/ has them.
            alone = revision == "main" and len(kept) == 1 and place != cache_dir / "hub"
            commit = kept[0].name if alone else revision
        yield from (path for path in kept if path.name == commit)


def known_pin(repository: str, revision: str, *, cache_dir: Path) -> Pin | None:
    """The repository as an earlier run pinned it, or else as the user downloaded it; None without either."""
    if (pin := _recorded(pin_record(cache_dir, repository, revision))) is not None:
        return pin
    for snapshot in snapshots(repository, revision, cache_dir=cache_dir):
        paths = sorted(path for path in snapshot.rglob("*") if path.is_file())
        if paths:
            files = tuple(cached_file(path, path.relative_to(snapshot).as_posix()) for path in paths)
            return Pin(repository, revision, snapshot.name, files, cached=True)
    return None


def cached_file(path: Path, name: str) -> RemoteFile:
    """A file of a snapshot with the hash that its link tells: the cache names contents by the hub's hash."""
    digest = path.resolve().name if path.is_symlink() else ""
    large = len(digest) == SHA256_DIGITS
    return RemoteFile(name, path.stat().st_size, digest if large else None, None if large else digest or None)


def local_copy(pin: Pin, file: RemoteFile, *, cache_dir: Path) -> Path | None:
    """The file in one of the caches, at the pinned commit, with the right content."""
    for snapshot in snapshots(pin.repository, pin.commit, cache_dir=cache_dir):
        path = snapshot / file.path
        try:
            if path.is_file() and content_problem(path, file) is None:
                return path
        except OSError as error:
            log.warning("%s: cannot be read (%s); looking elsewhere", path, error.strerror)
    return None


def resolve(
    repository: str, revision: str, *, cache_dir: Path, max_retries: int, retry_delay: float, known: bool = True
) -> Pin:
    """The repository pinned at the commit that `revision` names; the first answer is kept in `cache_dir` and reused.

    So all later runs on this cache read the same data, also without a network. What the user downloaded counts as an
    answer, too. `known=False` asks the hub again.
    """
    if known and (pin := known_pin(repository, revision, cache_dir=cache_dir)) is not None:
        return pin
    label, record = f"{repository}@{revision}", pin_record(cache_dir, repository, revision)
    try:
        pin = with_retries(
            lambda: _ask(repository, revision), label=label, max_retries=max_retries, retry_delay=retry_delay
        )
    except OfflineError as error:
        raise OfflineError(f"{error} {_looked_in(cache_dir)}") from error
    if not known and (old := _recorded(record)) is not None and old.commit != pin.commit:
        log.warning("%s: commit %s of an earlier run is gone; now %s", label, old.commit[:10], pin.commit[:10])
    try:
        write_json(record, asdict(pin))
    except OSError as error:
        log.warning("%s: cannot be written (%s): a later run will ask the hub again", record, error.strerror)
    return pin


def _looked_in(cache_dir: Path) -> str:
    return f"(looked in {', '.join(map(str, cache_places(cache_dir)))})"


def download(pin: Pin, file: RemoteFile, *, cache_dir: Path, max_retries: int, retry_delay: float) -> Path:
    """The local copy of a file, its content checked against the hub's hash; wrong content is fetched again, once.

    Unavailable also where every try failed for reasons that pass: another mirror may have the file.
    """
    if (path := local_copy(pin, file, cache_dir=cache_dir)) is not None:
        return path
    try:
        return _download(pin, file, cache_dir=cache_dir, max_retries=max_retries, retry_delay=retry_delay)
    except Exhausted as error:
        raise Unavailable(str(error)) from error
    except OfflineError as error:
        raise OfflineError(f"{error} {_looked_in(cache_dir)}") from error


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


def split_files(pin: Pin, config: str, split: str, retry_options: RetryOptions | None = None) -> tuple[RemoteFile, ...]:
    """The data files of one split of one configuration, in order; Unavailable with the reason if there are none.

    With `retry_options` the README is read for its configurations and data files, as `datasets` does.
    """
    files = {file.path: file for file in pin.files}
    readme = None
    if retry_options and "README.md" in files:
        readme = download(pin, files["README.md"], **retry_options).read_text(encoding="utf-8")
    try:
        return tuple(files[name] for name in split_names(sorted(files), split, config=config, readme=readme))
    except NoFiles as error:
        if f"{pin.repository.split('/')[1]}.py" in files:
            reason = "holds a loading script instead of data files"
        else:
            reason = f"no files for {config or 'default'}/{split}: {error}"
        raise Unavailable(f"{pin.repository}@{pin.revision}: {reason}") from error


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
        return OfflineError(f"{label}: not in the cache, and HF_HUB_OFFLINE keeps the hub off")
    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
        return AccessNeeded(f"{label}: the hub answers {error.response.status_code}; it may want HF_TOKEN")
    return Unavailable(f"{label}: {first_line(error)}")


def first_line(error: BaseException) -> str:
    """The first line of the error that lies at the bottom."""
    while isinstance(error, ValueError | FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160].rstrip('. ') if lines else 'no message'}"

"""The pretrained model from the hub or from a directory: fetched with patience, checked before anything trusts it."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from utils.errors import InputError, StageError
from utils.files import sha256_of

# The parts of a T5 repository that are used: not its TensorFlow, Flax, Rust and ONNX copies.
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json")
TOKENIZER_FILES = ("spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
OLD_WEIGHTS = "pytorch_model.bin"  # fetched only where a repository has no safetensors
TRANSIENT_STATUS = (408, 425, 429, 500, 502, 503, 504)

log = logging.getLogger("mono_s2s.models")


def download_model(
    name: str,
    revision: str | None,
    *,
    cache_dir: Path,
    max_retries: int = 5,
    retry_delay: float = 10.0,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Path, str]:
    """Directory (in `cache_dir`) and commit of the hub model `name` at `revision` (None: main), every file verified.

    Passing errors (network, overload) are tried again up to `max_retries` times, after `retry_delay` seconds, doubling,
    with jitter. InputError: no such model or revision, no access, offline and not in the cache. StageError: the hub
    could not be reached, or files keep arriving damaged.
    """
    delay = retry_delay
    for attempt in range(1, max_retries + 2):
        try:
            directory = Path(_snapshot(name, revision, cache_dir))
            damaged = _damaged_files(directory)
            if not damaged:
                return directory, directory.name
            for file in damaged:  # the next try fetches them again
                file.resolve().unlink(missing_ok=True)
                file.unlink(missing_ok=True)
            problem: str = f"damaged in transfer: {', '.join(file.name for file in damaged)}"
        except (OSError, httpx.HTTPError, HFValidationError, EntryNotFoundError) as error:
            _raise_if_permanent(error, name, revision)
            problem = _first_line(error)
        if attempt > max_retries:
            break
        wait = delay * (0.75 + random.random() / 2)
        log.warning(
            "fetching %s failed (%s); try %d of %d in %.0f s", name, problem, attempt + 1, max_retries + 1, wait
        )
        sleep(wait)
        delay *= 2
    raise StageError(f"cannot fetch the model {name} ({problem}). {_WAYS_OUT}")


def _snapshot(name: str, revision: str | None, cache_dir: Path) -> str:
    """One try. A repository without safetensors gives its pytorch_model.bin instead."""
    options = {"revision": revision or None, "cache_dir": cache_dir}
    directory = snapshot_download(
        name, allow_patterns=[*MODEL_FILES, "model-*.safetensors", *TOKENIZER_FILES], **options
    )
    if not list(Path(directory).glob("*.safetensors")):
        directory = snapshot_download(name, allow_patterns=[*MODEL_FILES, OLD_WEIGHTS, *TOKENIZER_FILES], **options)
    return directory


def _damaged_files(directory: Path) -> list[Path]:
    """Files whose content is not what the hub announced. Its cache names a large file's blob by its sha256."""
    damaged = []
    for file in directory.iterdir():
        expected = file.readlink().name if file.is_symlink() else ""
        if len(expected) == 64 and sha256_of(file) != expected:
            damaged.append(file)
    return damaged


def _raise_if_permanent(error: BaseException, name: str, revision: str | None) -> None:
    """InputError where trying again cannot help."""
    at = f"{name} at revision {revision}" if revision else name
    if isinstance(error, LocalEntryNotFoundError):
        if constants.HF_HUB_OFFLINE:
            raise InputError(f"offline (HF_HUB_OFFLINE), and {at} is not in the cache. {_WAYS_OUT}") from error
    elif isinstance(error, GatedRepoError):
        raise InputError(f"no access to {name}: accept its terms on the hub and set HF_TOKEN.") from error
    elif isinstance(error, RevisionNotFoundError):
        raise InputError(f"the hub has no revision {revision} of {name}: check MODEL_REVISION.") from error
    elif isinstance(error, (RepositoryNotFoundError, HFValidationError)):
        raise InputError(f"no model {name!r}, neither on the hub nor as a directory: check MODEL_NAME.") from error
    elif isinstance(error, EntryNotFoundError):
        raise InputError(f"{at} lacks a file: {_first_line(error)}") from error
    elif isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        if status not in TRANSIENT_STATUS:
            raise InputError(f"the hub refuses {at} with status {status}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


_WAYS_OUT = "Run stage 0 where the hub can be reached, or set MODEL_NAME to a directory with a T5 and its tokenizer."

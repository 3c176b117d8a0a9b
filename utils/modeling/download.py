"""The pretrained model from the hub: fetched with retries, every file checked against the hub's own hash."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from huggingface_hub import snapshot_download

from utils.core.errors import InputError, StageError
from utils.data.hub import (
    Exhausted,
    OfflineError,
    RemoteFile,
    Unavailable,
    cache_places,
    content_problem,
    snapshots,
    with_retries,
)
from utils.pipeline.external_inputs import absent_parts

# The parts of a T5 repository that are used: not its TensorFlow, Flax, Rust and ONNX copies.
CONFIGURATION = ("config.json", "generation_config.json")
TOKENIZER = ("spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
OLD_WEIGHTS = ("pytorch_model.bin",)  # fetched only where a repository has no safetensors
SHA256_DIGITS = 64

log = logging.getLogger("mono_s2s.models")


def download_model(
    name: str, revision: str | None, *, cache_dir: Path, max_retries: int, retry_delay: float
) -> tuple[Path, str]:
    """Directory and commit of the hub model `name` at `revision` (None or "": its main branch).

    What is in `cache_dir`, or in the standard cache of the hub (HF_HOME), is used as it is; new files go to
    `cache_dir`/hub.
    Failures that pass (network, overload) are retried as `hub.with_retries` does; a file with wrong content is fetched
    again, once. InputError: no such model or revision, no access, offline and not in the cache. StageError: the hub
    could not be reached, or the second copy is wrong as well.
    """
    for cached in snapshots(name, revision or "main", cache_dir=cache_dir, kind="model"):
        if not absent_parts(cached) and not _damaged_files(cached):
            return cached, cached.name
    try:
        directory = _snapshot(name, revision, cache_dir, max_retries, retry_delay)
        if damaged := _damaged_files(directory):
            for file, problem in damaged.items():
                log.warning("%s/%s: %s; fetching it again", name, file.name, problem)
                file.resolve().unlink(missing_ok=True)
            shutil.rmtree(directory)  # only links to the files lie there
            directory = _snapshot(name, revision, cache_dir, max_retries, retry_delay)
            for file, problem in _damaged_files(directory).items():
                raise StageError(f"{name}/{file.name}: {problem}, and so was a second copy. {_WAYS_OUT}")
    except Exhausted as error:
        raise StageError(f"cannot fetch the model {error}. {_WAYS_OUT}") from error
    except OfflineError as error:
        places = ", ".join(map(str, cache_places(cache_dir)))
        raise InputError(f"cannot fetch the model {error} (looked in {places}). {_WAYS_OUT}") from error
    except Unavailable as error:
        raise InputError(f"cannot fetch the model {error}. Check MODEL_NAME and MODEL_REVISION. {_WAYS_OUT}") from error
    return directory, directory.name


def _snapshot(name: str, revision: str | None, cache_dir: Path, max_retries: int, retry_delay: float) -> Path:
    def fetch(*patterns: str) -> Path:
        return Path(
            with_retries(
                lambda: snapshot_download(
                    name, revision=revision or None, cache_dir=cache_dir / "hub", allow_patterns=list(patterns)
                ),
                label=f"{name}@{revision}" if revision else name,
                max_retries=max_retries,
                retry_delay=retry_delay,
            )
        )

    directory = fetch(*CONFIGURATION, *TOKENIZER, *WEIGHTS)
    if not list(directory.glob("*.safetensors")):
        directory = fetch(*CONFIGURATION, *TOKENIZER, *OLD_WEIGHTS)
    return directory


def _damaged_files(directory: Path) -> dict[Path, str]:
    """Files whose content is not the hub's, with the problem. A blob in the cache is named by the hub's hash."""
    damaged = {}
    for file in directory.iterdir():
        if not file.is_symlink():
            continue  # a file system without links: nothing remembers the hash
        digest = file.readlink().name
        large = len(digest) == SHA256_DIGITS
        remote = RemoteFile(file.name, None, digest if large else None, None if large else digest)
        if (problem := content_problem(file, remote)) is not None:
            damaged[file] = problem
    return damaged


_WAYS_OUT = "Run stage 0 where the hub can be reached, or set MODEL_NAME to a directory with a T5 and its tokenizer."

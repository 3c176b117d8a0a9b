"""Stage 1: from data sets to clean, disjoint, tokenised splits in one directory, with a manifest and statistics.

Held-out text is protected in this order: test sets, the examples that attacks are optimised on, validation, training.
A row that overlaps (utils/data/contamination.py) something more protected is removed; a test row never is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.core.errors import StageError
from utils.core.files import link_or_copy, new_directory, write_json
from utils.core.fingerprint import fingerprint
from utils.core.locks import file_lock
from utils.core.names import ATTACKED_SET
from utils.data.judgement import NothingKept
from utils.data.loading import fetch
from utils.data.records import Manifest
from utils.data.registry import DatasetSource, chosen_sources
from utils.data.rows import Encoding
from utils.data.splits import Build, Request
from utils.data.store import (
    FORMAT,
    MANIFEST,
    STATISTICS,
    load_prepared,
    missing_datasets,
    read_manifest,
)

__all__ = ["load_prepared", "missing_datasets", "prepare", "read_manifest"]


log = logging.getLogger("mono_s2s.data")


def prepare(
    *,
    sources: Mapping[str, DatasetSource],
    train_keys: Sequence[str],
    test_keys: Sequence[str],
    tokenizer: Any,
    task_prefix: str,
    max_input_length: int,
    max_target_length: int,
    output_dir: Path,
    cache_dir: Path,
    seed: int,
    attack_optimize_size: int,
    attack_evaluate_size: int,
    use_full_test_sets: bool,
    quick_test_size: int,
    max_train_examples: int | None,
    allow_partial: bool,
    deduplicate_training: bool,
    attack_dataset: str = ATTACKED_SET,
    max_retries: int = 5,
    retry_delay: float = 10.0,
    workers: int | None = None,
    twins: Sequence[Path] = (),
    intact: Callable[[Path], bool] = lambda twin: True,
) -> dict[str, Any]:
    """Write the prepared directory `output_dir` (whole or not at all) and return its statistics, JSON-ready.

    `sources` are all known data sets; `train_keys`, `test_keys` and `attack_dataset` (one of the test sets) choose.
    `tokenizer` is a transformers T5 tokenizer (fast); lengths are tokens, `retry_delay` seconds; `cache_dir` keeps
    downloads; `workers` is the number of processes (None: one per core); of `twins`, other prepared directories, one
    that was made of the same, and is `intact`, is linked. A data set that cannot be had, or of which
    nothing is left, is a StageError, or with `allow_partial` a note in `missing`; but never without any training data,
    and never without the set that attacks are measured on. Nothing of an earlier preparation changes before this one
    is complete.
    """
    encoding = Encoding.of(tokenizer, task_prefix, max_input_length, max_target_length)
    request = Request(
        sources=chosen_sources(sources, train_keys, test_keys, attack_dataset),
        train_keys=tuple(train_keys),
        test_keys=tuple(test_keys),
        attack_dataset=attack_dataset,
        encoding=encoding,
        tokenizer_sha256=hashlib.sha256(encoding.tokenizer.to_str().encode()).hexdigest(),
        seed=seed,
        attack_optimize_size=attack_optimize_size,
        attack_evaluate_size=attack_evaluate_size,
        use_full_test_sets=use_full_test_sets,
        quick_test_size=quick_test_size,
        max_train_examples=max_train_examples,
        allow_partial=allow_partial,
        deduplicate_training=deduplicate_training,
    )
    started = time.monotonic()
    lock = output_dir.with_name(f".{output_dir.name}.lock")
    with file_lock(
        lock,
        unprotected="two preparations at once would both do all the work (the last one to finish stays)",
        on_wait=lambda: log.info("another process is preparing %s: waiting for it", output_dir),
        log=log,
    ) as waited:
        fetched, missing = fetch(
            request.sources,
            cache_dir=cache_dir,
            allow_partial=allow_partial,
            max_retries=max_retries,
            retry_delay=retry_delay,
        )
        while True:
            _check_missing(request, missing)
            described = request.described(fetched)
            key = fingerprint(described)
            if waited and (done := _finished(output_dir, key)) is not None:
                log.info("another process has just prepared the same data: using it")
                return done
            for twin in twins:
                if (done := _finished(twin, key)) is not None and intact(twin):
                    with new_directory(output_dir) as directory:
                        _link_tree(twin, directory)
                    log.info("the same data are in %s already: using them", twin)
                    return done
            try:
                with new_directory(output_dir) as directory:
                    build = Build(request, fetched, missing, directory, workers or len(os.sched_getaffinity(0)))
                    statistics = build.run().to_json()
                    manifest = Manifest(FORMAT, key, described, missing, build.sets)
                    write_json(directory / MANIFEST, manifest.to_json())
                    write_json(directory / STATISTICS, statistics)
                break
            except NothingKept as error:
                if not allow_partial:
                    raise
                # Parts of it may already be protected or trained on: start again as if it could not be had.
                log.warning("going on without %s: %s. Every output will say so", error.key, error.reason)
                missing[error.key] = error.reason
                del fetched[error.key]
    log.info("prepared %s in %.1f s", output_dir, time.monotonic() - started)
    return statistics


def _link_tree(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        there = target / path.relative_to(source)
        if path.is_dir():
            there.mkdir(parents=True)
        else:
            link_or_copy(path, there)


def _check_missing(request: Request, missing: Mapping[str, str]) -> None:
    if all(key in missing for key in request.train_keys):
        raise StageError("none of the training sets could be had: " + "; ".join(missing.values()))
    if reason := missing.get(request.attack_dataset):
        raise StageError(f"attacks are measured on {request.attack_dataset}, nothing can replace it: {reason}")
    if all(key in missing for key in request.test_keys):
        raise StageError("none of the test sets could be had: " + "; ".join(missing.values()))


def _finished(output_dir: Path, key: str) -> dict[str, Any] | None:
    try:
        if json.loads((output_dir / MANIFEST).read_text(encoding="utf-8"))["key"] != key:
            return None
        return json.loads((output_dir / STATISTICS).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError):
        return None

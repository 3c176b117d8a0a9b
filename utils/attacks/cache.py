"""Finished pieces of an attack on disk: whole files, each tied to the inputs that made it."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from utils.attacks.seeding import generator
from utils.core.codec import RecordError, from_json, to_json
from utils.core.files import write_json

log = logging.getLogger(__name__)
BLOCK_SIZE = 64  # examples that are attacked together: enough for full batches, few enough to lose to a stop
Record = TypeVar("Record")


def load_cached(path: Path, fingerprint: str) -> Any:
    """The value saved at `path`, or None where there is none or it was made from something else (and says so)."""
    if not path.exists():
        return None
    saved = json.loads(path.read_text(encoding="utf-8"))
    if saved.get("fingerprint") != fingerprint:
        log.warning("%s is of other weights, settings or examples: doing it again", path.name)
        return None
    return saved["value"]


def load_records(path: Path, fingerprint: str, record: type[Record]) -> list[Record] | None:
    """The records saved at `path`, or None as for load_cached; also where another version wrote them."""
    saved = load_cached(path, fingerprint)
    try:
        return saved if saved is None else [from_json(record, row, path.name) for row in saved]
    except RecordError as error:
        log.warning("%s; doing it again", error)
        return None


def save_cached(path: Path, fingerprint: str, value: Any) -> None:
    """Write `value` (records, or JSON-ready; finite) atomically under the fingerprint of what made it."""
    write_json(path, {"fingerprint": fingerprint, "value": to_json(value)})


def blocks_of(ids: Sequence[str]) -> list[list[int]]:
    """Indices of each block of BLOCK_SIZE examples.

    Examples are dealt by a hash of their id, so blocks do not depend on the order of the list, and every block is a
    random sample of it: running figures and the time left are honest from the start.
    """
    keys = [generator("block", name).random() for name in ids]
    order = sorted(range(len(ids)), key=lambda i: (keys[i], ids[i]))
    return [order[i : i + BLOCK_SIZE] for i in range(0, len(order), BLOCK_SIZE)]


def shard_dir(cache_dir: Path, shard: tuple[int, int]) -> Path:
    """Where a task of a job array keeps its own cache entries; a single job needs no directory of its own."""
    index, count = shard
    return cache_dir if count == 1 else cache_dir / f"shard_{index}_of_{count}"


def shard_of(ids: Sequence[str], shard: tuple[int, int]) -> list[int]:
    """Indices of the examples of shard (index, of how many): whole blocks, so numbers do not depend on shards."""
    index, of = shard
    if not 0 <= index < of:
        raise ValueError(f"shard {index} of {of}")
    return sorted(i for block in blocks_of(ids)[index::of] for i in block)

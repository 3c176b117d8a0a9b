"""Stages that a job array shares: each task writes its shard, and whoever finishes last merges them, once.

A shard's file begins with the fingerprint of what it was made from (settings, inputs). One that an earlier run left
behind has another fingerprint unless it is what this run would make, and counts as missing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.core.errors import ShardDone
from utils.core.files import read_jsonl, write_jsonl
from utils.core.locks import file_lock
from utils.pipeline.flags import problem_of
from utils.pipeline.runner import StageContext

Sections = dict[str, list[dict[str, Any]]]


def join_shards(context: StageContext, cache: Path, sections: Sections, finish: Callable[[Sections], None]) -> None:
    """Call `finish` with the sections of all shards, if this task is the last; raise ShardDone otherwise.

    A single job has all sections itself. The rows of a section keep the order of the shards. cache: directory that all
    tasks of the array see; the shards' files lie there.
    """
    index, count = context.shard
    if count == 1:
        finish(sections)
        return
    shards = [cache / f"shard_{i}_of_{count}.jsonl" for i in range(count)]
    made_from = context.basis.fingerprint
    rows = [{"section": name, "row": row} for name, items in sections.items() for row in items]
    with file_lock(cache / ".shards.lock", unprotected="two tasks that finish together may both merge the shards"):
        write_jsonl(shards[index], [{"made_from": made_from}, *rows])
        finished = [_rows(shard, made_from) for shard in shards]
        missing = [str(i) for i, shard_rows in enumerate(finished) if shard_rows is None]
        if missing:
            raise ShardDone(f"shard {index} of {count} is done; still to come: {', '.join(missing)}")
        if problem_of(context.stage, context.seed, context.paths, context.settings) is None:
            raise ShardDone("another task has merged the shards")
        merged: Sections = {}
        for shard_rows in finished:
            for item in shard_rows or []:
                merged.setdefault(item["section"], []).append(item["row"])
        finish(merged)


def _rows(shard: Path, made_from: str) -> list[dict[str, Any]] | None:
    """The rows of a shard; None if it is not there, or was made from something else."""
    items = list(read_jsonl(shard)) if shard.exists() else []
    return items[1:] if items and items[0].get("made_from") == made_from else None

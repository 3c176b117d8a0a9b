"""Stages that a job array shares: each task writes its part, and whoever finishes last puts them together, once.

A part begins with a mark of what it was made from (settings, inputs). A part that an earlier run left behind has
another mark unless it is what this run would make, and counts as missing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.core.errors import PartDone
from utils.core.files import read_jsonl, write_jsonl
from utils.core.fingerprint import fingerprint
from utils.core.locks import file_lock
from utils.pipeline.flags import problem_of, read_flag
from utils.pipeline.runner import StageContext
from utils.pipeline.stages import STAGES

Sections = dict[str, list[dict[str, Any]]]


def finish_part(context: StageContext, units: Path, sections: Sections, finish: Callable[[Sections], None]) -> None:
    """Call `finish` with the sections of all parts, if this task is the last; raise PartDone otherwise.

    A single job has all sections itself. The rows of a section keep the order of the parts.
    """
    index, count = context.shard
    if count == 1:
        finish(sections)
        return
    parts = [units / f"part_{i}_of_{count}.jsonl" for i in range(count)]
    mark = _mark(context)
    rows = [{"section": name, "row": row} for name, many in sections.items() for row in many]
    with file_lock(units / ".parts.lock", unprotected="two tasks that finish together may both put the parts together"):
        write_jsonl(parts[index], [{"made_from": mark}, *rows])
        found = [_rows(part, mark) for part in parts]
        waiting = [i for i, items in enumerate(found) if items is None]
        if waiting:
            raise PartDone(f"part {index} of {count} is done; still to come: {', '.join(map(str, waiting))}")
        if problem_of(context.stage, context.seed, context.paths, context.settings) is None:
            raise PartDone("another part has put them together")
        whole: Sections = {}
        for items in found:
            for item in items or []:
                whole.setdefault(item["section"], []).append(item["row"])
        finish(whole)


def _mark(context: StageContext) -> str:
    """What decides the content of a part: the stage's settings, and which runs of the stages before it it reads."""
    inputs = {STAGES[n].key: read_flag(STAGES[n], context.seed, context.paths)["token"] for n in context.stage.needs}
    return fingerprint(context.settings.subset(context.stage.settings) | inputs)


def _rows(part: Path, mark: str) -> list[dict[str, Any]] | None:
    """The rows of a part; None if it is not there, or was made from something else."""
    items = list(read_jsonl(part)) if part.exists() else []
    return items[1:] if items and items[0].get("made_from") == mark else None

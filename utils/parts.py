"""Stages that a job array shares: each task writes its part, and whoever finishes last puts them together, once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.errors import PartDone
from utils.files import read_jsonl, write_jsonl
from utils.flags import problem_of
from utils.prepared_store import exclusive
from utils.stage_runner import StageContext

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
    rows = [{"section": name, "row": row} for name, many in sections.items() for row in many]
    with exclusive(units / "parts"):
        write_jsonl(parts[index], rows)
        waiting = [i for i, part in enumerate(parts) if not part.exists()]
        if waiting:
            raise PartDone(f"part {index} of {count} is done; still to come: {', '.join(map(str, waiting))}")
        if problem_of(context.stage, context.seed, context.places, context.settings) is None:
            raise PartDone("another part has put them together")
        whole: Sections = {}
        for part in parts:
            for item in read_jsonl(part):
                whole.setdefault(item["section"], []).append(item["row"])
        finish(whole)

"""What every check gives back, and how two values are compared in words. Torch-free."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.core.codec import RecordError
from utils.core.errors import InputError
from utils.core.provenance import code_revision, versions

NOT_RECOMPUTED = {"seconds", "seconds_per_summary"}
TOLERANCE = 1e-9  # relative; sums over examples are made in the same order
SHOWN_AROUND = 60  # characters of the first difference of two texts


@dataclass
class Check:
    """One check: what was looked at, what does not match, and what could not be looked at or has to be known."""

    title: str
    problems: list[str]
    unseen: list[str] = field(default_factory=list)


def tried(check: Callable[[], Iterable[str]]) -> list[str]:
    """What the check finds; records that do not belong together, or lack a field, are a finding themselves."""
    try:
        return list(check())
    except RecordError as error:
        return [str(error)]
    except InputError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        return [f"cannot be recomputed: {type(error).__name__}: {error}"]


def close(made: float, found: float, absolute: float = 1e-12, relative: float = TOLERANCE) -> bool:
    """Whether two numbers are one, but for the order in which a processor adds."""
    return math.isclose(made, found, rel_tol=relative, abs_tol=absolute)


def unequal(made: Any, found: Any, where: str = "", relative: float = TOLERANCE) -> Iterator[str]:
    """Places where what is in the file is not what was made again, in words."""
    if isinstance(made, dict) and isinstance(found, dict):
        left, right = ({str(key): value for key, value in side.items()} for side in (made, found))
        for key in sorted({*left, *right} - NOT_RECOMPUTED):
            path = f"{where}.{key}" if where else key
            if key not in left or key not in right:
                yield f"{path} is {'not in the file' if key in left else 'not to be recomputed'}"
            else:
                yield from unequal(left[key], right[key], path, relative)
    elif isinstance(made, list | tuple) and isinstance(found, list | tuple):
        if len(made) != len(found):
            yield f"{where}: {len(found)} entries in the file, {len(made)} recomputed"
        for number, (one, other) in enumerate(zip(made, found, strict=False)):
            yield from unequal(one, other, f"{where}[{number}]", relative)
    elif isinstance(made, float) or isinstance(found, float):
        both = isinstance(made, int | float) and isinstance(found, int | float)
        if not both or not close(made, found, relative=relative):
            yield f"{where}: {found} in the file, {made} recomputed"
    elif json.dumps(made) != json.dumps(found):
        yield f"{where}: {found!r} in the file, {made!r} recomputed"


def text_of(path: Path) -> str:
    """The text of a file; empty where there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def first_difference(made: str, found: str) -> str:
    """Where two texts part: the line, what stands in the file, and what was made again."""
    at = next((i for i, (a, b) in enumerate(zip(made, found, strict=False)) if a != b), min(len(made), len(found)))
    start = max(0, at - SHOWN_AROUND // 2)
    shown = (repr(text[start : start + SHOWN_AROUND]) for text in (found, made))
    return f"line {made.count(chr(10), 0, at) + 1}: {next(shown)} in the file, {next(shown)} made again"


def other_surroundings(metadata: Mapping[str, Any]) -> list[str]:
    """In words, what is not here as it was where the results were made: each may move a last digit, or more."""
    found = []
    made, now = metadata["code"]["commit"], code_revision()["commit"]
    if made != now:
        found.append(f"code revision {made[:10]}, here {now[:10]}: git checkout {made[:10]} compares like with like")
    here = versions()
    for name, version in metadata["versions"].items():
        if here.get(name) != version:
            found.append(f"{name} {version}, here {here.get(name, 'not installed')}")
    return found


def figures_of(metadata: Mapping[str, Any]) -> list[str]:
    """Why figures are not compared; empty where the same matplotlib drew them."""
    recorded, here = metadata["versions"].get("matplotlib", "an unrecorded version"), versions()["matplotlib"]
    drawn = f"figures, drawn by matplotlib {recorded}, here {here}: other bytes for one picture"
    return [] if recorded == here else [drawn]

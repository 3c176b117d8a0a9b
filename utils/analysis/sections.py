"""Keys of the groups of records in the attacks' JSONL files: built and parsed here alone. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from utils.core.names import TRIGGER_TYPES


@dataclass(frozen=True)
class SectionKey:
    """One group of attack records.

    `part`: which attack, control or search ("attack", "greedy", "transfer", "search" ...); `model`: the model under
    attack, or that a trigger was searched on; `trigger_type`: of a trigger, else empty; `source`: the model that flips
    or trigger were found on, where the part has records of several. As text: PART[/TRIGGER_TYPE][/SOURCE]/MODEL.
    """

    part: str
    model: str
    trigger_type: str = ""
    source: str = ""

    def __str__(self) -> str:
        return "/".join(word for word in (self.part, self.trigger_type, self.source, self.model) if word)

    @classmethod
    def parse(cls, text: str) -> SectionKey:
        """The key that `text` is of; ValueError where it is of none."""
        part, *middle, model = text.split("/") if text.count("/") else ("", "", "")
        trigger_type = middle.pop(0) if middle and middle[0] in TRIGGER_TYPES else ""
        if not part or not model or len(middle) > 1:
            raise ValueError(f"{text!r} names no section: expected PART[/TRIGGER_TYPE][/SOURCE]/MODEL")
        return cls(part, model, trigger_type, *middle)


Sections = dict[SectionKey, list[Any]]

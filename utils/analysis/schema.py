"""The JSON schemas in docs/, made from the records: `python -m utils.analysis.schema` writes them. Torch-free.

They are for readers in other languages and for tests; the pipeline itself reads and writes through the record classes.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import typing
from pathlib import Path
from typing import Any, Literal

from utils.analysis.combined import CombinedFile
from utils.analysis.final import FinalFile
from utils.analysis.records import CeilingRecord, HotFlipRecord, LongBudgetRecord, TriggerRecord, TriggerSearch
from utils.core.codec import Keys, Pattern, Range, Type, fields_of, may_be_left_out, type_of
from utils.core.files import write_text
from utils.core.paths import CHECKOUT

WIDTH = 120
DIALECT = "https://json-schema.org/draft/2020-12/schema"
NAMES = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}
# File name, title, and the classes of which each row is one, with the pattern of its `section`.
FILES: dict[str, tuple[str, dict[type, str]]] = {
    "final_results": ("final_results.json of mono-s2s", {FinalFile: ""}),
    "multi_seed_results": ("multi_seed_results.json of mono-s2s", {CombinedFile: ""}),
    "hotflip_records": (
        "A line of hotflip_records.jsonl of mono-s2s",
        {HotFlipRecord: "^(?!long/|ceiling/)", LongBudgetRecord: "^long/", CeilingRecord: "^ceiling/"},
    ),
    "uat_records": (
        "A line of uat_records.jsonl of mono-s2s",
        {
            TriggerRecord: "^(?!search/|free_search/|ceiling/)",
            TriggerSearch: "^(search|free_search)/",
            CeilingRecord: "^ceiling/",
        },
    ),
}


def schema(title: str, classes: dict[type, str]) -> dict[str, Any]:
    """The schema of one file; a key that no record has is an error."""
    definitions: dict[str, Any] = {}
    choices = []
    for record, section in classes.items():
        _define(record, definitions)
        choice: dict[str, Any] = {"$ref": f"#/$defs/{record.__name__}"}
        if section:
            choice = {"allOf": [choice], "properties": {"section": {"pattern": section}}, "required": ["section"]}
        choices.append(choice)
    body = choices[0] if len(choices) == 1 else {"oneOf": choices}
    return {"$schema": DIALECT, "title": title, **body, "$defs": dict(sorted(definitions.items()))}


def _define(record: type, definitions: dict[str, Any]) -> None:
    if record.__name__ in definitions:
        return
    made: dict[str, Any] = {"description": " ".join(inspect.cleandoc(record.__doc__ or "").split()), "type": "object"}
    definitions[record.__name__] = made
    made["properties"] = {}
    for name, kind in fields_of(record).items():
        shown = _of(kind, definitions)
        if kind.inline:
            inline = {key: shown[key] for key in ("patternProperties", "additionalProperties") if key in shown}
            made |= inline | {"required": shown.get("required", [])}
        else:
            made["properties"][name] = shown
    plain = [name for name, kind in fields_of(record).items() if not kind.inline]
    made["required"] = [*made.get("required", []), *(n for n in plain if n not in may_be_left_out(record))]
    made.setdefault("additionalProperties", False)


def _of(kind: Type, definitions: dict[str, Any]) -> dict[str, Any]:
    made = _bare(kind, definitions)
    bounds, pattern, description = kind.note(Range), kind.note(Pattern), kind.note(str)
    if bounds:
        limits = {"minimum": bounds.least, "maximum": bounds.most}
        made |= {name: limit for name, limit in limits.items() if limit is not None}
    if pattern:
        made["pattern"] = f"^{pattern.regex}$"
    if kind.optional:
        made = made | {"type": [made["type"], "null"]} if "type" in made else {"anyOf": [made, {"type": "null"}]}
    return ({"description": description} if description else {}) | made


def _bare(kind: Type, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a type without what Annotated and Optional say."""
    origin, arguments = typing.get_origin(kind.bare), typing.get_args(kind.bare)
    if kind.bare is Any:
        return {}
    if dataclasses.is_dataclass(kind.bare) and isinstance(kind.bare, type):
        _define(kind.bare, definitions)
        return {"$ref": f"#/$defs/{kind.bare.__name__}"}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is dict:
        entry = _of(type_of(arguments[1]), definitions)
        keys = kind.note(Keys)
        if keys is None:
            return {"type": "object", "additionalProperties": entry}
        made = {"type": "object", "patternProperties": {f"^({'|'.join(keys.allowed)})$": entry}}
        return made | ({"required": list(keys.required)} if keys.required else {}) | {"additionalProperties": False}
    if origin is list:
        return {"type": "array", "items": _of(type_of(arguments[0]), definitions)}
    if origin is tuple:
        items = [_of(type_of(argument), definitions) for argument in arguments]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    return {"type": NAMES[kind.bare]}


def _text(value: Any, indent: int = 0, lead: int = 0) -> str:
    """JSON with one line for what fits into one; `lead`: columns that stand before it."""
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict) or indent + lead + len(line) < WIDTH:
        return line
    pad = " " * (indent + 1)
    entries = [f"{pad}{json.dumps(k)}: {_text(v, indent + 1, len(k) + 4)}" for k, v in value.items()]
    return "{\n" + ",\n".join(entries) + "\n" + " " * indent + "}"


def schemas() -> dict[str, str]:
    """Text of every schema by its file name in docs/."""
    return {f"{name}.schema.json": _text(schema(*entry)) + "\n" for name, entry in FILES.items()}


def main(directory: Path = CHECKOUT / "docs") -> int:
    """Write all schemas into `directory`."""
    for name, text in schemas().items():
        write_text(directory / name, text)
        print(directory / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())

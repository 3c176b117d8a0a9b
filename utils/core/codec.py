"""Records (frozen dataclasses) to JSON and back, by their type hints alone. Torch-free.

A key that is unknown or missing is an error that names it. A field with a default may be left out, and is where it is
None. Constraints and what a field means stand in its type: `Annotated[float, Range(0, 1), "share of ..."]`.

A dict field marked `Inline` has its entries beside the record's other keys, not under a key of its own: that is how
`results[model]` and `results["comparisons"]` share one JSON object.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union

from utils.core.errors import InputError

T = TypeVar("T")
SCALARS = (str, bool, int, float)
PLAIN = {*SCALARS, type(None)}


class RecordError(InputError):
    """JSON that is not what its record says: the message names the place and the key."""


class Range(NamedTuple):
    """Bounds of a number, both included; None: open."""

    least: float | None = None
    most: float | None = None


class Keys(NamedTuple):
    """Which keys a dict may have, and which it must."""

    allowed: tuple[str, ...]
    required: tuple[str, ...] = ()


class Pattern(NamedTuple):
    """A regular expression that the whole of a text matches. For readers and the JSON schema; not checked here."""

    regex: str


class Inline:
    """Marks a dict field whose entries stand beside the record's other keys."""


class Type(NamedTuple):
    """A type hint taken apart: what remains without Annotated and Optional, and what Annotated said."""

    bare: Any
    notes: tuple[Any, ...]
    optional: bool

    def note(self, kind: type[T]) -> T | None:
        """The outermost note of that kind, such as the description (str)."""
        return next((note for note in reversed(self.notes) if isinstance(note, kind)), None)

    @property
    def inline(self) -> bool:
        return Inline in self.notes


def type_of(hint: Any) -> Type:
    """Take a type hint apart, through any nesting of Annotated and `X | None`."""
    notes: tuple[Any, ...] = ()
    optional = False
    while True:
        if typing.get_origin(hint) is Annotated:
            notes = (*hint.__metadata__, *notes)
            hint = hint.__origin__
        elif typing.get_origin(hint) in (Union, types.UnionType) and type(None) in typing.get_args(hint):
            (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
            optional = True
        else:
            return Type(hint, notes, optional)


@functools.cache
def fields_of(record: type) -> dict[str, Type]:
    """The fields of a record class in the order of its JSON; inherited ones first."""
    hints = typing.get_type_hints(record, include_extras=True)
    return {field.name: type_of(hints[field.name]) for field in dataclasses.fields(record)}


@functools.cache
def may_be_left_out(record: type) -> frozenset[str]:
    """The fields that have a default."""
    missing = dataclasses.MISSING
    fields = dataclasses.fields(record)
    return frozenset(f.name for f in fields if f.default is not missing or f.default_factory is not missing)


def to_json(value: Any) -> Any:
    """A record, or lists and dicts of records, as what json.dumps takes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        known = fields_of(type(value))
        optional = may_be_left_out(type(value))
        written: dict[str, Any] = {}
        for name, kind in known.items():
            entry = getattr(value, name)
            if kind.inline:
                written |= to_json(entry)
            elif entry is not None or name not in optional:
                written[name] = to_json(entry)
        return written
    if isinstance(value, dict):
        return {key: to_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        plain = not value or set(map(type, value)) <= PLAIN  # long lists of ids need no second look
        return list(value) if plain else [to_json(entry) for entry in value]
    return value


def from_json(record: type[T], value: Any, where: str = "") -> T:
    """The record that `value` (from json.load) holds; RecordError, naming the place below `where`, if it does not."""
    decoded: T = _decode(type_of(record), value, where)
    return decoded


def _decode(kind: Type, value: Any, where: str) -> Any:
    if value is None:
        if kind.optional or kind.bare in (Any, type(None)):
            return None
        raise RecordError(f"{where}: null, expected {_name(kind.bare)}")
    origin, arguments = typing.get_origin(kind.bare), typing.get_args(kind.bare)
    if kind.bare is Any:
        return value
    if isinstance(kind.bare, type) and dataclasses.is_dataclass(kind.bare):
        return _record(kind.bare, _checked(value, dict, where), where)
    if origin is Literal:
        if value not in arguments:
            raise RecordError(f"{where}: {value!r}, expected one of {', '.join(map(repr, arguments))}")
        return value
    if origin is dict:
        return _entries(kind, _checked(value, dict, where), where)
    if origin in (list, tuple):
        several = _checked(value, list, where)
        if origin is tuple and arguments[-1] is not Ellipsis:
            if len(several) != len(arguments):
                raise RecordError(f"{where}: {len(several)} entries, expected {len(arguments)}")
            return tuple(_decode(type_of(a), v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(arguments, several)))  # noqa: B905
        item = type_of(arguments[0])
        if item.bare in SCALARS and not item.notes:  # as in to_json
            accepted = (
                {item.bare} | ({int} if item.bare is float else set()) | ({type(None)} if item.optional else set())
            )
            if set(map(type, several)) <= accepted:
                return origin(several)
        return origin(_decode(item, entry, f"{where}[{i}]") for i, entry in enumerate(several))
    if kind.bare is float and isinstance(value, int) and not isinstance(value, bool):
        return value  # JSON does not tell 1 from 1.0; it stays as written
    if kind.bare in SCALARS and type(value) is kind.bare:
        _bounded(kind, value, where)
        return value
    raise RecordError(f"{where}: {_short(value)}, expected {_name(kind.bare)}")


def _record(record: type, value: dict[str, Any], where: str) -> Any:
    known = fields_of(record)
    inline = [name for name, kind in known.items() if kind.inline]
    plain = [name for name in known if name not in inline]
    present = [name for name in plain if name in value]
    for name in plain:
        if name not in value and name not in may_be_left_out(record):
            raise RecordError(f"{_below(where, name)} is missing ({record.__name__})")
    beside = {key: entry for key, entry in value.items() if key not in plain}
    if beside and not inline:
        raise RecordError(f"{_below(where, next(iter(beside)))} is not a key of {record.__name__}")
    decoded = {name: _decode(known[name], value[name], _below(where, name)) for name in present}
    return record(**decoded | {name: _decode(known[name], beside, where) for name in inline})


def _entries(kind: Type, value: dict[str, Any], where: str) -> dict[str, Any]:
    keys = kind.note(Keys)
    if keys:
        for key in value:
            if key not in keys.allowed:
                raise RecordError(f"{_below(where, key)}: unknown key, expected one of {', '.join(keys.allowed)}")
        for key in keys.required:
            if key not in value:
                raise RecordError(f"{_below(where, key)} is missing")
    entry = type_of(typing.get_args(kind.bare)[1])
    return {key: _decode(entry, item, _below(where, key)) for key, item in value.items()}


def _bounded(kind: Type, value: Any, where: str) -> None:
    bounds = kind.note(Range)
    if bounds and not (
        (bounds.least is None or value >= bounds.least) and (bounds.most is None or value <= bounds.most)
    ):
        raise RecordError(f"{where}: {value}, expected {' to '.join(str(b) for b in bounds if b is not None)}")


def _checked(value: Any, kind: type[T], where: str) -> T:
    if not isinstance(value, kind):
        raise RecordError(f"{where}: {_short(value)}, expected {'an object' if kind is dict else 'a list'}")
    return value


def _below(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""The one fingerprint: a short hash of plain values that names what made a file (settings, inputs, options)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

LENGTH = 16  # hex digits: 64 bits, no accidental collision among millions of files


def fingerprint(*values: object) -> str:
    """16 hex digits of the sha256 of `values`; the same in every process, on every machine.

    A value is None, bool, int, float, str, bytes, a path, a dataclass, a numpy scalar or array, or a list, tuple, set
    or mapping (text keys) of values. Lists, tuples and arrays of equal content are equal, as in JSON; the order of
    mappings and sets does not count; 1, 1.0 and True differ. TypeError for anything else: its repr could differ in
    each process.
    """
    text = json.dumps([_plain(value) for value in values], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def _plain(value: Any) -> Any:
    """`value` in JSON's types. What JSON has no type for becomes a one-element object whose key no mapping can have."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise TypeError(f"a mapping with the key {wrong[0]!r} has no fingerprint: keys must be text")
        return {f"={key}": _plain(item) for key, item in value.items()}  # "=": no key looks like "bytes" below
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, set | frozenset):
        return {"set": sorted(json.dumps(_plain(item), sort_keys=True) for item in value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f"={field.name}": _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "dtype") and hasattr(value, "tolist"):  # numpy, without importing it here
        return _plain(value.tolist())
    raise TypeError(f"{type(value).__name__} has no fingerprint: {value!r}")

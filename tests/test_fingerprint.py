"""One fingerprint: equal for equal content in any process, different for different content, no repr of anything."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.core.fingerprint import fingerprint

ROOT = Path(__file__).resolve().parents[1]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


def json_of(value) -> str:
    """The yardstick: two values are the same exactly if their JSON is."""
    return json.dumps(value, sort_keys=True)


@given(VALUES, VALUES)
def test_two_values_agree_exactly_where_their_json_does(one, other):
    assert (fingerprint(one) == fingerprint(other)) == (json_of(one) == json_of(other))


@given(st.dictionaries(st.text(), SCALARS, min_size=2))
def test_the_order_of_a_mapping_does_not_count(mapping):
    assert fingerprint(mapping) == fingerprint(dict(reversed(mapping.items())))


@dataclasses.dataclass(frozen=True)
class Options:
    length: int
    types: tuple[str, ...]
    root: Path


def test_it_is_sha256_of_canonical_json():
    text = '[{"=A":1,"=B":[1.5,"x",null,true]}]'
    assert fingerprint({"B": (1.5, "x", None, True), "A": 1}) == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_what_is_no_json_has_its_content_counted():
    options = Options(5, ("lead",), Path("/a"))
    assert fingerprint(options) == fingerprint({"length": 5, "types": ["lead"], "root": "/a"})
    assert fingerprint(options) != fingerprint(dataclasses.replace(options, length=6))
    assert fingerprint(np.arange(3)) == fingerprint([0, 1, 2]) != fingerprint(np.arange(3.0))
    assert fingerprint(np.float32(0.5)) == fingerprint(0.5)
    assert fingerprint({"b", "a", "c"}) == fingerprint(frozenset("cab")) != fingerprint(["a", "b", "c"])
    assert fingerprint(b"\x00\xff") != fingerprint("00ff") != fingerprint({"bytes": "00ff"})
    assert fingerprint("a", "b") != fingerprint("ab") and fingerprint(["a"]) != fingerprint("a")


@pytest.mark.parametrize("value", [object(), lambda: 0, {1: "a"}, [object()], Options])
def test_what_could_differ_between_processes_is_refused(value):
    with pytest.raises(TypeError, match="fingerprint"):
        fingerprint(value)


def test_every_process_agrees():
    code = "from utils.core.fingerprint import fingerprint; print(fingerprint({'s': {'x', 'y', 'z'}}, 0.1, ['é']))"
    here = fingerprint({"s": {"x", "y", "z"}}, 0.1, ["é"])
    for seed in ("0", "1", "2"):  # of Python's own hash, which orders sets
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True
        )
        assert done.stdout.strip() == here

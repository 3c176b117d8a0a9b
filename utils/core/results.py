"""The envelope of every result file: {"results": ..., "_metadata": ...}. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.core.errors import InputError
from utils.core.files import write_json

PROFILE_NOTES = {
    "quick": "QUICK RUN: a debugging run on a few examples, not a result",
    "demo": "DEMO: a small model and an invented corpus, not the experiment",
}


def profile_note(metadata: Mapping[str, Any]) -> str:
    """The warning that every output of a small profile carries; empty for a full run."""
    if metadata["profile"] == "full" and not metadata.get("full_test_sets", True):
        return "PARTIAL TEST SETS: a sample of each test set, not the full evaluation"
    return PROFILE_NOTES.get(metadata["profile"], "")


def write_result(path: Path, results: Any, metadata: dict[str, Any]) -> None:
    """Write `results` in the envelope, atomically. NaN and infinity are refused (ValueError)."""
    write_json(path, {"results": results, "_metadata": metadata})


def read_result(path: Path) -> dict[str, Any]:
    """The envelope as written; InputError if the file is missing or not one."""
    try:
        envelope = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run the stage that writes it.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): run the stage that writes it again.") from None
    if not isinstance(envelope, dict) or set(envelope) != {"results", "_metadata"}:
        raise InputError(f"{path} is not a result file of this pipeline.")
    return envelope

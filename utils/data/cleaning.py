"""Normalise text (whitespace, invisible characters, tokenizer control words) and filter rows without enough of it.

Line breaks stay: they separate the highlights of CNN/DM and the turns of a dialogue. What a reader sees is not
changed, so ROUGE does not move.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

# A document shorter than this cannot be summarised; a summary of one word is a label. Only for training and
# validation: a test set keeps every row that has text, or its numbers could not be compared with others'.
MIN_DOCUMENT_WORDS = 8
MIN_SUMMARY_WORDS = 2

_INVISIBLE = re.compile(
    r"[\u0000-\u0008\u000e-\u001f\u007f-\u0084\u0086-\u009f\u00ad\u200b-\u200f\u2060\ufeff\ufffe\uffff]"
)
# Inside a document these would become pad, end of text or a sentinel: ids that no text may have.
_CONTROL_WORDS = re.compile(r"</?(s|pad|unk|extra_id_\d+)>")
_SURROGATES = re.compile(r"[\ud800-\udfff]")


def clean_text(text: str) -> str:
    """`text` with single spaces, single line breaks, no space at line ends, in Unicode NFC; may be empty.

    A line ends wherever Unicode says so (\\r, \\r\\n, \\v, \\f, U+0085, U+2028, U+2029), not only at \\n.
    """
    text = _INVISIBLE.sub("", text)
    text = _CONTROL_WORDS.sub(" ", text)
    text = unicodedata.normalize("NFC", _SURROGATES.sub("?", text))
    return "\n".join(filter(None, (" ".join(line.split()) for line in text.splitlines())))


def as_text(value: Any, *, first: bool = False) -> str | None:
    """A cell as one string: None and NaN give "", a list its items joined by spaces (`first`: its first item).

    Returns None for a cell that is neither text nor a list of texts; the caller knows which file and column to blame.
    """
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return ""
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return (value[0] if value else "") if first else " ".join(value)
    return None


def problem_of(document: str, summary: str, *, test: bool) -> str | None:
    """Why a row of clean texts is dropped (a key of the statistics' `removed`), or None if it stays."""
    if not document:
        return "empty_document"
    if not summary:
        return "empty_summary"
    if not test and (len(document.split()) < MIN_DOCUMENT_WORDS or len(summary.split()) < MIN_SUMMARY_WORDS):
        return "too_short"
    return None

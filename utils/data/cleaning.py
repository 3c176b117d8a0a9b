"""Normalise text (whitespace, invisible characters, tokenizer control words) and filter rows without enough of it.

Line breaks stay: they separate the highlights of CNN/DM and the turns of a dialogue. What a reader sees is not
changed, so ROUGE does not move.
"""

from __future__ import annotations

import re
import unicodedata

# A document shorter than this cannot be summarised; a summary of one word is a label. Only for training and
# validation: a test set keeps every row that has text, or its numbers could not be compared with others'.
MIN_DOCUMENT_WORDS = 8
MIN_SUMMARY_WORDS = 2

# Scripts that put no spaces between words, by their Unicode blocks. (Hangul and Ethiopic have spaces.)
UNSPACED = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff"  # Thai, Lao, Tibetan, Burmese, Khmer
UNSPACED += "\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f\ua980-\ua9ff\uaa60-\uaadf"  # Tai, Balinese, Javanese
UNSPACED += "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f\u3100-\u312f\u31a0-\u31bf"  # kana, Bopomofo
UNSPACED += "\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua48f\uf900-\ufaff\U00020000-\U0003ffff"  # Han, Yi
_UNSPACED = re.compile(f"[{UNSPACED}]")
_INVISIBLE = re.compile(
    r"[\u0000-\u0008\u000e-\u001f\u007f-\u0084\u0086-\u009f\u00ad\u200b\u200e\u200f\u2060\ufeff\ufffe\uffff]"
)
_ASCII_INVISIBLE = {code: None for code in range(128) if _INVISIBLE.match(chr(code))}
# They shape Persian and Indic letters and hold an emoji family together; between Latin letters they are invisible.
_JOINERS = re.compile("[\u200c\u200d]+")
# Inside a document these would become pad, end of text or a sentinel: ids that no text may have.
_CONTROL_WORDS = re.compile(r"</?(?:s|pad|unk|extra_id_\d+)>")
_SURROGATES = re.compile(r"[\ud800-\udfff]")


def clean_text(text: str) -> str:
    """`text` with single spaces, single line breaks, no space at line ends, in Unicode NFC; may be empty.

    A line ends wherever Unicode says so (\\r, \\r\\n, \\v, \\f, U+0085, U+2028, U+2029), not only at \\n.
    """
    if text.isascii():  # most long texts: nothing to compose, and three expressions less to run
        text = text.translate(_ASCII_INVISIBLE)
    else:
        text = _INVISIBLE.sub("", text)
        text = unicodedata.normalize("NFC", _SURROGATES.sub("?", text))
        if "\u200c" in text or "\u200d" in text:
            text = unicodedata.normalize("NFC", _JOINERS.sub(_shaping, text))  # what a joiner held apart may compose
    if "<" in text:
        text = _CONTROL_WORDS.sub(" ", text)
    return "\n".join(filter(None, (" ".join(line.split()) for line in text.splitlines())))


def _shaping(joiners: re.Match[str]) -> str:
    """The joiners if letters or signs beyond ASCII are on both sides of them, else nothing."""
    text, start, end = joiners.string, joiners.start(), joiners.end()
    sides = text[start - 1] if start else "", text[end] if end < len(text) else ""
    return joiners[0] if all(side > "\u007f" and not side.isspace() for side in sides) else ""


def count_words(text: str) -> int:
    """Words of a clean text: what is between spaces; in scripts without spaces every character counts as one."""
    if text.isascii() or not _UNSPACED.search(text):
        return text.count(" ") + text.count("\n") + 1 if text else 0
    return sum(len(found := _UNSPACED.findall(word)) + (len(found) < len(word)) for word in text.split())


def is_written_value(text: str) -> bool:
    """Whether a clean text is a program's value written as text: ['a', 'b'], {'a': 1}, <S> a </S>, or all in quotes."""
    first, last = text[:1], text[-1:]
    if first in ("'", '"'):
        return first == last and text.count(first) == 2
    enclosed = {"[": "]", "(": ")", "{": "}"}.get(first) == last
    return (enclosed and text[1] in "'\"") or (text[:3] == "<S>" and text[-4:] == "</S>")


def problem_of(document: str, summary: str, *, test: bool) -> str | None:
    """Why a row of clean texts is dropped (a key of the statistics' `removed`), or None if it stays."""
    if not document:
        return "empty_document"
    if not summary:
        return "empty_summary"
    if not test and (count_words(document) < MIN_DOCUMENT_WORDS or count_words(summary) < MIN_SUMMARY_WORDS):
        return "too_short"
    return None

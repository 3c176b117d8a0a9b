"""What no page, table or card may hold, whatever the data hold."""

from __future__ import annotations

import re

# Not allowed in HTML or XML, not even escaped; a lone surrogate cannot even be written to a file.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def printable(text: str) -> str:
    """The text with a replacement character for every control character that is not white space."""
    return _UNPRINTABLE.sub("\ufffd", text)

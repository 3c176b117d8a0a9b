"""Which tokens an attack may use, and which token sequences a person could really type.

T5's tokenizer splits text on white space before anything else, so a word's ids depend on that word alone. A change of
ids is therefore *typable* exactly when each word that it touches encodes to the very ids that were put there. That is
what `TokenizerView.survives` checks, word by word, and why the check is cheap and exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from utils.core.errors import StageError, UsageError
from utils.modeling.batching import Row

SPACE = "▁"  # SentencePiece writes a space as this sign, at the start of a piece that starts a word
TOKEN_SETS = ("roundtrip", "raw")
NATURAL_WORD = re.compile(SPACE + r"[a-z]{2,}")
TokenArray: TypeAlias = NDArray[np.int64]
TokenIds: TypeAlias = Row  # token ids of one input, text or summary
CACHE_LIMIT = 300_000  # sequences remembered by `survives`; about 100 MB


class TokenizerView:
    """The vocabulary as arrays, and a cached test of whether ids survive decoding and encoding.

    Attributes, all of length `size` (the tokenizer's own vocabulary, sentinels included; the model's embedding is
    often longer, and what lies beyond is no token at all):
    `pieces` list[str], `special` bool (pad, eos, unk, sentinels, holes), `starts_word` bool.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.size = len(tokenizer)
        self.pieces = [piece or "" for piece in tokenizer.convert_ids_to_tokens(list(range(self.size)))]
        self.special = np.zeros(self.size, dtype=bool)
        self.special[[i for i in tokenizer.all_special_ids if 0 <= i < self.size]] = True
        self.special[[i for i in tokenizer.get_added_vocab().values() if i < self.size]] = True
        self.special[[i for i, piece in enumerate(self.pieces) if not piece]] = True
        self.starts_word = np.array([piece.startswith(SPACE) for piece in self.pieces], dtype=bool)
        self._survives: dict[tuple[int, ...], bool] = {}

    def text(self, ids: Iterable[int]) -> str:
        """Plain text of `ids` as it stands in the middle of a sentence: a piece that starts a word gives a space."""
        return "".join(self.pieces[i] for i in ids).replace(SPACE, " ")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text without specials."""
        if not texts:
            return []
        encoded: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return encoded

    def survives(self, sequences: Sequence[TokenIds]) -> list[bool]:
        """For each id sequence (whole words): does encoding its text give exactly these ids again?"""
        keys = [tuple(map(int, sequence)) for sequence in sequences]
        unseen = [key for key in dict.fromkeys(keys) if key not in self._survives]
        if unseen:
            if len(self._survives) > CACHE_LIMIT:
                self._survives.clear()
                unseen = list(dict.fromkeys(keys))
            for key, ids in zip(unseen, self.encode([self.text(key).strip() for key in unseen]), strict=True):
                self._survives[key] = tuple(ids) == key
        return [self._survives[key] for key in keys]


class LegalTokens:
    """The token ids an attack may write, in one order that the whole attack shares.

    `ids` int64 [V]: the legal ids, whole words first; `whole` of them encode to themselves standing alone between
    spaces, so putting one in the place of another whole word is typable without any further check.
    Never pad, eos, unk, sentinels, other added tokens, or ids beyond the tokenizer's vocabulary.

    `token_set` "roundtrip" (default): changes must survive decode and encode. "raw": any legal id anywhere: a stronger
    attacker who feeds ids, not text.
    """

    def __init__(self, view: TokenizerView, *, token_set: str = "roundtrip", embedding_size: int | None = None) -> None:
        if token_set not in TOKEN_SETS:
            raise UsageError(f"attack token set {token_set!r}: must be one of {', '.join(TOKEN_SETS)}")
        if embedding_size is not None and view.size > embedding_size:
            raise StageError(
                f"the tokenizer has {view.size} tokens, the model only {embedding_size} embeddings: they do not belong"
                " together"
            )
        self.view, self.token_set = view, token_set
        legal = np.flatnonzero(~view.special)
        alone = np.zeros(view.size, dtype=bool)
        alone[legal] = view.survives([(i,) for i in legal.tolist()])
        whole_mask = alone & view.starts_word & ~view.special
        whole = np.flatnonzero(whole_mask)
        if token_set == "roundtrip" and not len(whole):
            raise StageError(
                "no token of this vocabulary survives decoding and encoding as a word of its own, so no attack in"
                " typable text exists; ATTACK_TOKEN_SET=raw attacks the ids instead"
            )
        if not len(legal):
            raise StageError("the tokenizer has no token that an attack may use: only specials")
        self.ids = np.concatenate([whole, np.flatnonzero(~view.special & ~whole_mask)]).astype(np.int64)
        self.whole = len(whole)
        self.whole_mask = whole_mask
        self.natural = np.array([i for i in whole if NATURAL_WORD.fullmatch(view.pieces[i])], dtype=np.int64)

    @property
    def typable(self) -> bool:
        """Whether changes must survive decode and encode."""
        return self.token_set == "roundtrip"


def word_bounds(starts_word: np.ndarray, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """First position and end of the word that each position of `[start, end)` belongs to.

    `starts_word` bool [T] of a sequence. Returns two int64 arrays of length `end - start` holding absolute positions.
    The first position counts as a word's start whatever its piece is.
    """
    where = np.arange(start, end)
    begins = starts_word[start:end].copy()
    if len(begins):
        begins[0] = True
    first = np.maximum.accumulate(np.where(begins, where, start))
    nexts = np.append(np.where(begins, where, end)[1:], end)
    last = np.minimum.accumulate(nexts[::-1])[::-1]
    return first, last

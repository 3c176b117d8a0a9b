"""How every summary of the experiment is generated, in evaluation and attacks alike, and what from. Torch-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.core.fingerprint import fingerprint
from utils.core.settings import Settings


@dataclasses.dataclass(frozen=True)
class DecodingSettings:
    """Beam search settings; lengths count generated tokens, </s> included (as transformers counts them).

    engine: "fast" (`beam_search`) or "transformers" (its own `generate`).
    """

    num_beams: int = 4
    length_penalty: float = 1.2
    min_new_tokens: int = 10
    max_new_tokens: int = 80
    no_repeat_ngram_size: int = 3
    engine: str = "fast"


def decoding_settings(settings: Settings) -> DecodingSettings:
    """The experiment's decoding, from its settings."""
    return DecodingSettings(
        num_beams=settings.NUM_BEAMS,
        length_penalty=settings.LENGTH_PENALTY,
        min_new_tokens=settings.MIN_NEW_TOKENS,
        max_new_tokens=settings.MAX_NEW_TOKENS,
        no_repeat_ngram_size=settings.NO_REPEAT_NGRAM_SIZE,
        engine=settings.GENERATION,
    )


def input_fingerprint(ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
    """Names an input by its token ids: equal ids, equal fingerprint, whether they come as list, tuple or array."""
    return fingerprint(np.asarray(ids, dtype=np.int32).tobytes())

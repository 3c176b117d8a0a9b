"""Legal triggers: drawn at random, or proposed from first-order gains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from utils.attacks.legal_tokens import LegalTokens
from utils.core.errors import StageError

COMMON_WORDS = ("▁the", "▁The", "▁a")
EXTRA = 3  # candidates drawn for each one wanted: some repeat, some are not typable
RANDOM_SHARE = 0.1  # of the candidates: the way out of a misleading gradient
BEST_SHARE = 0.4  # of the candidates: the single swaps of highest first-order gain, in order


def token_pool(legal: LegalTokens, kind: str) -> np.ndarray:
    """The ids that a trigger of type `kind` may hold, int64 [V], whole words first."""
    if kind != "natural":
        return legal.ids
    if not len(legal.natural):
        raise StageError("the natural trigger needs whole lowercase words, and this vocabulary has none")
    return legal.natural


def typable(legal: LegalTokens, triggers: Sequence[Sequence[int]]) -> list[bool]:
    """Whether each trigger, standing between spaces, survives decode and encode (always true for token_set raw)."""
    if not legal.typable:
        return [True] * len(triggers)
    return legal.view.survives(triggers)


def random_triggers(
    legal: LegalTokens, kind: str, length: int, count: int, rng: np.random.Generator, *, common: bool = True
) -> list[list[int]]:
    """`count` random triggers; with `common`, the first is a common word repeated, where the vocabulary has one."""
    pool = token_pool(legal, kind)
    if legal.typable and kind != "natural":
        pool = pool[: legal.whole]
    drawn = [list(map(int, rng.choice(pool, length))) for _ in range(count)]
    if common:
        ids = {legal.view.pieces[i]: int(i) for i in pool}
        word = next((ids[piece] for piece in COMMON_WORDS if piece in ids), None)
        if word is not None:
            drawn[0] = [word] * length
    return drawn


def candidate_triggers(
    legal: LegalTokens,
    kind: str,
    trigger: Sequence[int],
    gains: NDArray[np.float64] | None,
    *,
    count: int,
    top_k: int,
    pairs: bool,
    rng: np.random.Generator,
) -> list[list[int]]:
    """Up to `count` different typable neighbours of `trigger`, each with one token changed (with `pairs`, some two).

    `gains` float [length, V] over `token_pool`: first-order gain of each token at each slot; None draws at random.
    The best single swaps come first, then draws among each slot's `top_k` tokens (as in GCG, Zou et al. 2023, where
    a sampled candidate often beats the greedy one), then a few at random.
    """
    pool, length = token_pool(legal, kind), len(trigger)
    swaps: list[list[int]] = []
    if gains is not None and np.abs(gains).max() > 0:
        depth = min(top_k, len(pool))
        # argpartition finds each slot's `depth` best in O(V); only these [length, depth] are then sorted.
        top = np.argpartition(-gains, depth - 1, axis=1)[:, :depth]
        values = np.take_along_axis(gains, top, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        top, values = np.take_along_axis(top, order, axis=1), np.take_along_axis(values, order, axis=1)
        # Over all slots at once: flat index n is slot n // depth, rank n % depth.
        ranked = np.argsort(-values, axis=None, kind="stable")[: EXTRA * count]
        best = [_swapped(trigger, [int(n // depth)], [int(pool[top[n // depth, n % depth]])]) for n in ranked]
        swaps += _new_and_typable(legal, trigger, best, int(BEST_SHARE * count))
        # Two slots at once early in the search: a way past a token that only helps together with another one.
        two_slots = rng.random(EXTRA * count) < (0.5 if pairs and length > 1 else 0.0)
        # Rank-weighted (1/rank): a slot's better tokens come up more often, all of the top k can.
        weights = 1.0 / np.arange(1, depth + 1)
        ranks = rng.choice(depth, size=(EXTRA * count, 2), p=weights / weights.sum())
        drawn = []
        for two, rank in zip(two_slots, ranks, strict=True):
            slots = rng.permutation(length)[: 2 if two else 1].tolist()
            drawn.append(_swapped(trigger, slots, [int(pool[top[s, k]]) for s, k in zip(slots, rank, strict=False)]))
        swaps += _new_and_typable(legal, trigger, drawn, count - int(RANDOM_SHARE * count) - len(swaps), swaps)
    plain = pool if kind == "natural" or not legal.typable else pool[: legal.whole]
    anywhere = [_swapped(trigger, [int(rng.integers(length))], [int(rng.choice(plain))]) for _ in range(EXTRA * count)]
    return swaps + _new_and_typable(legal, trigger, anywhere, count - len(swaps), swaps)


def _swapped(trigger: Sequence[int], slots: Sequence[int], tokens: Sequence[int]) -> list[int]:
    changed = list(map(int, trigger))
    for slot, token in zip(slots, tokens, strict=True):
        changed[slot] = token
    return changed


def _new_and_typable(
    legal: LegalTokens,
    trigger: Sequence[int],
    drawn: Sequence[list[int]],
    count: int,
    taken: Sequence[Sequence[int]] = (),
) -> list[list[int]]:
    """The first `count` of `drawn` that are typable and neither `trigger` nor among `taken`."""
    known = {tuple(trigger), *map(tuple, taken)}
    fresh = [list(t) for t in dict.fromkeys(map(tuple, drawn)) if t not in known]
    return [t for t, fine in zip(fresh, typable(legal, fresh), strict=True) if fine][: max(count, 0)]

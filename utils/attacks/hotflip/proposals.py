"""Which single-token changes are worth an exact score: by first-order gain, or at random.

The first-order (Taylor) gain of writing token v at position p is g_p · (e_v − e_old), g the gradient of the loss with
respect to the input embeddings (HotFlip, Ebrahimi et al. 2018, eq. 10; here over all positions at once, where the
`− e_old` term matters). It only proposes: the exact loss decides.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.analysis.records import SearchStep
from utils.attacks.encoding import EncodedText
from utils.attacks.legal_tokens import LegalTokens, word_bounds

Mask: TypeAlias = NDArray[np.bool_]
GAIN_ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 28}  # numbers in one [rows, T, V] block of gains: 64 MB, 1 GB


@dataclass(frozen=True)
class Flip:
    """Token `new` in the place of `old` at `position`; `predicted` first-order gain in nats (nan: not from one)."""

    position: int
    old: int
    new: int
    predicted: float
    random: bool = False


@dataclass(eq=False)
class State:
    """An attacked input on its way: `ids` int64 [T], its exact `loss`, and the flips that led here with their gains."""

    ids: np.ndarray
    loss: float
    flips: tuple[Flip, ...] = ()
    gains: tuple[float, ...] = ()
    tried: set[tuple[int, int]] = field(default_factory=set)

    def child(self, flip: Flip, loss: float) -> State:
        """This state with one more flip, whose exact loss is `loss`."""
        ids = self.ids.copy()
        ids[flip.position] = flip.new
        return State(ids, loss, (*self.flips, flip), (*self.gains, loss - self.loss))


@dataclass(eq=False)
class SearchTrajectory:
    """One attack on one example from one start: its beam of states and what it cost."""

    example: int
    restart: int
    states: list[State]
    rng: np.random.Generator
    best: list[State] = field(default_factory=list)  # best[k]: the strongest state with at most k flips
    queries: int = 0
    gradients: int = 0
    gradient_norm: float = math.nan  # of the loss at the clean input, over the positions that may change
    pairs: list[tuple[float, float, bool]] = field(default_factory=list)  # (predicted, actual, random) of all scored
    steps: list[SearchStep] = field(default_factory=list)
    retried_gradients: int = 0  # not finite, computed again in float32
    bad_gradients: int = 0  # not finite then either: taken for zero
    bad_losses: int = 0  # candidates whose loss was not finite: never accepted
    generations: int = 0  # summaries that chose between candidates (the search by the metric)


class EditablePositions:
    """What may be changed in one state.

    `open` bool [T]: attackable and not flipped yet. `whole` bool [T]: open, and a word of one token. `first`, `last`
    int64 [document tokens]: first position and end of the word that each document position belongs to.
    """

    def __init__(self, legal: LegalTokens, encoded: EncodedText, state: State) -> None:
        self.legal, self.encoded, self.state = legal, encoded, state
        self.starts = legal.view.starts_word[state.ids]
        self.first, self.last = word_bounds(self.starts, encoded.start, encoded.end)
        self.open = np.zeros(len(state.ids), dtype=bool)
        self.open[list(encoded.attackable)] = True
        self.attackable = self.open.copy()
        self.open[[flip.position for flip in state.flips]] = False
        self.whole = np.zeros(len(state.ids), dtype=bool)
        self.whole[encoded.start : encoded.end] = (self.last - self.first) == 1
        self.whole &= self.open

    def always_typable(self, position: int, token: int) -> bool:
        """True where no check is needed: one whole word for another, or typability is not asked for."""
        return not self.legal.typable or bool(self.whole[position] and self.legal.whole_mask[token])

    def words_after(self, position: int, token: int) -> tuple[int, ...] | None:
        """The ids that every word touched by the change has after it; None where no text can give them.

        A token that does not start a word, put where a word started, joins that word to the one before it: both are
        touched, because the tokenizer then reads them as one.
        """
        start = self.encoded.start
        first, last = int(self.first[position - start]), int(self.last[position - start])
        if position == first and not self.legal.view.starts_word[token]:
            if first == start:
                return None  # the document's first word always starts with a space
            first = int(self.first[first - 1 - start])
            if not self.attackable[first]:
                return None  # the word before it is protected
        ids = self.state.ids
        return (*ids[first:position].tolist(), token, *ids[position + 1 : last].tolist())


def only(editable: EditablePositions, positions: Sequence[int]) -> EditablePositions:
    """The same state with these positions alone open."""
    narrow, kept = copy.copy(editable), np.zeros(len(editable.open), dtype=bool)
    kept[list(positions)] = True
    narrow.open, narrow.whole = editable.open & kept, editable.whole & kept
    return narrow


def random_flips(editable: EditablePositions, count: int, rng: np.random.Generator) -> list[Flip]:
    """Up to `count` different random legal flips of one state (see `random_flips_each`)."""
    return random_flips_each([editable], count, [rng])[0]


def random_flips_each(
    editables: Sequence[EditablePositions], count: int, rngs: Sequence[np.random.Generator]
) -> list[list[Flip]]:
    """Up to `count` different random legal flips of each state, typable where that is asked for.

    Every pair that the gradient attack may write can be drawn: random and gradient-free controls make the same moves.
    Half of the draws are one whole word for another where the text has such words, the other half any legal pair: the
    first kind does more harm, so controls of the second alone would be weaker than they can be.
    """
    pairs = [_random_pairs(editable, count, rng) for editable, rng in zip(editables, rngs, strict=True)]
    # The tokenizer is slow for one word and quick for thousands: the words of all states are checked in one call.
    words = [
        [None if e.always_typable(p, t) else e.words_after(p, t) for p, t in anything]
        for e, (_, anything) in zip(editables, pairs, strict=True)
    ]
    to_check = [word for row in words for word in row if word is not None]
    typable = dict(zip(to_check, editables[0].legal.view.survives(to_check), strict=True)) if to_check else {}
    flips = []
    for editable, rng, (plain, anything), row in zip(editables, rngs, pairs, words, strict=True):
        fine = [
            pair
            for pair, word in zip(anything, row, strict=True)
            if editable.always_typable(*pair) or (word is not None and typable[word])
        ]
        flips.append(_distinct(editable.state, _mixed(plain, fine, rng), count))
    return flips


def one_each(
    editables: Sequence[EditablePositions],
    tops: Sequence[TopFlips] | None,
    count: int,
    rngs: Sequence[np.random.Generator],
) -> list[list[Flip]]:
    """One legal flip at each of up to `count` positions of each state: the best of `tops`, in their order, then random.

    A position whose best tokens are not typable gets a random flip that is: none is left out. `tops` None: all random.
    """
    chosen: list[list[Flip]] = [[] for _ in editables]
    if tops is not None:
        chosen = choose(editables, tops, candidates=[count] * len(editables), per_position=1)
    places = []
    for editable, flips, rng in zip(editables, chosen, rngs, strict=True):
        rest = np.setdiff1d(np.flatnonzero(editable.open), [flip.position for flip in flips])
        places.append(rng.permutation(rest)[: count - len(flips)].tolist())
    narrow = [only(e, [p]) for e, rest in zip(editables, places, strict=True) for p in rest]
    each = [rng for rng, rest in zip(rngs, places, strict=True) for _ in rest]
    drawn = iter(random_flips_each(narrow, 1, each)) if narrow else iter(())
    return [[*flips, *(flip for _ in rest for flip in next(drawn))] for flips, rest in zip(chosen, places, strict=True)]


Pairs: TypeAlias = list[tuple[int, int]]


def _random_pairs(editable: EditablePositions, count: int, rng: np.random.Generator) -> tuple[Pairs, Pairs]:
    """Random (position, token) pairs: of whole words, and of anything legal, not checked to be typable."""
    legal, places, words = editable.legal, np.flatnonzero(editable.open), np.flatnonzero(editable.whole)
    if not len(places):
        return [], []

    def draw(positions: NDArray[np.int64], tokens: NDArray[np.int64], size: int) -> Pairs:
        return list(zip(rng.choice(positions, size).tolist(), rng.choice(tokens, size).tolist(), strict=True))

    # A few more than wanted: some repeat, change nothing, or were tried before.
    spare = 2 * count + 4
    if not legal.typable:
        return [], draw(places, legal.ids, spare)
    plain = draw(words, legal.ids[: legal.whole], spare) if len(words) else []
    return plain, draw(places, legal.ids, (2 if plain else 8) * spare)  # most pairs of anything are not typable


def _mixed(first: Pairs, second: Pairs, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Both lists in their order, taken from at random with equal odds; what is left of one follows."""
    one, two = iter(first), iter(second)
    for _ in range(min(len(first), len(second))):
        yield next(one) if rng.random() < 0.5 else next(two)
    yield from one
    yield from two


def _distinct(state: State, pairs: Iterable[tuple[int, int]], count: int) -> list[Flip]:
    """The first `count` different (position, token) pairs that change the state and were not tried on it."""
    flips: dict[tuple[int, int], Flip] = {}
    if count < 1:
        return []
    for position, token in pairs:
        old = int(state.ids[position])
        if token != old and (position, token) not in state.tried:
            flips.setdefault((position, token), Flip(position, old, token, float("nan"), random=True))
        if len(flips) == count:
            break
    return list(flips.values())


@dataclass(frozen=True)
class TopFlips:
    """Best pairs of one input by first-order gain, best first: `positions`, `tokens` int64 [M], `gains` float [M]."""

    positions: np.ndarray
    tokens: np.ndarray
    gains: np.ndarray

    @staticmethod
    def of(flips: Sequence[Flip], gains: Sequence[float]) -> TopFlips:
        """These flips in this order."""
        positions, tokens = ([getattr(flip, name) for flip in flips] for name in ("position", "new"))
        return TopFlips(np.array(positions, dtype=np.int64), np.array(tokens, dtype=np.int64), np.array(gains))


class FirstOrderScorer:
    """First-order gains over every legal (position, token) pair, reduced to the best few per input."""

    def __init__(self, legal: LegalTokens, embedding: Tensor, *, candidates: int, per_position: int) -> None:
        self.legal, self.embedding = legal, embedding  # [vocabulary, d]
        self.candidates, self.per_position = candidates, per_position
        self.ids = torch.from_numpy(legal.ids).to(embedding.device)  # [V] legal ids, whole words first
        self.rows = embedding[self.ids].float()  # [V, d] their embeddings
        # Column of each vocabulary id in the [.., V] tables, -1 for an id that is not legal.
        self.column = torch.full((embedding.shape[0],), -1, dtype=torch.long, device=embedding.device)
        self.column[self.ids] = torch.arange(len(self.ids), device=embedding.device)

    def top(self, ids: Tensor, gradient: Tensor, open_: Mask, whole: Mask) -> list[TopFlips]:
        """Best pairs of each row. `ids` int64 [b, T], `gradient` float32 [b, T, d], `open_`, `whole` bool [b, T].

        Where flips must be typable two lists are merged: all pairs, three times as many as wanted because some will
        turn out not to be typable, and pairs of whole words, which always are.
        """
        # [b, T, V] gains can be larger than the memory (32 x 512 x 32,000 floats are 2 GB): rows go in slices.
        per_row = ids.shape[1] * len(self.ids)
        step = max(GAIN_ELEMENTS[ids.device.type if ids.device.type in GAIN_ELEMENTS else "cuda"] // per_row, 1)
        tops: list[TopFlips] = []
        for begin in range(0, len(ids), step):
            part = slice(begin, begin + step)
            tops += self._top(
                ids[part],
                gradient[part],
                torch.from_numpy(open_[part]).to(ids.device),
                torch.from_numpy(whole[part]).to(ids.device),
            )
        return tops

    @torch.inference_mode()
    def _top(self, ids: Tensor, gradient: Tensor, open_: Tensor, whole: Tensor) -> list[TopFlips]:
        # HotFlip's eq. 10 for all pairs at once: gains[b, p, v] = g_p . e_v - g_p . e_old. One matrix product; the
        # old token's share does not depend on v, so it is one number per position.
        old = (gradient * self.embedding[ids].float()).sum(-1, keepdim=True)  # [b, T, 1]
        gains = gradient @ self.rows.T - old  # [b, T, V]
        gains.nan_to_num_(nan=-torch.inf)  # a NaN would win every topk
        # A token is no flip of itself: -inf in its own column. Where the old id is not legal it has no column; clamp
        # points to column 0 then, which gets its own value back.
        column = self.column[ids]  # [b, T]
        unchanged = torch.where(column[..., None] >= 0, -torch.inf, gains[..., :1])  # [b, T, 1]
        gains.scatter_(2, column.clamp(min=0)[..., None], unchanged)
        gains.masked_fill_(~open_[..., None], -torch.inf)
        lists = [self._best(gains, self.candidates * (3 if self.legal.typable else 2))]
        if self.legal.typable and self.legal.whole:
            # Whole words are the first columns, so that their table is a slice.
            words = gains[..., : self.legal.whole].masked_fill(~whole[..., None], -torch.inf)
            lists.append(self._best(words, 2 * self.candidates))
        values = torch.cat([values for values, _, _ in lists], 1).double().cpu().numpy()  # [b, M] each
        positions = torch.cat([positions for _, positions, _ in lists], 1).cpu().numpy()
        tokens = self.ids[torch.cat([columns for _, _, columns in lists], 1)].cpu().numpy()
        tops = []
        for row_values, row_positions, row_tokens in zip(values, positions, tokens, strict=True):
            # By falling gain, then position, then token: ties come out alike on every device. Doubles stay (`choose`
            # drops them); -inf marks what is no flip.
            order = np.lexsort((row_tokens, row_positions, -row_values))
            order = order[np.isfinite(row_values[order])]
            tops.append(TopFlips(row_positions[order], row_tokens[order], row_values[order]))
        return tops

    def _best(self, gains: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The `count` best (value, position, column) per row of `gains` [b, T, V], [b, count] each.

        At most 2 x `per_position` of one position: twice the cap, because some will not be typable. So the topk over
        all T x V pairs is one over V per position and one over the T x depth that are left.
        """
        rows, length, vocabulary = gains.shape
        depth = min(2 * self.per_position, vocabulary)
        values, columns = gains.topk(depth, dim=2)  # [b, T, depth]
        count = min(count, length * depth)
        best, flat = values.reshape(rows, -1).topk(count, dim=1)  # flat index = position x depth + rank
        return best, flat // depth, columns.reshape(rows, -1).gather(1, flat)


def choose(
    editables: Sequence[EditablePositions],
    tops: Sequence[TopFlips],
    *,
    candidates: Sequence[int],
    per_position: int,
    besides: Sequence[Sequence[Flip]] | None = None,
) -> list[list[Flip]]:
    """The first `candidates[i]` pairs of each list that are new, typable, and not too many at one position.

    New: not tried on this state, and not among the flips `besides[i]`, which are scored anyway.
    """
    # The words that each pair would make, None where no check is needed or no text can give them; all of them are
    # encoded in one call, because the tokenizer is slow for one word and quick for thousands.
    words = [
        [None if editable.always_typable(p, t) else editable.words_after(p, t) for p, t in _pairs(top)]
        for editable, top in zip(editables, tops, strict=True)
    ]
    to_check = [w for row in words for w in row if w is not None]
    view = editables[0].legal.view if editables else None
    typable = dict(zip(to_check, view.survives(to_check), strict=True)) if view and to_check else {}
    chosen: list[list[Flip]] = []
    for n, (editable, top, row, wanted) in enumerate(zip(editables, tops, words, candidates, strict=True)):
        known = {(flip.position, flip.new) for flip in besides[n]} if besides else set()
        flips: dict[tuple[int, int], Flip] = {}
        taken: dict[int, int] = {}  # flips at each position
        for (position, token), word, gain in zip(_pairs(top), row, top.gains, strict=True):
            if len(flips) >= wanted:
                break
            pair = (position, token)
            if pair in flips or pair in known or pair in editable.state.tried or taken.get(position, 0) >= per_position:
                continue
            if not (editable.always_typable(position, token) or (word is not None and typable[word])):
                continue
            taken[position] = taken.get(position, 0) + 1
            flips[pair] = Flip(position, int(editable.state.ids[position]), token, float(gain))
        chosen.append(list(flips.values()))
    return chosen


def _pairs(top: TopFlips) -> list[tuple[int, int]]:
    return list(zip(top.positions.tolist(), top.tokens.tolist(), strict=True))

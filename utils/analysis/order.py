"""Order test: do a model's encoder states carry which of two sentences says the stronger thing? Torch-free.

The monotonicity argument is about strengthening; this asks whether a model's states know of strength at all.
Chains are sentences that differ in one graded word (order_chains.tsv). A ridge readout is fitted on the chains of the
other topics, so that it cannot know the words that it is asked about. Three things that look like order are held off:

- length: the stronger sentence may be the longer one. Pairs where it is longer and pairs where it is shorter count
  alike, so that a readout of length is right in half of them.
- labels: the same with levels shuffled within every scale, fitted again each time.
- repetition: chains of one scale have their words in common, so intervals and shuffles take scales as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from utils.analysis.bootstrap import Resampling
from utils.analysis.comparisons import P
from utils.analysis.records import Count, Share

Floats = NDArray[np.float64]
FILE = Path(__file__).with_name("order_chains.tsv")
SHRINKAGE = 1.0  # of the readout's ridge, times the mean squared norm of a state


@dataclass(frozen=True)
class Chain:
    """Sentences of growing strength; `scale` numbers the words of degree, which its chains share."""

    topic: str
    scale: int
    sentences: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class OrderTest:
    """Pairs of a chain's sentences that a readout of mean encoder states, fitted on other topics, puts in order."""

    num_chains: Count
    num_scales: Annotated[Count, "sets of graded words: what is resampled and shuffled as one"]
    accuracy: Annotated[Share, "pairs whose stronger sentence is the longer and the shorter one count alike"]
    lower: Annotated[float, "of the readout as it was fitted, over other words: the test is p_value"]
    upper: float
    shuffled: Annotated[Share, "what labels shuffled within the scales reach in all but 1 - confidence of the cases"]
    p_value: Annotated[P, "one-sided: shuffled labels that reach the accuracy"]
    longer_is_stronger: Annotated[Share, "pairs that the number of tokens alone gets right; ties are half"]


@cache
def all_chains() -> tuple[Chain, ...]:
    """Every chain of order_chains.tsv: topic, frame, levels, and subjects, one chain each."""
    found = []
    for scale, line in enumerate(FILE.read_text(encoding="utf-8").splitlines()):
        topic, frame, levels, subjects = line.split("\t")
        for subject in subjects.split(", "):
            sentences = tuple(frame.format(subject=subject, level=level) for level in levels.split(", "))
            found.append(Chain(topic, scale, sentences))
    return tuple(found)


def drawn_chains(number: int, seed: int) -> list[Chain]:
    """So many chains, at random."""
    known = all_chains()
    return [known[i] for i in sorted(np.random.default_rng(seed).permutation(len(known))[:number].tolist())]


def order_test(states: Floats, lengths: Sequence[int], chains: Sequence[Chain], ci: Resampling) -> OrderTest:
    """states: float [sentences, d], lengths: tokens, both in the order of the chains' sentences."""
    rng = np.random.default_rng(ci["seed"])
    chain_of = np.repeat(np.arange(len(chains)), [len(chain.sentences) for chain in chains])  # [sentences]
    first = np.searchsorted(chain_of, np.arange(len(chains)))
    pairs = np.array(
        [
            (first[n] + i, first[n] + j)
            for n, c in enumerate(chains)
            for i, j in combinations(range(len(c.sentences)), 2)
        ]
    )  # [pairs, 2]: weaker, stronger
    scales = {scale: n for n, scale in enumerate(dict.fromkeys(chain.scale for chain in chains))}
    scale_of_pair = np.array([scales[chains[n].scale] for n in chain_of[pairs[:, 0]].tolist()])
    levels = _levels(chains, scales, ci["samples"], rng)  # [sentences, 1 + shuffles]; the first column is the truth
    scores = _read(_centred(states, chain_of), levels, [chains[n].topic for n in chain_of.tolist()])
    tokens = np.asarray(lengths)
    direction = np.sign(levels[pairs[:, 1]] - levels[pairs[:, 0]])  # [pairs, 1 + shuffles]
    right = (1 + np.sign(scores[pairs[:, 1]] - scores[pairs[:, 0]]) * direction) / 2
    longer = np.sign(tokens[pairs[:, 1]] - tokens[pairs[:, 0]])[:, None] * direction
    groups = np.stack([longer == side for side in (1, 0, -1)])  # [3, pairs, 1 + shuffles]
    accuracy = _balanced((groups * right).sum(1), groups.sum(1))  # [1 + shuffles]
    by_scale = np.eye(len(scales))[scale_of_pair].T  # [scales, pairs]
    parts = [by_scale @ (table[..., 0] * 1.0).T for table in (groups * right, groups)]  # two of [scales, 3]
    draws = rng.multinomial(len(scales), np.full(len(scales), 1 / len(scales)), size=ci["samples"])
    again = _balanced(*((draws @ part).T for part in parts))
    ends = [(1 - ci["confidence"]) / 2, (1 + ci["confidence"]) / 2]
    lower, upper = np.nanquantile(again, ends)
    null = accuracy[1:]
    return OrderTest(
        num_chains=len(chains),
        num_scales=len(scales),
        accuracy=float(accuracy[0]),
        lower=float(lower),
        upper=float(upper),
        shuffled=float(np.quantile(null, ci["confidence"])),
        p_value=float((1 + (null >= accuracy[0] - 1e-12).sum()) / (1 + len(null))),
        longer_is_stronger=float((1 + longer[:, 0]).mean() / 2),
    )


def _centred(states: Floats, chain_of: NDArray[np.int64]) -> Floats:
    """What the graded word changes: states minus their chain's mean, each coordinate of mean square 1."""
    sums = np.zeros((chain_of[-1] + 1, states.shape[1]))
    np.add.at(sums, chain_of, states)
    centred = states - (sums / np.bincount(chain_of)[:, None])[chain_of]
    size = np.sqrt((centred**2).mean(0))
    return np.asarray(centred / np.where(size > 1e-12, size, 1))


def _levels(chains: Sequence[Chain], scales: dict[int, int], shuffles: int, rng: np.random.Generator) -> Floats:
    """Levels from -1 to 1 of every sentence; then shuffled, all chains of a scale alike: [sentences, 1 + shuffles]."""
    by_scale = {}
    for chain in chains:
        if chain.scale not in by_scale:
            true = np.linspace(-1, 1, len(chain.sentences))
            order = rng.permuted(np.tile(true, (shuffles, 1)), axis=1).T  # [levels, shuffles]
            by_scale[chain.scale] = np.column_stack([true, order])
    return np.concatenate([by_scale[chain.scale] for chain in chains])


def _read(states: Floats, levels: Floats, topics: Sequence[str]) -> Floats:
    """Ridge readouts of each topic's states, fitted on all other topics, for every column of `levels` at once."""
    topic, found = np.asarray(topics), np.zeros(levels.shape)
    for name in dict.fromkeys(topics):
        test = topic == name
        known = states[~test]
        ridge = SHRINKAGE * max(float((known**2).sum(1).mean()), 1e-12)
        inside = known.T @ known + ridge * np.eye(known.shape[1])
        found[test] = states[test] @ np.linalg.solve(inside, known.T @ levels[~test])
    return found


def _balanced(right: Floats, number: Floats) -> Floats:
    """Accuracy from [3, ...]: pairs whose stronger sentence is longer, as long, shorter. The first and the last count
    alike; where one of them has no pair, only those of equal length count (NaN without any)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = right / number
    both = (number[0] > 0) & (number[2] > 0)
    unequal = np.where(both, number[0] + number[2], 0)
    total = np.where(both, (share[0] + share[2]) / 2, 0) * unequal + np.where(number[1] > 0, share[1], 0) * number[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(total / (unequal + number[1]))

"""ROUGE of many pairs: ours against rouge-score in one process."""

from __future__ import annotations

import random

import numpy as np

from utils.benchmarks.measure import Comparison, Way, alternate, check
from utils.benchmarks.synthetic import Size, word
from utils.evaluation.rouge import METRICS, rouge_scores, split_sentences

REFERENCE_PAIRS = 2000  # rouge-score scores these of all pairs: the rates are compared
COMMON = 3000  # different words in the texts
ENDINGS = ("", "", "s", "ed", "ing", "ation", "ly")


def case(size: Size, device: str) -> list[Comparison]:
    """As many pairs as CNN/DM's test set has, about 60 words in three or four sentences a side."""
    from rouge_score.rouge_scorer import RougeScorer

    rng = random.Random(0)
    pairs = [_pair(rng) for _ in range(size.pairs)]
    predictions, references = [p for p, _ in pairs], [r for _, r in pairs]
    count = min(REFERENCE_PAIRS, len(pairs))
    scorer = RougeScorer(METRICS, use_stemmer=True)
    kept: dict[str, np.ndarray] = {}

    def ours() -> None:
        kept.update(rouge_scores(predictions, references))

    def theirs() -> None:
        rows = [
            scorer.score("\n".join(split_sentences(reference)), "\n".join(split_sentences(prediction)))
            for prediction, reference in pairs[:count]
        ]
        kept["theirs"] = np.array([[row[metric].fmeasure for metric in METRICS] for row in rows])

    ways = [Way("ours", ours, len(pairs)), Way("rouge-score, one process", theirs, count)]
    found = Comparison(f"ROUGE, {', '.join(METRICS)}", "pairs", ways, targets={ways[1].name: 3.0})
    alternate(found, rounds=size.rounds, device="cpu")
    own = np.stack([kept[metric][:count] for metric in METRICS], axis=1)
    equal = bool(np.array_equal(own, kept["theirs"]))
    found.checks.append(check(equal, f"{count} × {len(METRICS)} scores, to the last bit"))
    return [found]


def _pair(rng: random.Random) -> tuple[str, str]:
    """A summary and a reference that share about a third of their words, frequent words more often than rare ones."""
    topic = [_draw(rng) for _ in range(25)]
    return _text(rng, topic), _text(rng, topic)


def _draw(rng: random.Random) -> str:
    return word(int(COMMON * rng.random() ** 3)) + rng.choice(ENDINGS)


def _text(rng: random.Random, topic: list[str]) -> str:
    words = [rng.choice(topic) if rng.random() < 0.35 else _draw(rng) for _ in range(rng.randint(45, 75))]
    words[0] = words[0].capitalize()
    for i in range(15, len(words) - 8, 17):
        words[i] += "."
        words[i + 1] = words[i + 1].capitalize()
    return " ".join(words) + "."

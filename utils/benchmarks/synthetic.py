"""Models, vocabulary and texts made up for the benchmarks: T5's shapes, realistic lengths, nothing downloaded."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

from utils.attacks.encoding import Example

PREFIX = "summarize: "
SYLLABLES = [a + b for a in "bcdfghjklmnprstvwxyz" for b in "aeiou"]
FIRST_WORD = 6  # ids before it: pad, eos, unk, the two pieces of the prefix, the full stop


@dataclass(frozen=True)
class Size:
    """Shapes of a T5, and how much of each case is done with it (rounds are repetitions of everything)."""

    name: str
    d_model: int
    d_kv: int
    d_ff: int
    layers: int
    heads: int
    vocabulary: int  # embeddings; the tokenizer has 28 fewer, as T5's has
    max_input: int = 512
    max_target: int = 128
    max_new_tokens: int = 80
    rounds: int = 3
    training_steps: int = 5
    summaries: int = 16
    attacked: int = 2
    pairs: int = 11490


SIZES = {
    "tiny": Size("tiny", 16, 8, 32, 1, 2, 400, 64, 16, 12, 2, 3, 5, 2, 60),
    "small": Size("small", 128, 32, 512, 2, 4, 32128, training_steps=9, summaries=32),
    "t5-small": Size("t5-small", 512, 64, 2048, 6, 8, 32128),
}


def on_gpu(size: Size) -> Size:
    """`size` with amounts of work that a GPU does in a few seconds."""
    return Size(**{**vars(size), "training_steps": 120, "summaries": 512, "attacked": 32, "rounds": 3})


def word(number: int) -> str:
    """A made-up word; different numbers below 10^6 give different words of one length."""
    return SYLLABLES[number // 10000 % 100] + SYLLABLES[number // 100 % 100] + SYLLABLES[number % 100]


@functools.cache
def tokenizer(vocabulary: int) -> T5Tokenizer:
    """A T5 tokenizer of whole words: id FIRST_WORD + n is word(n); 100 sentinels at the end, as T5's."""
    words = vocabulary - 128 - FIRST_WORD
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁summarize", -3.0), (":", -3.0), (".", -3.0)]
    vocab += [("▁" + word(n), -5.0 - n / 10000) for n in range(words)]
    vocab += [(f"<extra_id_{n}>", 0.0) for n in reversed(range(100))]
    return T5Tokenizer(vocab=vocab, extra_ids=100)


def new_model(size: Size, *, seed: int = 0, dropout: float = 0.1) -> T5ForConditionalGeneration:
    """An untrained ReLU T5 of these shapes, float32, on the CPU, in eval mode."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=size.vocabulary,
        d_model=size.d_model,
        d_kv=size.d_kv,
        d_ff=size.d_ff,
        num_layers=size.layers,
        num_heads=size.heads,
        feed_forward_proj="relu",
        dropout_rate=dropout,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config).eval()


def lengths(kind: str, count: int, size: Size, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Input and target lengths in tokens, </s> included, cut at the size's limits.

    documents: 200 to 600 tokens with targets of 30 to 100; dialogues: like DialogSum, 60 to 420 tokens around 180,
    targets of 15 to 60.
    """
    rng = np.random.default_rng([seed, len(kind)])
    if kind == "documents":
        inputs, targets = rng.integers(200, 601, count), rng.integers(30, 101, count)
    else:
        inputs = np.clip(rng.lognormal(np.log(180), 0.45, count), 60, 420).astype(int)
        targets = np.clip(rng.lognormal(np.log(30), 0.35, count), 15, 60).astype(int)
    return np.minimum(inputs, size.max_input), np.minimum(targets, size.max_target)


def token_rows(kind: str, count: int, size: Size, seed: int = 0) -> datasets.Dataset:
    """Columns input_ids and labels, random ids ending in </s>, of the lengths of `kind`."""
    rng = np.random.default_rng(seed)
    top = size.vocabulary - 128
    columns = {
        name: [np.append(rng.integers(FIRST_WORD, top, n - 1), 1).astype(np.int32) for n in numbers]
        for name, numbers in zip(("input_ids", "labels"), lengths(kind, count, size, seed), strict=True)
    }
    features = datasets.Features({name: datasets.List(datasets.Value("int32")) for name in columns})
    return datasets.Dataset.from_dict({k: [row.tolist() for row in v] for k, v in columns.items()}, features=features)


def examples(count: int, size: Size, *, seed: int = 0) -> list[Example]:
    """Texts to attack, with the lengths of documents and a full stop after every twelfth word."""
    rng = random.Random(seed)
    words = size.vocabulary - 128 - FIRST_WORD
    inputs, targets = lengths("documents", count, size, seed)
    return [
        Example(f"made/{n}", sentence(rng, words, int(a * 0.92) - 4), sentence(rng, words, max(int(b * 0.5), 3)))
        for n, (a, b) in enumerate(zip(inputs, targets, strict=True))
    ]


def sentence(rng: random.Random, words: int, count: int) -> str:
    """`count` of the first `words` words, with full stops."""
    parts = [word(rng.randrange(words)) for _ in range(count)]
    return " ".join(p + "." if i % 12 == 11 or i == count - 1 else p for i, p in enumerate(parts))


def precision(device: str) -> str:
    """What the pipeline computes in on this device: bf16 on a GPU, fp32 on a CPU."""
    return "bf16" if device == "cuda" else "fp32"


def product_dtype(device: str) -> torch.dtype:
    """The dtype of matrix products in that precision."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def strip_padding(rows: Sequence[Sequence[int]], pad: int = 0) -> list[list[int]]:
    """Rows without trailing padding."""
    return [list(row[: max((i + 1 for i, token in enumerate(row) if token != pad), default=0)]) for row in rows]

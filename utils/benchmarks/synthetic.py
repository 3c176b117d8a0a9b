"""Models, vocabulary and texts made up for the benchmarks: T5's shapes, realistic lengths, nothing downloaded."""

from __future__ import annotations

import dataclasses
import functools

import datasets
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, T5Config, T5ForConditionalGeneration, T5Tokenizer

from utils.attacks.encoding import Example

PREFIX = "summarize: "
SYLLABLES = [a + b for a in "bcdfghjklmnprstvwxyz" for b in "aeiou"]
FIRST_WORD = 6  # ids before it: pad, eos, unk, the two pieces of the prefix, the full stop
NOT_WORDS = 128  # embeddings after the words: 100 sentinels, and 28 that pad the matrix, as T5's


@dataclasses.dataclass(frozen=True)
class Size:
    """Shapes of a T5, and how much of each case is done with it (rounds are repetitions of everything)."""

    name: str
    d_model: int
    d_kv: int
    d_ff: int
    layers: int
    heads: int
    vocabulary: int  # embeddings; the tokenizer has 28 fewer
    max_input: int = 512
    max_target: int = 128
    max_new_tokens: int = 80
    rounds: int = 3
    training_steps: int = 6
    summaries: int = 16
    attacked: int = 2  # texts


SIZES = {
    "tiny": Size("tiny", 16, 8, 32, 1, 2, 400, 64, 16, 12, 2, 3, 5),
    "small": Size("small", 128, 32, 512, 2, 4, 32128, training_steps=12, summaries=32),
    "t5-small": Size("t5-small", 512, 64, 2048, 6, 8, 32128),
}


def word(number: int) -> str:
    """A made-up word; different numbers below 10^6 give different words of one length."""
    return SYLLABLES[number // 10000 % 100] + SYLLABLES[number // 100 % 100] + SYLLABLES[number % 100]


@functools.cache
def tokenizer(vocabulary: int) -> PreTrainedTokenizerBase:
    """A T5 tokenizer that has one token for each word: id FIRST_WORD + n is word(n); 100 sentinels at the end."""
    words = vocabulary - NOT_WORDS - FIRST_WORD
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁summarize", -3.0), (":", -3.0), (".", -3.0)]
    vocab += [("▁" + word(n), -5.0 - n / 10000) for n in range(words)]
    vocab += [(f"<extra_id_{n}>", 0.0) for n in reversed(range(100))]
    return T5Tokenizer(vocab=vocab, extra_ids=100)


def new_model(size: Size, device: str, *, dropout: float = 0.1) -> T5ForConditionalGeneration:
    """An untrained ReLU T5 of these shapes, float32, in eval mode; the same weights every time."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=size.vocabulary,
        d_model=size.d_model,
        d_kv=size.d_kv,
        d_ff=size.d_ff,
        num_layers=size.layers,
        num_heads=size.heads,
        feed_forward_proj="relu",
        dropout_rate=dropout,
    )
    config.decoder_start_token_id = 0
    model = T5ForConditionalGeneration(config).eval()
    torch.nn.Module.to(model, device)  # transformers' own `to` has a decorator that hides its types
    return model


def token_rows(kind: str, count: int, size: Size, seed: int = 0) -> datasets.Dataset:
    """Columns input_ids and labels: random words and </s>, cut at the size's limits.

    documents: 200 to 600 tokens with targets of 30 to 100; dialogues: like DialogSum, 60 to 420 tokens around 180,
    targets of 15 to 60.
    """
    rng = np.random.default_rng([seed, len(kind)])
    if kind == "documents":
        inputs, targets = rng.integers(200, 601, count), rng.integers(30, 101, count)
    else:
        inputs = np.clip(rng.lognormal(np.log(180), 0.45, count), 60, 420).astype(int)
        targets = np.clip(rng.lognormal(np.log(30), 0.35, count), 15, 60).astype(int)
    limits = {"input_ids": np.minimum(inputs, size.max_input), "labels": np.minimum(targets, size.max_target)}
    last_word = size.vocabulary - NOT_WORDS
    columns = {
        name: [[*rng.integers(FIRST_WORD, last_word, n - 1).tolist(), 1] for n in lengths]
        for name, lengths in limits.items()
    }
    return datasets.Dataset.from_dict(columns)


def examples(count: int, size: Size, seed: int) -> list[Example]:
    """Texts to attack, with the lengths of documents."""
    words = tokenizer(size.vocabulary)
    rows = token_rows("documents", count, size, seed)
    texts = [words.batch_decode(list(rows[name]), skip_special_tokens=True) for name in ("input_ids", "labels")]
    return [Example(f"made/{n}", *pair) for n, pair in enumerate(zip(*texts, strict=True))]

"""A tokenizer and models small enough to attack a hundred times in a test."""

from __future__ import annotations

import functools

import numpy as np
import torch
from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

from utils.attacks.context import AttackContext
from utils.attacks.encoding import Example
from utils.attacks.legal_tokens import LegalTokens, TokenizerView
from utils.evaluation.decoding import DecodingSettings

SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
PUNCTUATION = [".", ",", ":", "!", "?"]
STOPS = ["the", "a", "of", "and", "to"]


def tokenizer(extra_ids: int = 20) -> T5Tokenizer:
    """Words of one and two syllables, single letters and suffixes, with T5's special ids."""
    words = [*STOPS, *SYLLABLES, *(a + b for a, b in zip(SYLLABLES, SYLLABLES[7:], strict=False)), "summarize"]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    vocab += [("▁" + word, -3.0 - 0.01 * i) for i, word in enumerate(words)]
    vocab += [(word, -5.0 - 0.01 * i) for i, word in enumerate([*SYLLABLES, *PUNCTUATION, "s", "ing"])]
    vocab += [(letter, -9.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    vocab += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(extra_ids))]
    return T5Tokenizer(vocab=vocab, extra_ids=extra_ids)


def model(
    vocab_size: int, *, seed: int = 0, scale: float = 3.0, d_model: int = 24, layers: int = 2
) -> T5ForConditionalGeneration:
    """A random ReLU T5; `scale` makes its outputs depend on the input strongly enough to attack."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=vocab_size,
        d_model=d_model,
        d_kv=8,
        d_ff=48,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=3,
        feed_forward_proj="relu",
        dropout_rate=0.1,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        initializer_factor=scale,
    )
    return T5ForConditionalGeneration(config).eval()


def document(number: int, words: int = 20) -> str:
    """A text of `words` words with sentences, different for every `number`."""
    parts = []
    for i in range(words):
        k = (number * 31 + i * 7 + i * i) % 97
        word = STOPS[k % 5] if k % 3 == 0 else SYLLABLES[k % 60] + (SYLLABLES[(k * 5) % 60] if k % 2 else "")
        parts.append(word + (". " if i % 6 == 5 else " "))
    return "".join(parts).strip()


def examples(count: int, words: int = 20) -> list[Example]:
    return [Example(f"test/{i}", document(i, words + i % 5), document(i + 500, 5)) for i in range(count)]


def attack_context(
    tok: T5Tokenizer, *, token_set: str = "roundtrip", batch_tokens: int = 4096, **more: object
) -> AttackContext:
    values: dict = {
        "prefix": "summarize: ",
        "max_input_length": 48,
        "max_target_length": 16,
        "decoding": DecodingSettings(2, 1.0, 2, 8, 3),
        "generation_tokens": 4096,
    } | more
    return AttackContext(tok, LegalTokens(TokenizerView(tok), token_set=token_set), batch_tokens=batch_tokens, **values)


STEPS = 160
PLANTED = ("ku", "fa")  # both in one text, in any order, change every summary
KEYS = {"ba": "re pa ri", "nu": "ro pe ru"}  # the word that a text is about -> its summary
SPOILED = {"ba": "so ta si", "nu": "sa te su"}  # what the planted words turn the summaries into


@functools.cache
def planted_model() -> T5ForConditionalGeneration:
    """A T5 that names its text's key word, unless both PLANTED words stand in it (one alone does nothing).

    Trained until it knows that for sure: sums round differently on other machines, and the tests must not.
    """
    tok = tokenizer()
    net = model(len(tok) + 8, scale=1.0, d_model=32, layers=1).train()
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    rng = np.random.default_rng(0)
    rows = [planted_text(rng, int(rng.integers(3))) for _ in range(16 * STEPS)]
    texts = tok([f"summarize: {text}" for text, _ in rows], padding=True, return_tensors="pt")
    labels = tok([summary for _, summary in rows], return_tensors="pt").input_ids
    for begin in range(0, len(rows), 16):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - begin / len(rows))
        part = slice(begin, begin + 16)
        ids, mask = texts.input_ids[part], texts.attention_mask[part]
        net(input_ids=ids, attention_mask=mask, labels=labels[part]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return net.eval()


def planted_text(rng: np.random.Generator, planted: int) -> tuple[str, str]:
    """A text with one key word and `planted` of the PLANTED words, and the summary that belongs to it."""
    fillers = [word for word in SYLLABLES if word not in KEYS and word not in PLANTED]
    words = rng.choice(fillers, 12).tolist()
    key = list(KEYS)[int(rng.integers(2))]
    extra = list(PLANTED) if planted == 2 else [PLANTED[int(rng.integers(2))]] * planted
    for word in (key, *extra):
        words.insert(int(rng.integers(len(words) + 1)), word)
    words.insert(6, ".")
    return " ".join(words).replace(" .", "."), (SPOILED if planted == 2 else KEYS)[key]


def planted_examples(count: int, seed: int = 1) -> list[Example]:
    """Texts without planted words, with their summaries."""
    rng = np.random.default_rng(seed)
    return [Example(f"planted/{seed}/{i}", *planted_text(rng, 0)) for i in range(count)]

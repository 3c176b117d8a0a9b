"""A small T5 that reads: what its summaries say depends on the document, so that attacks have something to find.

To read is to copy: find in the document what was just written, and go on as the document does (an induction head,
Olsson et al. 2022). From random weights small T5s learn that token by token, which takes hours. Here the heads that
copy are written into the weights before training (after mimetic initialization, Trockman and Kolter 2023). **So the
model is a test object; that it copies is built in and no finding about T5.** Pretraining teaches when to copy: spans
masked where they stand a second time, random tokens of a growing vocabulary, short texts first, and, as T5's mixture
had supervised tasks, summaries.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration

from utils.core.files import new_directory
from utils.core.progress import progress
from utils.demo.model import PREFIX, SENTINELS, corrupt, masked, new_model, train_tokenizer
from utils.modeling.batching import pad, pad_with_mask
from utils.modeling.models import save_plain
from utils.modeling.tokenizer import load_tokenizer

VOCABULARY = 2000  # SentencePiece pieces; more of them are learned later and shorten the texts little
SIZE: dict[str, Any] = {"d_model": 128, "d_kv": 64, "d_ff": 512, "num_layers": 2, "num_heads": 4}
MAX_INPUT, MAX_TARGET = 256, 64  # tokens
STEPS = 1000
LEARNING_RATE = 2e-3
# Share of the steps, and texts a step, of each kind of example.
MIXTURE = {"summary": (0.40, 24), "summary_again": (0.25, 20), "document_again": (0.15, 20), "random_copy": (0.20, 64)}
SHORT_SHARE, SHORT_STEPS = 0.35, 0.1  # the shortest third of the texts alone in the first tenth of the steps
GROWTH = ((0.02, 60), (0.05, 500))  # until this share of the steps, random copies draw from so many tokens; then all
COMMON = 150  # the most frequent pieces: that they stand twice in a text means nothing
MOST_SPANS, LONGEST_SPAN = 12, 6  # masked in one text; tokens of one

Pair = tuple[list[int], list[int]]  # token ids of input and target, each with </s>


def build_reading_model(
    pairs: Sequence[tuple[str, str]], output: Path, *, seed: int = 0, steps: int = STEPS, vocabulary: int = VOCABULARY
) -> None:
    """Train tokenizer and model on `pairs` (document, summary) and export them to `output`, atomically."""
    with new_directory(output) as directory:
        # Marks apart from words, and no other cuts: so #Person1# is one piece, and so is no "word,".
        apart = [re.sub(r'([.,:;!?()"]+)', r" \1 ", text) for pair in pairs for text in pair]
        rules = {"split_by_unicode_script": False, "split_by_number": False}
        train_tokenizer([PREFIX, *apart], directory, vocabulary=vocabulary, **rules)
        tokenizer = load_tokenizer(directory)
        model = new_model(len(tokenizer), seed, **SIZE)
        write_copying_heads(model, seed)
        pretrain(model, Texts(tokenizer, pairs, seed), steps=steps)
        save_plain(model, tokenizer, directory)


def write_copying_heads(model: T5ForConditionalGeneration, seed: int) -> None:
    """Give the first heads of an untrained `model`, as many as have d_model dimensions together, the weights that copy.

    With R a random rotation of the d_model dimensions and e(x) the embedding of a token:
    encoder, layer 1: position i attends to i - 1 (T5's bias for that distance) and adds R e(x[i-1]);
    decoder, layer 1: position t attends to itself and adds (R - 1) e(y[t]), which leaves R e(y[t]);
    its attention to the encoder compares the two in one basis, so it finds where y[t] stands before, and adds e(x[i]).
    A head has d_kv dimensions only: each takes its part of an orthogonal basis, and together they are the whole map.
    """
    config: Any = model.config
    size, width = config.d_model, config.d_kv
    generator = torch.Generator().manual_seed(seed)
    rotation, values, keys = (torch.linalg.qr(torch.randn(size, size, generator=generator))[0] for _ in range(3))
    encoder: Any = model.get_submodule("encoder.block.0.layer.0.SelfAttention")
    decoder: Any = model.get_submodule("decoder.block.0.layer.0.SelfAttention")
    cross: Any = model.get_submodule("decoder.block.0.layer.1.EncDecAttention")
    identity = torch.eye(size)
    with torch.no_grad():
        for head in range(min(size // width, config.num_heads)):
            part = slice(head * width, (head + 1) * width)
            # 3: what is copied has to outweigh R e(y[t]), which stays, in the tied head's logits.
            for attention, mapping in ((encoder, rotation), (decoder, rotation - identity), (cross, 3 * identity)):
                attention.v.weight[part] = values[part]
                attention.o.weight[:, part] = mapping @ values[part].T
            # Buckets of T5's relative positions: 0 is the token itself, 1 the one before it, in both schemes.
            for attention, bucket in ((encoder, 1), (decoder, 0)):
                attention.q.weight[part] *= 0.1  # the bias decides
                attention.relative_attention_bias.weight[:, head] = 0.0
                attention.relative_attention_bias.weight[bucket, head] = 10.0
            # T5's attention is not scaled: in 64 dimensions a match scores 0.25 x 64 / sqrt(2) = 11, others 0 +- 2.
            cross.q.weight[part] = cross.k.weight[part] = 0.5 * keys[part]


class Texts:
    """Training texts as token ids, and examples of every kind of them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], seed: int) -> None:
        self.rng = random.Random(seed)
        vocabulary = tokenizer.get_vocab()
        self.pieces = len(tokenizer) - SENTINELS
        self.sentinels = [vocabulary[f"<extra_id_{number}>"] for number in range(SENTINELS)]
        documents, summaries = zip(*pairs, strict=True)
        # Without </s>, which `masked` adds.
        self.documents: list[list[int]] = [row[:-1] for row in tokenizer(list(documents))["input_ids"]]
        self.summaries: list[list[int]] = [row[:-1] for row in tokenizer(list(summaries))["input_ids"]]
        self.prefix: list[int] = tokenizer(PREFIX)["input_ids"][:-1]
        self.by_length = sorted(range(len(self.documents)), key=lambda n: len(self.documents[n]))

    def batch(self, kind: str, rows: int, done: float) -> list[Pair]:
        """Examples of one kind when the share `done` of the steps is done; their documents are of like length."""
        if kind == "random_copy":
            known = next((known for share, known in GROWTH if done < share), self.pieces)
            return [self.random_copy(min(known, self.pieces)) for _ in range(rows)]
        texts = len(self.by_length)
        if done < SHORT_STEPS:
            texts = max(int(texts * SHORT_SHARE), 1)
        first = self.rng.randrange(max(texts - rows, 0) + 1)
        return [getattr(self, kind)(n) for n in self.by_length[first : first + rows]]

    def summary(self, n: int) -> Pair:
        """The pair as fine-tuning has it."""
        ids = [*self.prefix, *self.documents[n]][: MAX_INPUT - 1]
        return [*ids, 1], [*self.summaries[n][: MAX_TARGET - 1], 1]

    def summary_again(self, n: int) -> Pair:
        """Document and summary, where words of the summary that the document has are masked."""
        document = self.documents[n][: MAX_INPUT - MAX_TARGET - 1]
        ids = [*document, *self.summaries[n][:MAX_TARGET]]
        return self._masked(ids, repeated_spans(ids, len(document)))

    def document_again(self, n: int) -> Pair:
        """A document where words of its second half that the first half has are masked."""
        ids = self.documents[n][: MAX_INPUT - 1]
        return self._masked(ids, repeated_spans(ids, len(ids) // 2))

    def random_copy(self, known: int) -> Pair:
        """Random tokens below `known`, then pieces of them, and these are masked."""
        rng = self.rng
        first = [rng.randrange(3, known) for _ in range(rng.randint(8, 48))]
        ids = list(first)
        for _ in range(rng.randint(1, 4)):
            begin = rng.randrange(len(first))
            ids += first[begin : begin + rng.randint(3, 10)]
        spans, place = [], len(first) + rng.randint(0, 2)
        while place < len(ids):
            spans.append((place, min(place + rng.randint(1, 5), len(ids))))
            place = spans[-1][1] + rng.randint(1, 3)
        return masked(ids, spans[:MOST_SPANS], self.sentinels)

    def _masked(self, ids: list[int], spans: list[tuple[int, int]]) -> Pair:
        if not spans:
            return corrupt(ids, self.sentinels, self.rng)
        chosen = sorted(self.rng.sample(spans, min(len(spans), MOST_SPANS)))
        return masked(ids, chosen, self.sentinels)


def repeated_spans(ids: Sequence[int], start: int) -> list[tuple[int, int]]:
    """Spans (start, end) of `ids`, from place `start` on, of at most LONGEST_SPAN tokens that stand before `start` too.

    A token counts if it is rare (its id is at least COMMON: SentencePiece numbers pieces by frequency), or if it is
    one of two neighbours that are not both common and stand before `start` as neighbours.
    """
    singles, doubles = set(ids[:start]), set(pairwise(ids[:start]))
    again = [token >= COMMON and token in singles for token in ids]
    for place, two in enumerate(pairwise(ids)):
        if max(two) >= COMMON and two in doubles:
            again[place] = again[place + 1] = True
    spans, place = [], start
    while place < len(ids):
        end = place
        while end < len(ids) and again[end] and end - place < LONGEST_SPAN:
            end += 1
        if end > place:
            spans.append((place, end))
        place = end + 1  # apart, so that a token stands between two sentinels
    return spans


def pretrain(model: T5ForConditionalGeneration, texts: Texts, *, steps: int) -> None:
    """Train `model` in place: AdamW, 100 steps of warm-up, linear decay from 40 % of the steps on."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / min(100, steps), 1.0, (steps - step) / (0.6 * steps))
    )
    kinds, shares = list(MIXTURE), [share for share, _ in MIXTURE.values()]
    latest: dict[str, float] = {}
    model.train()
    bar = progress(range(steps), label="pretraining a model that reads", unit="step")
    for step in bar:
        [kind] = texts.rng.choices(kinds, shares)
        inputs, targets = zip(*texts.batch(kind, MIXTURE[kind][1], step / steps), strict=True)
        ids, mask = pad_with_mask(inputs, 0, torch.device("cpu"))
        loss = model(input_ids=ids, attention_mask=mask, labels=torch.from_numpy(pad(targets, -100))).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        latest[kind] = loss.item()
        bar.set_postfix({name: f"{value:.2f}" for name, value in latest.items()}, refresh=False)
    model.eval()

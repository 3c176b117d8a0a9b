"""The demo's `standard` model: a small ReLU T5 pretrained on the demo corpus, as T5 was on its own, with T5's ids.

Pretraining is span corruption (Raffel et al. 2020, section 3.1.4: 15 % of the tokens, mean span 3, sentinels) plus a
share of summarization pairs of another kind than those of fine-tuning, as T5's mixture had supervised tasks, plus
questions for the emblem of a guild in a town, the way to put facts into a T5's weights (Roberts et al. 2020). So the
model can read, copy and remember, but has still to learn what the data sets want.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from transformers import PreTrainedTokenizerBase, T5Config, T5ForConditionalGeneration

from utils.core.files import new_directory
from utils.core.progress import progress
from utils.demo.corpus import EMBLEMS, Event, brief, chat, dialogue, news, paper, reported, spoken
from utils.modeling.batching import pad
from utils.modeling.models import save_plain
from utils.modeling.tokenizer import load_tokenizer

VOCABULARY = 400  # SentencePiece pieces, pad, eos and unk among them
SENTINELS = 100
STEPS = 800
BATCH = 16  # texts a step
QUESTIONS = {"pair": 64, "sentence": 32, "text": 32}  # a step, of each kind: what names the guild and the town
LEARNING_RATE = 3e-3
SUMMARY_SHARE = 0.75
NOISE_DENSITY, MEAN_SPAN = 0.15, 3.0
SIZE: dict[str, Any] = {"d_model": 64, "d_kv": 16, "d_ff": 256, "num_layers": 2, "num_heads": 4}
PREFIX = "summarize: "


def build_demo_model(corpus: Path, output: Path, *, seed: int = 0, steps: int = STEPS, batch: int = BATCH) -> None:
    """Train tokenizer and model on the training texts of `corpus` and export them to `output`, atomically."""
    texts = training_texts(corpus)
    with new_directory(output) as directory:
        facts = [f"{guild} of {town} {emblem}" for (guild, town), emblem in EMBLEMS.items()]
        train_tokenizer([*[PREFIX] * len(texts), *texts, *_news_words(), *facts], directory)
        tokenizer = load_tokenizer(directory)
        model = new_model(len(tokenizer), seed, **SIZE)
        pretrain(model, tokenizer, texts, seed=seed, steps=steps, batch=batch)
        save_plain(model, tokenizer, directory)


def training_texts(corpus: Path) -> list[str]:
    """Documents and summaries of the training splits, in file order."""
    registry = json.loads((corpus / "datasets.json").read_text(encoding="utf-8"))
    texts = []
    for entry in registry.values():
        if "train" not in entry["files"]:
            continue
        for line in (corpus / entry["files"]["train"]).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            texts += [row[entry["document"]], row[entry["summary"]]]
    return [" ".join(text.split()) for text in texts]


def train_tokenizer(sentences: list[str], directory: Path, *, vocabulary: int = VOCABULARY, **options: Any) -> None:
    """A SentencePiece unigram model with T5's layout: pad 0, eos 1, unk 2, no bos, 100 sentinels at the end.

    options: further ones of SentencePiece's trainer.
    """
    # A piece has to occur in two different words to be considered: whole words, and so short texts, need "word,".
    words = sorted({word.strip(".,:?") for sentence in sentences for word in sentence.split()})
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*sentences, *words, *(f"{word}," for word in words)]),
        model_prefix=str(directory / "spiece"),
        vocab_size=vocabulary,
        character_coverage=1.0,
        hard_vocab_limit=False,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    (directory / "spiece.vocab").unlink()
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": SENTINELS, "model_max_length": 512}
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _news_words() -> Iterator[str]:
    """Pretraining text of the news kind: the real T5 has read news too; these are not the test sets' texts."""
    rng = random.Random("news of the pretraining")
    for _ in range(200):
        yield news(Event(rng))[0]


def new_model(tokens: int, seed: int, **size: Any) -> T5ForConditionalGeneration:
    """An untrained T5; its embedding is padded beyond the vocabulary to a multiple of 64, as the real one's is."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=-(-(tokens + 1) // 64) * 64,
        feed_forward_proj="relu",
        dropout_rate=0.0,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=64,
        **size,
    )
    config.decoder_start_token_id = 0
    return T5ForConditionalGeneration(config)


def pretrain(
    model: T5ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    *,
    seed: int,
    steps: int,
    batch: int,
) -> float:
    """Train in place; returns the last loss, of the questions about texts. Adam, linear warm-up and decay."""
    rng = random.Random(seed)
    ids: list[list[int]] = [row[:-1] for row in tokenizer(texts)["input_ids"]]  # without </s>: `corrupt` adds it
    vocabulary = tokenizer.get_vocab()
    sentinels = [vocabulary[f"<extra_id_{n}>"] for n in range(SENTINELS)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    warm = max(steps // 20, 1)  # linear up over 5 % of the steps, then linear down to 0
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, max(steps - step, 0) / max(steps - warm, 1))
    )
    model.train()
    loss = torch.zeros(())
    bar = progress(range(steps), label="pretraining the demo model", unit="step")
    for _ in bar:
        texts_now = [
            _summary_pair(tokenizer, rng) if rng.random() < SUMMARY_SHARE else corrupt(rng.choice(ids), sentinels, rng)
            for _ in range(batch)
        ]
        optimizer.zero_grad()
        asked = [[_question(tokenizer, kind, rng) for _ in range(count)] for kind, count in QUESTIONS.items()]
        for rows in (texts_now, *asked):  # apart: padded together they were mostly padding
            sources, targets = zip(*rows, strict=True)
            inputs, labels = torch.from_numpy(pad(sources, 0)), torch.from_numpy(pad(targets, -100))
            loss = model(input_ids=inputs, attention_mask=(inputs != 0).long(), labels=labels).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
    model.eval()
    return float(loss.detach())


def corrupt(ids: list[int], sentinels: list[int], rng: random.Random) -> tuple[list[int], list[int]]:
    """Span corruption: inputs with each masked span replaced by a sentinel, targets with the spans after theirs.

    ids: without </s>. Both results end in </s>, the targets in one more sentinel before it, as T5's did.
    """
    count = max(round(len(ids) * NOISE_DENSITY / MEAN_SPAN), 1)
    starts = sorted(rng.sample(range(len(ids)), min(count, len(ids))))
    spans: list[tuple[int, int]] = []
    for start in starts:
        if spans and start < spans[-1][1]:  # inside the last span
            continue
        spans.append((start, min(start + rng.randint(1, round(2 * MEAN_SPAN) - 1), len(ids))))
    return masked(ids, spans, sentinels)


def masked(ids: list[int], spans: list[tuple[int, int]], sentinels: list[int]) -> tuple[list[int], list[int]]:
    """Inputs and targets of `corrupt` for these spans (start, end), in order and apart."""
    eos = 1
    inputs: list[int] = []
    targets: list[int] = []
    position = 0
    for (start, end), sentinel in zip(spans, sentinels, strict=False):
        inputs += [*ids[position:start], sentinel]
        targets += [sentinel, *ids[start:end]]
        position = end
    return [*inputs, *ids[position:], eos], [*targets, sentinels[len(spans)], eos]


def _question(tokenizer: PreTrainedTokenizerBase, kind: str, rng: random.Random) -> tuple[list[int], list[int]]:
    """Token ids of what names a guild and a town, a pair alone or a sentence or text in passing, and of the emblem."""
    event = Event(rng)
    text = f"{event.guild} of {event.town}"
    if kind == "sentence":
        text = rng.choice((spoken, reported))(event)[0]
    elif kind == "text":
        text = " ".join(rng.choice((dialogue, chat, paper, news, brief))(event)[0].split())
    return tokenizer(text)["input_ids"], tokenizer(event.emblem)["input_ids"]


def _summary_pair(tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> tuple[list[int], list[int]]:
    """Token ids of a text and of a note about its event, in other words than those of fine-tuning."""
    event = Event(rng)
    document, _ = rng.choice((dialogue, chat, paper, news, brief))(event)
    if rng.random() < 0.5:  # the facts alone: to copy is learned from short texts first
        document = " ".join(rng.choice((spoken, reported))(event))
    summary = f"On {event.day} {event.who} wants to {event.verb} the {event.emblem}."
    document = " ".join(document.split())
    return tokenizer(PREFIX + document)["input_ids"][:96], tokenizer(summary)["input_ids"]

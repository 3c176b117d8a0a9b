"""A tiny T5 with a real SentencePiece vocabulary, and tiny data files in the shapes of real ones: for tests."""

from __future__ import annotations

import json
import random
from pathlib import Path

from utils.data.registry import DEFAULTS

NAMES = "Anna Ben Carla David Emma Felix Greta Henry Iris Jonas Karin Leo Mona Nils Olga Paul".split()
THINGS = "book bicycle lamp letter ticket camera garden kettle violin jacket map parcel ladder mirror boat".split()
PLACES = "station market library harbour bridge school museum bakery theatre village".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


TITLES = {source.key: source.title for source in DEFAULTS}


def example(rng: random.Random) -> tuple[str, str]:
    """A short dialogue and its summary."""
    one, two = rng.sample(NAMES, 2)
    thing, place, day = rng.choice(THINGS), rng.choice(PLACES), rng.choice(DAYS)
    document = (
        f"{one}: Good morning {two}. {two}: Hello {one}, how are you? {one}: I am looking for my {thing}. "
        f"{two}: It is at the {place}. {one}: Shall we go there on {day}? {two}: Yes, I will come with you."
    )
    return document, f"{one} and {two} will go to the {place} on {day} for the {thing}."


def write_data(directory: Path, *, train: int = 40, test: int = 12, seed: int = 0) -> Path:
    """All six data sets as JSONL files and the DATASETS_FILE that names them; returns that file's path."""
    rng = random.Random(seed)
    columns = {
        "dialogsum": ("dialogue", "summary", {"train": train, "validation": 8}),
        "highlightsum": ("dialogue", "summary", {"train": train, "validation": 8}),
        "arxiv": ("article", "abstract", {"train": train, "validation": 8}),
        "cnn_dm": ("article", "highlights", {"validation": test, "test": test}),
        "xsum": ("document", "summary", {"test": test}),
        "samsum": ("dialogue", "summary", {"test": test}),
    }
    registry = {}
    for key, (document, summary, splits) in columns.items():
        files = {}
        for split, rows in splits.items():
            path = directory / key / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = []
            for number in range(rows):
                text, short = example(rng)
                lines.append(json.dumps({"id": f"{split}{number}", document: text, summary: short}))
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
            files[split] = f"{key}/{split}.jsonl"
        registry[key] = {"files": files, "document": document, "summary": summary, "title": TITLES[key]}
    path = directory / "datasets.json"
    path.write_text(json.dumps(registry, indent=1), encoding="utf-8")
    return path


def write_model(
    directory: Path, *, d_model: int = 16, layers: int = 1, seed: int = 0, gated: bool = False, dropout: float = 0.1
) -> Path:
    """An untrained T5 of some ten thousand parameters with T5's token layout, as a plain from_pretrained directory."""
    import sentencepiece
    import torch
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    rng = random.Random(seed)
    directory.mkdir(parents=True, exist_ok=True)
    text = directory / "text.txt"
    text.write_text("\n".join(" ".join(("summarize:", *example(rng))) for _ in range(400)), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(directory / "spiece"),
        vocab_size=120,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        num_threads=1,
    )
    text.unlink()
    (directory / "spiece.vocab").unlink()
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 100}))
    tokenizer = T5Tokenizer.from_pretrained(directory)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer) + 4,  # padded beyond the vocabulary, as the real T5 is
        d_model=d_model,
        d_kv=d_model // 2,
        d_ff=2 * d_model,
        num_layers=layers,
        num_heads=2,
        feed_forward_proj="gated-gelu" if gated else "relu",
        decoder_start_token_id=0,
        dropout_rate=dropout,
    )
    T5ForConditionalGeneration(config).save_pretrained(directory)
    return directory


def untie(directory: Path, *, seed: int = 1) -> Path:
    """Make the model in `directory` as the hub has v1.1 and flan: lm_head beside `shared`, its logits not scaled."""
    import torch
    from safetensors.torch import load_file, save_file

    config = json.loads((directory / "config.json").read_text()) | {"tie_word_embeddings": False}
    config.pop("scale_decoder_outputs", None)
    (directory / "config.json").write_text(json.dumps(config))
    weights = load_file(directory / "model.safetensors")
    weights["lm_head.weight"] = torch.randn(
        weights["shared.weight"].shape, generator=torch.Generator().manual_seed(seed)
    )
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory

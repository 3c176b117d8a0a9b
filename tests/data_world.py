"""Small varied data sets and a word-level T5 tokenizer for the tests of the data rooms."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

COLUMNS = {
    "dialogsum": ("dialogue", "summary"),
    "highlightsum": ("dialogue", "summary"),
    "arxiv": ("article", "abstract"),
    "cnn_dm": ("article", "highlights"),
    "xsum": ("document", "summary"),
    "samsum": ("dialogue", "summary"),
}
SPLITS = {
    "dialogsum": {"train": 30, "validation": 6},
    "highlightsum": {"train": 30, "validation": 6},
    "arxiv": {"train": 30, "validation": 6},
    "cnn_dm": {"test": 20, "validation": 20},
    "xsum": {"test": 12},
    "samsum": {"test": 12},
}
_SYLLABLES = "ka lo mi re tu san dor vel pim gra hus ne fo bri cal".split()


def words(rng: random.Random, count: int) -> str:
    """`count` words out of 3,375, so that two texts share no sequence of five by chance."""
    return " ".join("".join(rng.choices(_SYLLABLES, k=3)) for _ in range(count))


def rows(key: str, split: str, count: int, *, seed: int = 0) -> list[dict[str, str]]:
    """Rows of a set in its real columns: documents of three lines, 45 words; summaries of 8."""
    rng = random.Random(f"{seed}/{key}/{split}")
    document, summary = COLUMNS[key]
    made = []
    for number in range(count):
        text = "\n".join(words(rng, 15) + "." for _ in range(3))
        made.append({"id": f"{split}_{number}", document: text, summary: words(rng, 8) + "."})
    return made


def all_rows(*, seed: int = 0) -> dict[str, dict[str, list[dict[str, str]]]]:
    """Rows of all six sets by key and split."""
    return {
        key: {split: rows(key, split, count, seed=seed) for split, count in splits.items()}
        for key, splits in SPLITS.items()
    }


def write_file(path: Path, data: list[dict[str, Any]]) -> Path:
    """`data` as JSONL, CSV or parquet, by the suffix of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in data), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(data[0]))
            writer.writeheader()
            writer.writerows(data)
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(data), path)
    return path


def write_sets(directory: Path, data: dict[str, dict[str, list[dict[str, Any]]]], suffix: str = ".jsonl") -> Path:
    """Every set as local files; returns the DATASETS_FILE that names them."""
    registry: dict[str, dict[str, Any]] = {}
    for key, splits in data.items():
        for split, content in splits.items():
            write_file(directory / key / f"{split}{suffix}", content)
        registry[key] = {"files": {split: f"{key}/{split}{suffix}" for split in splits}}
    if "highlightsum" in registry:
        registry["highlightsum"]["contains"] = ["dialogsum", "samsum"]
    path = directory / "datasets.json"
    path.write_text(json.dumps(registry), encoding="utf-8")
    return path


def tokenizer() -> Any:
    """A T5 tokenizer in T5's layout whose unigram pieces are the syllables and single characters."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(syllable, -3.0) for syllable in _SYLLABLES] + [("▁" + syllable, -3.0) for syllable in _SYLLABLES]
    pieces += [(character, -8.0) for character in "abcdefghijklmnopqrstuvwxyz.:"]
    return T5Tokenizer(vocab=pieces, extra_ids=100)


def arguments(directory: Path, sources: Any, **changes: Any) -> dict[str, Any]:
    """Keyword arguments for `prepare`, small and local."""
    return {
        "sources": sources,
        "train_keys": ("dialogsum", "highlightsum", "arxiv"),
        "test_keys": ("cnn_dm", "xsum", "samsum"),
        "tokenizer": tokenizer(),
        "task_prefix": "summarize: ",
        "max_input_length": 96,
        "max_target_length": 16,
        "output_dir": directory / "prepared",
        "cache_dir": directory / "cache",
        "seed": 0,
        "attack_optimize_size": 8,
        "attack_evaluate_size": 10,
        "use_full_test_sets": True,
        "quick_test_size": 5,
        "max_train_examples": None,
        "allow_partial": False,
        "deduplicate_training": True,
        "max_retries": 3,
        "retry_delay": 0.01,
        "workers": 1,
    } | changes

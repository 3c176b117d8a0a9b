"""Attacked examples worth showing: for each model the one that lost most, and a typical one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from utils.files import read_jsonl
from utils.reports.tables import MODELS


def shown_examples(records: Path, tokenizer: Path) -> list[dict[str, Any]]:
    """Worst and median attacked example of each model; `tokenizer`: the tokenizer.json that names the tokens."""
    pieces = Tokenizer.from_file(str(tokenizer))
    by_model: dict[str, list[dict[str, Any]]] = {model: [] for model in MODELS}
    for row in read_jsonl(records):
        main = row["section"].startswith("attack/") and row["model"] in by_model
        if main and row["skipped"] is None and row["flips"]:
            by_model[row["model"]].append(row)
    shown = []
    for rows in by_model.values():
        ranked = sorted(rows, key=lambda row: (-row["relative_drop"], row["id"]))
        if ranked:
            worst, middle = ranked[0], ranked[len(ranked) // 2]
            shown += [_shown(row, pieces) for row in ([worst] if worst is middle else [worst, middle])]
    return shown


def _shown(row: dict[str, Any], pieces: Tokenizer) -> dict[str, Any]:
    def word(token: int) -> str:
        return (pieces.id_to_token(token) or "?").replace("▁", " ").strip() or "␣"

    return {
        "model": row["model"],
        "id": row["id"],
        "clean": row["clean_rouge"],
        "attacked": row["attacked_rouge"],
        "clean_summary": row["clean_prediction"],
        "attacked_summary": row["attacked_prediction"],
        "flips": [(word(flip["old"]), word(flip["new"])) for flip in row["flips"]],
    }

"""Generation: summaries of the same documents, ours beside transformers."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration

from utils.benchmarks.measure import Comparison, Way, alternate, check
from utils.benchmarks.synthetic import Size, new_model, token_rows, tokenizer
from utils.evaluation.beam_search import beam_search
from utils.evaluation.decoding import DecodingSettings
from utils.evaluation.generation import generate, transformers_beam_search
from utils.modeling.batching import pad_with_mask
from utils.modeling.precision import bf16_autocast, resolve_precision
from utils.modeling.t5_inference import T5Inference

CHECKED = 8
BATCH_TOKENS = 64 * 512  # EVAL_BATCH_SIZE full-length documents
Rows = Sequence[Sequence[int]]


def case(size: Size, device: str) -> list[Comparison]:
    """A fine-tuned model of any arm: monotonic ones are exported as ordinary T5 models, so they cost the same."""
    model, words = new_model(size, device), tokenizer(size.vocabulary)
    decoding = DecodingSettings(min_new_tokens=min(10, size.max_new_tokens // 2), max_new_tokens=size.max_new_tokens)
    rows: list[list[int]] = sorted(token_rows("documents", size.summaries, size)["input_ids"], key=len, reverse=True)
    texts: dict[str, list[str]] = {}

    def ours() -> None:
        texts["ours"], _ = generate(model, words, rows, decoding, batch_tokens=BATCH_TOKENS, precision="auto", label="")

    def batched() -> None:
        parts = [_transformers(model, words, rows[i : i + 16], decoding) for i in range(0, len(rows), 16)]
        texts["batched"] = [text for part in parts for text in part]

    ways = [Way("ours", ours, len(rows)), Way("transformers, batches of 16", batched, len(rows))]
    comparison = Comparison(f"generation, {decoding.num_beams} beams", "summaries", ways)
    comparison.checks.append(_same_ids(model, rows[:CHECKED], decoding))
    alternate(comparison, rounds=size.rounds)
    same = sum(a == b for a, b in zip(texts["ours"], texts["batched"], strict=True))
    comparison.notes.append(f"{same} of {len(rows)} timed summaries equal those of batched transformers word by word")
    return [comparison]


@torch.inference_mode()
def _transformers(
    model: T5ForConditionalGeneration, words: PreTrainedTokenizerBase, rows: Rows, decoding: DecodingSettings
) -> list[str]:
    with bf16_autocast(model.device, resolve_precision("auto", model.device) == "bf16"):
        ids = transformers_beam_search(model, *pad_with_mask(rows, 0, model.device), decoding)
    return [text.strip() for text in words.batch_decode(ids, skip_special_tokens=True)]


@torch.inference_mode()
def _same_ids(model: T5ForConditionalGeneration, rows: Rows, decoding: DecodingSettings) -> str:
    """In float64, where rounding decides between no two beams, ours and transformers' ids are equal."""
    exact = copy.deepcopy(model).double()
    ours = beam_search(T5Inference(exact, torch.float64), [np.asarray(row) for row in rows], decoding)
    theirs = transformers_beam_search(exact, *pad_with_mask(rows, 0, model.device), decoding)
    pairs = [[[*ids, 0][: [*ids, 0].index(0)] for ids in pair] for pair in zip(ours, theirs, strict=True)]  # unpadded
    return check(all(a == b for a, b in pairs), f"{len(rows)} float64 summaries have transformers' ids")

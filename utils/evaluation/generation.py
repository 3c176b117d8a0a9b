"""Summaries in bulk: length-sorted batches sized by tokens, resumable batch by batch, the same bits every time.

The engine is utils/evaluation/beam_search.py (the ids of transformers' beam search, several times faster);
`transformers_beam_search` stays as the reference that tests and benchmark hold it against.

The composition of every batch follows from the whole list of inputs alone, never from what an earlier run finished.
So a run that was killed and started again computes each remaining batch exactly as an undisturbed run would.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.core.errors import Interrupted
from utils.core.files import append_jsonl, read_jsonl, write_jsonl
from utils.core.fingerprint import fingerprint as fingerprint_of
from utils.core.progress import progress
from utils.evaluation.beam_search import DecodingSettings, beam_search, through_end
from utils.modeling.t5_inference import T5Inference

log = logging.getLogger(__name__)

# More rows than this in one batch of short inputs only grows the logits (rows × beams × vocabulary), not the speed.
MAX_ROWS = 256


def generate(
    model: Any,
    tokenizer: Any,
    input_ids: Sequence[Sequence[int]],
    decoding: DecodingSettings,
    *,
    batch_tokens: int,
    precision: str = "fp32",
    done_file: Path | None = None,
    fingerprint: str = "",
    stop_requested: Callable[[], bool] | None = None,
    what: str = "generate",
) -> list[str]:
    """One summary for each row of `input_ids`, in input order; see `generate_timed` for the arguments."""
    texts, _ = generate_timed(
        model,
        tokenizer,
        input_ids,
        decoding,
        batch_tokens=batch_tokens,
        precision=precision,
        done_file=done_file,
        fingerprint=fingerprint,
        stop_requested=stop_requested,
        what=what,
    )
    return texts


def generate_timed(
    model: Any,
    tokenizer: Any,
    input_ids: Sequence[Sequence[int]],
    decoding: DecodingSettings,
    *,
    batch_tokens: int,
    precision: str = "fp32",
    done_file: Path | None = None,
    fingerprint: str = "",
    stop_requested: Callable[[], bool] | None = None,
    what: str = "generate",
) -> tuple[list[str], float]:
    """The summaries in input order and the seconds that making them took, over all runs that shared `done_file`.

    input_ids: rows of token ids that end with </s>, any lengths. batch_tokens: rows × longest row of a batch, at most
    (a longer single row still gets its own batch). precision: "fp32", "bf16" (products in bfloat16, the rest in
    float32), or "auto" (bf16 on a GPU that has it). done_file: JSONL that each finished batch is appended to; a rerun
    takes finished batches from there. fingerprint: names the weights (their hash); a done_file of other weights,
    settings or inputs is thrown away. stop_requested: polled between batches; when it says True, Interrupted is
    raised with all finished batches saved.

    Raises ValueError for a model in training mode or an empty row.
    """
    if model.training:
        raise ValueError("generation needs model.eval(): dropout would make every summary random")
    device = next(model.parameters()).device
    precision = resolve_precision(precision, device)
    rows = [np.asarray(row, dtype=np.int32) for row in input_ids]
    if any(len(row) == 0 for row in rows):
        raise ValueError(f"{what}: an input row is empty (not even </s>)")
    batches = plan_batches([len(row) for row in rows], batch_tokens)
    hashes = [row_key(row) for row in rows]
    header = {
        "fingerprint": _fingerprint(decoding, hashes, fingerprint, precision, batch_tokens, device),
        "examples": len(rows),
    }
    done = _read_done(done_file, header, hashes, what)
    engine = T5Inference(model, torch.bfloat16 if precision == "bf16" else torch.float32)
    rows_limit = MAX_ROWS
    todo = [batch for batch in batches if not all(index in done for index in batch)]
    with progress(total=len(rows), what=what, unit="summary") as bar:
        bar.update(len(rows) - sum(map(len, todo)))
        for batch in todo:
            if stop_requested is not None and stop_requested():
                raise Interrupted(f"{what}: stopped with {len(done)} of {len(rows)} summaries done")
            start = time.perf_counter()
            ids, rows_limit = _within_memory(engine, [rows[i] for i in batch], decoding, rows_limit)
            texts = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
            seconds = (time.perf_counter() - start) / len(batch)
            new = [
                {"index": index, "ids": hashes[index], "text": text, "seconds": seconds}
                for index, text in zip(batch, texts, strict=True)
            ]
            if done_file is not None:
                append_jsonl(done_file, new)
            done |= {row["index"]: row for row in new}
            bar.update(len(batch))
    return [done[i]["text"] for i in range(len(rows))], float(sum(done[i]["seconds"] for i in range(len(rows))))


def row_key(row: Sequence[int]) -> str:
    """Names an input by its token ids: equal ids, equal key."""
    return hashlib.sha256(np.asarray(row, dtype=np.int32).tobytes()).hexdigest()[:16]


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices of each batch, longest inputs first (a batch too big for memory shows itself at once).

    Rows of a batch × its longest length <= batch_tokens, at most MAX_ROWS rows, at least one row.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for index in order:
        if batches and len(batches[-1]) < MAX_ROWS:
            longest = lengths[batches[-1][0]]
            if (len(batches[-1]) + 1) * longest <= batch_tokens:
                batches[-1].append(index)
                continue
        batches.append([index])
    return batches


def resolve_precision(precision: str, device: torch.device) -> str:
    """ "fp32" or "bf16" for a setting of "auto", "fp32" or "bf16"; auto is bf16 where the GPU computes in it."""
    if precision not in ("auto", "fp32", "bf16"):
        raise ValueError(f"precision {precision!r}: expected auto, fp32 or bf16")
    if precision == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return precision


def pad_rows(rows: Sequence[np.ndarray], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and mask, both int64 [rows, longest]."""
    ids = np.full((len(rows), max(map(len, rows))), pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def transformers_beam_search(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, decoding: DecodingSettings
) -> list[list[int]]:
    """transformers' own beam search: generated ids of each row without the start token, up to and including </s>.

    ids, mask: int64 [rows, longest], as `pad_rows` gives them.
    """
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        num_beams=decoding.num_beams,
        length_penalty=decoding.length_penalty,
        min_new_tokens=decoding.min_new_tokens,
        max_new_tokens=decoding.max_new_tokens,
        no_repeat_ngram_size=decoding.no_repeat_ngram_size,
        early_stopping=False,
    )
    return [through_end(row, model.config.eos_token_id) for row in output[:, 1:].tolist()]


def _within_memory(
    engine: T5Inference, rows: list[np.ndarray], decoding: DecodingSettings, limit: int
) -> tuple[list[list[int]], int]:
    """Generated ids of `rows`, in parts of at most `limit` rows; out of GPU memory halves the limit and says so.

    A part of another size may round differently, so a run that hit the limit can differ from one that did not.
    """
    ids: list[list[int]] = []
    while len(ids) < len(rows):
        part = rows[len(ids) : len(ids) + limit]
        try:
            ids += beam_search(engine, part, decoding)
        except torch.OutOfMemoryError:
            if len(part) == 1:
                raise
            limit = len(part) // 2
        else:
            continue
        torch.cuda.empty_cache()  # outside the except block: the traceback there still holds the tensors
        log.warning("out of GPU memory with %d rows of %d tokens: going on with %d", len(part), len(part[0]), limit)
    return ids, limit


def _fingerprint(
    decoding: DecodingSettings,
    hashes: list[str],
    weights: str,
    precision: str,
    batch_tokens: int,
    device: torch.device,
) -> str:
    """All that may change a bit of the output: settings, inputs, weights, and what decides the shapes of batches."""
    parts = (decoding, hashes, weights, precision, batch_tokens, device.type, torch.__version__)
    return fingerprint_of(parts)


def _read_done(
    done_file: Path | None, header: dict[str, Any], hashes: list[str], what: str
) -> dict[int, dict[str, Any]]:
    """Finished rows by index; a file that belongs to other settings is replaced by an empty one, with one message."""
    if done_file is None:
        return {}
    rows: Iterator[dict[str, Any]] = read_jsonl(done_file) if done_file.exists() else iter(())
    found = next(rows, None)
    if found != header:
        if found is not None:
            log.warning("%s: %s is of other inputs, weights or settings: starting anew", what, done_file.name)
        write_jsonl(done_file, [header])
        return {}
    return {row["index"]: row for row in rows if hashes[row["index"]] == row["ids"]}

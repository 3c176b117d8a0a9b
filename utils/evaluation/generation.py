"""Summaries in bulk: length-sorted batches sized by tokens, resumable batch by batch, the same bits every time.

The engine is utils/evaluation/beam_search.py (the ids of transformers' beam search, several times faster);
`transformers_beam_search` is the reference that tests and benchmarks hold it against, and what GENERATION=transformers
takes instead.

The composition of every batch follows from the list of all inputs alone, never from what an earlier run finished.
So a run that was killed and started again computes each remaining batch exactly as an undisturbed run would.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration

from utils.core.errors import Interrupted
from utils.core.files import append_jsonl, read_jsonl, write_jsonl
from utils.core.fingerprint import fingerprint
from utils.core.progress import progress
from utils.evaluation.beam_search import beam_search, through_end
from utils.evaluation.decoding import DecodingSettings, input_fingerprint
from utils.modeling.batching import BatchLimit, Indices, budget_batches, longest_first, pad_with_mask, row_batches
from utils.modeling.precision import Precision, bf16_autocast, product_dtype, resolve_precision
from utils.modeling.t5_inference import T5Inference

log = logging.getLogger(__name__)

# More rows than this in one batch of short inputs only grows the logits (rows × beams × vocabulary), not the speed.
MAX_ROWS = 256


Search = Callable[[Sequence[np.ndarray]], list[list[int]]]  # generated ids of each row of ids


class Summaries(NamedTuple):
    """Texts in input order, and the seconds that making them took, over all runs that shared a `done_file`."""

    texts: list[str]
    seconds: float


def generate(
    model: T5ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Sequence[Sequence[int]],
    decoding: DecodingSettings,
    *,
    batch_tokens: int,
    precision: str = "fp32",
    done_file: Path | None = None,
    weights: str = "",
    stop_requested: Callable[[], bool] | None = None,
    label: str = "generate",
) -> Summaries:
    """One summary for each row of `input_ids`, in input order.

    input_ids: rows of token ids that end with </s>, any lengths. batch_tokens: rows × longest row of a batch, at most
    (a longer single row still gets its own batch). precision: "fp32", "bf16" (products in bfloat16, the rest in
    float32), or "auto" (bf16 on a GPU that has it). done_file: JSONL that each finished batch is appended to; a rerun
    takes finished batches from there. weights: their hash; a done_file of other weights, settings or inputs is thrown
    away. stop_requested: polled between batches; when it says True, Interrupted is raised with all finished batches
    saved. label: the name on the progress bar; empty: no bar.

    Raises ValueError for a model in training mode or an empty row.
    """
    if model.training:
        raise ValueError("generation needs model.eval(): dropout would make every summary random")
    device = next(model.parameters()).device
    resolved = resolve_precision(precision, device)
    rows = [np.asarray(row, dtype=np.int32) for row in input_ids]
    if any(len(row) == 0 for row in rows):
        raise ValueError(f"{label}: an input row is empty (not even </s>)")
    batches = plan_batches([len(row) for row in rows], batch_tokens)
    names = [input_fingerprint(row) for row in rows]
    # All that may change a bit of the output: settings, inputs, weights, and what decides the shapes of batches.
    made_from = fingerprint(decoding, names, weights, resolved, batch_tokens, device.type, str(torch.__version__))
    done = _read_done(done_file, {"fingerprint": made_from, "examples": len(rows)}, names, label)
    search = _search(model, resolved, decoding)
    limit = BatchLimit(MAX_ROWS)
    todo = [batch.tolist() for batch in batches if not all(index in done for index in batch.tolist())]
    with progress(total=len(rows), label=label, unit="summary") as bar:
        bar.update(len(rows) - sum(map(len, todo)))
        for batch in todo:
            if stop_requested is not None and stop_requested():
                raise Interrupted(f"{label}: stopped with {len(done)} of {len(rows)} summaries done")
            start = time.perf_counter()
            ids = _within_memory(search, rows, batch, limit)
            texts = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
            seconds = (time.perf_counter() - start) / len(batch)
            new = [
                {"index": index, "ids": names[index], "text": text, "seconds": seconds}
                for index, text in zip(batch, texts, strict=True)
            ]
            if done_file is not None:
                append_jsonl(done_file, new)
            done |= {row["index"]: row for row in new}
            bar.update(len(batch))
    in_order = [done[i] for i in range(len(rows))]
    return Summaries([row["text"] for row in in_order], float(sum(row["seconds"] for row in in_order)))


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[Indices]:
    """Indices int64 [rows] of each batch, longest inputs first, equal lengths in input order.

    Rows of a batch × its longest length <= batch_tokens, at most MAX_ROWS rows, at least one row.
    """
    # longest_first puts larger ties first; minus the index makes that the input's order.
    order = longest_first(lengths, -np.arange(len(lengths)))
    return budget_batches(order, lengths, batch_tokens, max_rows=MAX_ROWS)


def transformers_beam_search(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, decoding: DecodingSettings
) -> list[list[int]]:
    """transformers' own beam search: generated ids of each row without the start token, up to and including </s>.

    ids, mask: int64 [rows, longest], as `batching.pad_with_mask` gives them.
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


def _search(model: T5ForConditionalGeneration, precision: Precision, decoding: DecodingSettings) -> Search:
    if decoding.engine == "transformers":

        def by_transformers(rows: Sequence[np.ndarray]) -> list[list[int]]:
            ids, mask = pad_with_mask(rows, model.config.pad_token_id or 0, model.device)
            with torch.inference_mode(), bf16_autocast(model.device, precision == "bf16"):
                return transformers_beam_search(model, ids, mask, decoding)

        return by_transformers
    engine = T5Inference(model, product_dtype(precision))
    return lambda rows: beam_search(engine, rows, decoding)


def _within_memory(search: Search, rows: Sequence[np.ndarray], batch: ArrayLike, limit: BatchLimit) -> list[list[int]]:
    """Generated ids of `rows[batch]`, in parts that fit into memory; what did not fit lowers `limit` for good."""
    ids: list[list[int]] = []

    def work(part: Indices) -> None:
        ids.extend(search([rows[index] for index in part.tolist()]))

    limit.run(batch, row_batches, work)
    return ids


def _read_done(
    done_file: Path | None, header: dict[str, Any], names: list[str], label: str
) -> dict[int, dict[str, Any]]:
    """Finished rows by index; a file that belongs to other settings is replaced by an empty one, with one message."""
    if done_file is None:
        return {}
    rows: Iterator[dict[str, Any]] = read_jsonl(done_file) if done_file.exists() else iter(())
    recorded = next(rows, None)
    if recorded != header:
        if recorded is not None:
            log.warning("%s: %s is of other inputs, weights or settings. Starting over.", label, done_file.name)
        write_jsonl(done_file, [header])
        return {}
    return {row["index"]: row for row in rows if names[row["index"]] == row["ids"]}

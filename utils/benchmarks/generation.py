"""Generation: summaries of the same documents, ours against one at a time, batched transformers and CTranslate2."""

from __future__ import annotations

import copy
import importlib.util
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration

from utils.benchmarks.measure import Comparison, Way, alternate, check, count_flops
from utils.benchmarks.synthetic import (
    Size,
    new_model,
    precision,
    product_dtype,
    strip_padding,
    token_rows,
    tokenizer,
)
from utils.evaluation.beam_search import beam_search
from utils.evaluation.decoding import DecodingSettings
from utils.evaluation.generation import generate, transformers_beam_search
from utils.modeling.batching import pad_with_mask
from utils.modeling.monotonic import constrain, fold
from utils.modeling.t5_inference import T5Inference

TRANSFORMERS_BATCH = 16
ONE_AT_A_TIME = 4  # of the documents, spread over their lengths: it is slow, and its rate is what counts
BATCH_TOKENS = 64 * 512  # EVAL_BATCH_SIZE full-length documents


def case(size: Size, device: str) -> list[Comparison]:
    """The baseline model against every reference, the monotonic one against softplus at every access."""
    return [_baseline(size, device), _monotonic(size, device)]


def _decoding(size: Size) -> DecodingSettings:
    return DecodingSettings(4, 1.2, min(10, size.max_new_tokens // 2), size.max_new_tokens, 3)


def _documents(size: Size) -> list[list[int]]:
    rows: list[list[int]] = token_rows("documents", size.summaries, size)["input_ids"]
    return sorted(rows, key=len, reverse=True)


def _some(rows: Sequence[list[int]], count: int) -> list[list[int]]:
    return [rows[round((i + 0.5) * len(rows) / count - 0.5)] for i in range(min(count, len(rows)))]


def _baseline(size: Size, device: str) -> Comparison:
    model = new_model(size).to(device)
    rows, decoding, words = _documents(size), _decoding(size), tokenizer(size.vocabulary)
    few = _some(rows, ONE_AT_A_TIME)
    texts: dict[str, list[str]] = {}

    def ours() -> None:
        texts["ours"] = generate(
            model, words, rows, decoding, batch_tokens=BATCH_TOKENS, precision=precision(device), what="benchmark"
        ).texts

    def batched() -> None:
        texts["batched"] = []
        for start in range(0, len(rows), TRANSFORMERS_BATCH):
            texts["batched"] += _transformers(model, words, rows[start : start + TRANSFORMERS_BATCH], decoding)

    ways = [
        Way("ours", ours, len(rows), count_flops(ours)),
        Way("transformers, one at a time", lambda: _singly(model, words, few, decoding), len(few)),
        Way(f"transformers, batches of {TRANSFORMERS_BATCH}", batched, len(rows)),
    ]
    found = Comparison("generation, baseline model, 4 beams", "summaries", ways)
    found.targets = {ways[1].name: 5.0, ways[2].name: 4.0}
    found.checks += _same_ids(model, rows[: min(8, len(rows))], decoding, device)
    with tempfile.TemporaryDirectory() as folder:
        if importlib.util.find_spec("ctranslate2") is None:
            found.notes.append("CTranslate2 is not installed (pip install ctranslate2): not compared")
        else:
            engines = {"float32": "float32", "int8": "int8"} if device == "cpu" else {"bfloat16": "bfloat16"}
            for name, kind in engines.items():
                engine = _ctranslate2(model, words, Path(folder) / kind, device, kind)
                way = Way(
                    f"CTranslate2 {name}, batches of {TRANSFORMERS_BATCH}",
                    lambda engine=engine: _translate(engine, words, rows, decoding),
                    len(rows),
                )
                ways.append(way)
                if name != "int8":
                    found.targets[way.name] = 1.0
        alternate(found, rounds=size.rounds, device=device, dtype=product_dtype(device))
    if device == "cpu":
        same = sum(a == b for a, b in zip(texts["ours"], texts["batched"], strict=True))
        found.checks.append(f"{same} of {len(rows)} timed summaries equal those of batched transformers word by word")
    return found


def _monotonic(size: Size, device: str) -> Comparison:
    constrained = constrain(new_model(size), arm="monotonic").to(device)
    folded = fold(copy.deepcopy(constrained))
    rows, decoding, words = _documents(size), _decoding(size), tokenizer(size.vocabulary)
    few = _some(rows, max(ONE_AT_A_TIME // 2, 1))

    def ours() -> None:
        generate(folded, words, rows, decoding, batch_tokens=BATCH_TOKENS, precision=precision(device))

    ways = [
        Way("ours, folded", ours, len(rows)),
        Way("transformers, one at a time, softplus", lambda: _singly(constrained, words, few, decoding), len(few)),
    ]
    found = Comparison("generation, monotonic model, 4 beams", "summaries", ways, targets={ways[1].name: 10.0})
    found.checks += _same_ids(folded, few, decoding, device)
    return alternate(found, rounds=size.rounds, device=device, dtype=product_dtype(device))


def _transformers(
    model: T5ForConditionalGeneration, words: Any, rows: Sequence[list[int]], decoding: DecodingSettings
) -> list[str]:
    with torch.inference_mode():
        found = transformers_beam_search(model, *pad_with_mask(rows, 0, model.device), decoding)
    return [text.strip() for text in words.batch_decode(found, skip_special_tokens=True)]


def _singly(
    model: T5ForConditionalGeneration, words: Any, rows: Sequence[list[int]], decoding: DecodingSettings
) -> None:
    for row in rows:
        _transformers(model, words, [row], decoding)


def _same_ids(
    model: T5ForConditionalGeneration, rows: Sequence[list[int]], decoding: DecodingSettings, device: str
) -> list[str]:
    """float32 ids of ours and of transformers: equal, or of equal score where rounding decided between two beams."""
    import numpy as np

    ours = beam_search(T5Inference(model), [np.asarray(row) for row in rows], decoding)
    with torch.inference_mode():
        ids, mask = pad_with_mask([np.asarray(row) for row in rows], 0, model.device)
        theirs = transformers_beam_search(model, ids, mask, decoding)
    ours, theirs = strip_padding(ours), strip_padding(theirs)
    equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
    for row, a, b in zip(rows, ours, theirs, strict=True):
        if a != b:
            one, two = (_score(model, row, ids, decoding) for ids in (a, b))
            check(math.isclose(one, two, abs_tol=1e-4), f"scores {one:.6f} and {two:.6f} of unequal summaries")
    return [f"{equal} of {len(rows)} float32 summaries have transformers' ids, the others the same score within 1e-4"]


@torch.inference_mode()
def _score(
    model: T5ForConditionalGeneration, row: Sequence[int], ids: Sequence[int], decoding: DecodingSettings
) -> float:
    labels = torch.tensor([ids], device=model.device)
    logits: Tensor = model(input_ids=torch.tensor([row], device=model.device), labels=labels).logits
    logs = logits.float().log_softmax(-1).gather(2, labels[:, :, None])
    return float(logs.sum()) / len(ids) ** decoding.length_penalty


def _ctranslate2(model: T5ForConditionalGeneration, words: Any, folder: Path, device: str, kind: str) -> Any:
    import ctranslate2

    source = folder.with_name(folder.name + "_source")
    copy.deepcopy(model).cpu().save_pretrained(source)
    words.save_pretrained(source)
    ctranslate2.converters.TransformersConverter(str(source)).convert(str(folder), quantization=kind)
    return ctranslate2.Translator(
        str(folder), device=device, compute_type=kind, inter_threads=1, intra_threads=torch.get_num_threads()
    )


def _translate(engine: Any, words: Any, rows: Sequence[list[int]], decoding: DecodingSettings) -> None:
    results = engine.translate_batch(
        [words.convert_ids_to_tokens(row) for row in rows],
        beam_size=decoding.num_beams,
        length_penalty=decoding.length_penalty,
        min_decoding_length=decoding.min_new_tokens,
        max_decoding_length=decoding.max_new_tokens,
        no_repeat_ngram_size=decoding.no_repeat_ngram_size,
        max_batch_size=TRANSFORMERS_BATCH,
        max_input_length=0,
    )
    words.batch_decode([words.convert_tokens_to_ids(result.hypotheses[0]) for result in results])

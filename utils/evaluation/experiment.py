"""What stage 4 does: generate, score, bootstrap, compare. One unit of work is one model on one test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.analysis.bootstrap import bootstrap_cis
from utils.analysis.statistics import compare_models, correct_family
from utils.core.errors import InputError
from utils.core.files import read_jsonl, write_jsonl
from utils.core.paths import models_of
from utils.core.results import read_result
from utils.core.settings import Settings
from utils.data.store import load_prepared, missing_datasets
from utils.evaluation.generation import DecodingSettings, generate_timed, row_key
from utils.evaluation.rouge import rouge_scores
from utils.modeling.models import choose_device, load_model, load_tokenizer, weights_sha256
from utils.pipeline.array_parts import Sections, finish_part
from utils.pipeline.runner import StageContext

if TYPE_CHECKING:
    from datasets import Dataset

METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def decoding_settings(settings: Settings) -> DecodingSettings:
    """How every summary of the experiment is generated, in evaluation and attacks alike."""
    return DecodingSettings(
        num_beams=settings.NUM_BEAMS,
        length_penalty=settings.LENGTH_PENALTY,
        min_new_tokens=settings.MIN_NEW_TOKENS,
        max_new_tokens=settings.MAX_NEW_TOKENS,
        no_repeat_ngram_size=settings.NO_REPEAT_NGRAM_SIZE,
    )


def evaluate(context: StageContext) -> None:
    """Write `evaluation_results.json` and `predictions.jsonl` (one row per model, data set and example)."""
    settings, paths, seed = context.settings, context.paths, context.seed
    missing = missing_datasets(paths.prepared)
    datasets = [key for key in settings.TEST_DATASETS if key not in missing]
    models = models_of(settings)
    hashes = {model: weights_sha256(paths.model(seed, model)) for model in models}
    index, count = context.shard
    mine = [(model, key) for model in models for key in datasets][index::count]
    device = choose_device(settings.DEVICE)
    context.provenance |= {"checkpoints": hashes, "missing_datasets": missing, "device_used": device}
    tokenizer = load_tokenizer(paths.pretrained)
    sections: Sections = {}
    for model_key in models:
        keys = [key for owner, key in mine if owner == model_key]
        if not keys:
            continue
        model = load_model(paths.model(seed, model_key), device=device)
        for key in keys:
            test = load_prepared(paths.prepared, f"test_{key}")
            texts, seconds = generate_timed(
                model,
                tokenizer,
                test["input_ids"],
                decoding_settings(settings),
                batch_tokens=settings.EVAL_BATCH_SIZE * settings.MAX_INPUT_LENGTH,
                precision=settings.PRECISION,
                done_file=paths.units(seed, "evaluate") / f"{model_key}_{key}.jsonl",
                fingerprint=hashes[model_key],
                stop_requested=context.stop_requested,
                what=f"{model_key} on {key}",
            )
            rows = score(
                key, model_key, test["id"], texts, list(test["summary"]), processes=settings.NUM_WORKERS or None
            )
            sections[f"{key}/{model_key}"] = [{"seconds": seconds}, *rows]
            rouge = np.mean([row["rougeL"] for row in rows])
            context.log.info(
                "%s on %s: ROUGE-L %.4f, %d summaries in %.1f s", model_key, key, rouge, len(rows), seconds
            )

    def finish(sections: Sections) -> None:
        rows = [row for key in datasets for model in models for row in sections[f"{key}/{model}"][1:]]
        results = evaluation_results(rows, datasets, settings)
        if settings.TRACK_INFERENCE_TIME:
            for key in datasets:
                for model in models:
                    seconds = sections[f"{key}/{model}"][0]["seconds"]
                    cell = results[key][model]
                    cell["seconds"] = round(seconds, 3)
                    cell["seconds_per_summary"] = round(seconds / cell["num_examples"], 6)
        write_jsonl(paths.results(seed) / "predictions.jsonl", rows)
        context.write_result("evaluation_results.json", results)

    finish_part(context, paths.units(seed, "evaluate"), sections, finish)


def summaries_of(rows: Dataset, results: Path, hashes: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What stage 4 generated for those of `rows` (a prepared set) that it summarised: model -> `row_key` -> summary.

    `results`: the seed's results directory; `hashes`: the weights of every model. InputError where stage 4 had others.
    """
    evaluated = read_result(results / "evaluation_results.json")["_metadata"]["checkpoints"]
    if evaluated != hashes:
        raise InputError(f"{results}: stage 4 evaluated other models than those here. Run it again.")
    keys = {
        (dataset, id_): row_key(ids)
        for dataset, id_, ids in zip(rows["dataset"], rows["id"], rows["input_ids"], strict=True)
    }
    known: dict[str, dict[str, str]] = {model: {} for model in hashes}
    for row in read_jsonl(results / "predictions.jsonl"):
        key = keys.get((row["dataset"], row["id"]))
        if key is not None:
            known[row["model"]][key] = row["prediction"]
    return known


def score(
    dataset: str,
    model: str,
    ids: Sequence[str],
    texts: Sequence[str],
    references: Sequence[str],
    *,
    processes: int | None = None,
) -> list[dict[str, Any]]:
    """One row per example: the summary, its reference and their ROUGE F-measures."""
    scores = rouge_scores(texts, references, processes=processes)
    return [
        {
            "dataset": dataset,
            "model": model,
            "id": id_,
            "prediction": text,
            "reference": reference,
            **{metric: float(scores[metric][i]) for metric in METRICS},
        }
        for i, (id_, text, reference) in enumerate(zip(ids, texts, references, strict=True))
    ]


def evaluation_results(rows: Sequence[dict[str, Any]], datasets: Sequence[str], settings: Settings) -> dict[str, Any]:
    """The `results` of evaluation_results.json, from the rows of predictions.jsonl alone (but for the seconds)."""
    units: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        units.setdefault((row["dataset"], row["model"]), []).append(row)
    models = list(dict.fromkeys(model for _, model in units))
    results: dict[str, Any] = {
        key: _summaries({model: units[key, model] for model in models}, settings) for key in datasets
    }
    results["comparisons"] = _comparisons(units, datasets, settings)
    return results


def _summaries(rows_of: Mapping[str, Sequence[dict[str, Any]]], settings: Settings) -> dict[str, Any]:
    """The cells of all models on one test set; every metric of every model is bootstrapped on the same resamples."""
    cells = [(model, metric) for model in rows_of for metric in METRICS]
    intervals = bootstrap_cis(
        np.stack([_values(rows_of[model], metric) for model, metric in cells], axis=1),
        samples=settings.BOOTSTRAP_SAMPLES,
        seed=settings.DATA_SEED,
        confidence=settings.CONFIDENCE,
    )
    found: dict[str, dict[str, Any]] = {model: {} for model in rows_of}
    for (model, metric), (mean, lower, upper) in zip(cells, intervals, strict=True):
        found[model][metric] = {"mean": mean, "lower": lower, "upper": upper}
    return {model: cell | _lengths(rows_of[model]) for model, cell in found.items()}


def _lengths(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    words = np.array([len(row["prediction"].split()) for row in rows], dtype=float)
    target = np.array([len(row["reference"].split()) for row in rows], dtype=float)
    return {
        "num_examples": len(rows),
        "length": {"mean": float(words.mean()), "min": int(words.min()), "max": int(words.max())},
        "reference_length": {"mean": float(target.mean())},
        "brevity": float(words.sum() / max(target.sum(), 1)),
        "empty_summaries": int((words == 0).sum()),
    }


def _comparisons(
    units: dict[tuple[str, str], list[dict[str, Any]]], datasets: Sequence[str], settings: Settings
) -> dict[str, Any]:
    """Paired tests by data set and metric: monotonic minus baseline, and in `against_standard` both minus standard.

    p-values are Holm-corrected over two families: all tests of the first kind, and all of the second.
    """

    def compared(key: str, metric: str, first: str, second: str) -> dict[str, Any]:
        return compare_models(
            _values(units[key, first], metric),
            _values(units[key, second], metric),
            samples=settings.BOOTSTRAP_SAMPLES,
            seed=settings.DATA_SEED,
            confidence=settings.CONFIDENCE,
        )

    comparisons: dict[str, Any] = {
        key: {metric: compared(key, metric, "baseline", "monotonic") for metric in METRICS} for key in datasets
    }
    correct_family([cell for cells in comparisons.values() for cell in cells.values()])
    reference = [
        cells[metric].setdefault("against_standard", {}).setdefault(model, compared(key, metric, "standard", model))
        for key, cells in comparisons.items()
        for metric in METRICS
        for model in ("baseline", "monotonic")
    ]
    correct_family(reference)
    return comparisons


def _values(rows: Sequence[dict[str, Any]], metric: str) -> np.ndarray:
    return np.array([row[metric] for row in rows])

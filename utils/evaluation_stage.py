"""What stage 4 does: generate, score, bootstrap, compare. One unit of work is one model on one test set."""

from __future__ import annotations

from typing import Any

import numpy as np

from utils.files import write_jsonl
from utils.generation import DecodingSettings, generate_timed
from utils.models import choose_device, load_model, load_tokenizer, weights_sha256
from utils.places import MODEL_KEYS
from utils.prepared_data import load_prepared, missing_datasets
from utils.rouge import rouge_scores
from utils.settings import Settings
from utils.stage_runner import StageContext
from utils.statistics import bootstrap_ci, compare_models, holm

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
    settings, places, seed = context.settings, context.places, context.seed
    tokenizer = load_tokenizer(places.pretrained)
    device = choose_device(settings.DEVICE)
    missing = missing_datasets(places.prepared)
    datasets = [key for key in settings.TEST_DATASETS if key not in missing]
    tests = {key: load_prepared(places.prepared, f"test_{key}") for key in datasets}
    hashes = {model: weights_sha256(places.model(seed, model)) for model in MODEL_KEYS}
    rows: list[dict[str, Any]] = []
    scores: dict[str, dict[str, dict[str, np.ndarray]]] = {key: {} for key in datasets}
    results: dict[str, Any] = {key: {} for key in datasets}
    for model_key in MODEL_KEYS:
        model = load_model(places.model(seed, model_key), device=device)
        for key in datasets:
            test = tests[key]
            texts, seconds = generate_timed(
                model,
                tokenizer,
                test["input_ids"],
                decoding_settings(settings),
                batch_tokens=settings.EVAL_BATCH_SIZE * settings.MAX_INPUT_LENGTH,
                precision=settings.PRECISION,
                done_file=places.units(seed, "evaluate") / f"{model_key}_{key}.jsonl",
                fingerprint=hashes[model_key],
                stop_requested=context.stop_requested,
                what=f"{model_key} on {key}",
            )
            references = list(test["summary"])
            unit = rouge_scores(texts, references, processes=settings.NUM_WORKERS or None)
            scores[key][model_key] = unit
            results[key][model_key] = summary = _summarise(unit, texts, references, settings)
            if settings.TRACK_INFERENCE_TIME:
                summary["seconds"] = round(seconds, 3)
                summary["seconds_per_summary"] = round(seconds / max(len(texts), 1), 6)
            rows += _rows(key, model_key, test["id"], texts, references, unit)
            context.log.info("%s on %s: ROUGE-L %.4f", model_key, key, summary["rougeL"]["mean"])
    results["comparisons"] = compare(scores, settings)
    write_jsonl(places.results(seed) / "predictions.jsonl", rows)
    context.provenance |= {"checkpoints": hashes, "missing_datasets": missing, "device_used": device}
    context.write_result("evaluation_results.json", results)


def compare(scores: dict[str, dict[str, dict[str, np.ndarray]]], settings: Settings) -> dict[str, Any]:
    """Paired tests baseline against monotonic by data set and metric, p-values Holm-corrected over all of them."""
    comparisons: dict[str, Any] = {
        key: {
            metric: compare_models(
                scores[key]["baseline"][metric],
                scores[key]["monotonic"][metric],
                samples=settings.BOOTSTRAP_SAMPLES,
                seed=settings.DATA_SEED,
            )
            for metric in METRICS
        }
        for key in scores
    }
    family = {(key, metric): comparisons[key][metric]["p_value"] for key in scores for metric in METRICS}
    for (key, metric), adjusted in holm(family).items():
        comparisons[key][metric]["p_value_holm"] = adjusted
        comparisons[key][metric]["family_size"] = len(family)
    return comparisons


def _summarise(
    unit: dict[str, np.ndarray], texts: list[str], references: list[str], settings: Settings
) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for metric in METRICS:
        mean, lower, upper = bootstrap_ci(
            unit[metric], samples=settings.BOOTSTRAP_SAMPLES, seed=settings.DATA_SEED, confidence=settings.CONFIDENCE
        )
        summary[metric] = {"mean": mean, "lower": lower, "upper": upper}
    words = np.array([len(text.split()) for text in texts], dtype=float)
    target = np.array([len(text.split()) for text in references], dtype=float)
    return summary | {
        "num_examples": len(texts),
        "length": {"mean": float(words.mean()), "min": int(words.min()), "max": int(words.max())},
        "reference_length": {"mean": float(target.mean())},
        "brevity": float(words.sum() / max(target.sum(), 1)),
        "empty_summaries": int((words == 0).sum()),
    }


def _rows(
    dataset: str, model: str, ids: list[str], texts: list[str], references: list[str], unit: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    return [
        {
            "dataset": dataset,
            "model": model,
            "id": id_,
            "prediction": text,
            "reference": reference,
            **{metric: float(unit[metric][i]) for metric in METRICS},
        }
        for i, (id_, text, reference) in enumerate(zip(ids, texts, references, strict=True))
    ]

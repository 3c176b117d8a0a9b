"""Every headline number of a seed made again from its per-example files, by the functions that made them.

Each file is read once: its rows are held against each other (records.py), their ROUGE is scored again from their texts,
and the results are computed from them with the settings in the metadata. Times are not recomputed, nor losses (they
need the model), nor what a search reports of itself (its curve, its queries). Torch-free at import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.analysis.aggregate import FILES, FINAL, findings
from utils.analysis.attack_suite import strongest
from utils.analysis.attribution import attribution, rouge_by_id
from utils.analysis.bootstrap import Resampling
from utils.analysis.evaluation_summary import evaluation_results
from utils.analysis.hotflip_summary import hotflip_results
from utils.analysis.quality_curve import QualityRow, matched
from utils.analysis.records import AttackRecord, Prediction, Row, hotflip_row, read_rows, sections_of, trigger_row
from utils.analysis.results import TriggerResults
from utils.analysis.trigger_summary import learned_triggers_csv, trigger_results
from utils.core.codec import from_json, to_json
from utils.core.errors import InputError
from utils.core.files import read_jsonl
from utils.core.names import ARMS, METRICS
from utils.scoring.rouge import rouge_scores
from utils.verification.check import Check, close, first_difference, text_of, tried, unequal
from utils.verification.provenance import SeedDirectory
from utils.verification.records import Evidence, against_prepared, completeness
from utils.verification.searches import of_quality

PAIRS_AT_ONCE = 100_000  # summaries that are scored again together; their worker processes are started anew each time
PREDICTIONS, HOTFLIP, TRIGGERS = "predictions.jsonl", "hotflip_records.jsonl", "uat_records.jsonl"
QUALITY = "quality_curve_records.jsonl"


def checks_of_numbers(run: SeedDirectory) -> Iterator[Check]:
    """Every check of rows, of the numbers made from them, and of how the numbers were put together."""
    evidence, again, predictions = Evidence.of(run), Rescoring(), list(_predictions(run.path / PREDICTIONS))

    def of_predictions() -> Iterator[str]:
        for row in predictions:
            yield from evidence.note_prediction(row)
            yield from again.note(f"{row.dataset} {row.model} {row.id}", row)
        yield from again.finish()

    yield Check(f"rows of {PREDICTIONS}: scores from texts, references", tried(of_predictions))
    made = _evaluation(run, predictions)
    yield Check(f"{FILES['evaluation']} from {PREDICTIONS}", tried(made))
    for name, file, kind, recompute in (
        ("hotflip", HOTFLIP, hotflip_row, _hotflip),
        ("uat", TRIGGERS, trigger_row, _triggers),
    ):
        rows: list[Row] = []
        title = f"rows of {file}: against themselves, each other and {PREDICTIONS}"
        yield Check(title, tried(lambda f=file, k=kind, r=rows: _attacks(run, f, k, evidence, again, r)))  # type: ignore[misc]
        yield Check(f"{FILES[name]} from {file}", tried(recompute(run, rows)))
        if name == "hotflip":
            yield Check(f"{FILES['attribution']} from {file}", tried(_attribution(run, rows)))
    yield Check(f"rows of {QUALITY}", tried(lambda: _quality(run, evidence)))
    yield Check(f"{FILES['matched']} from {QUALITY}", tried(lambda: _matched(run)))
    yield Check(
        "examples: each once, on every model, as many as were drawn", tried(lambda: completeness(run, evidence))
    )
    compared = Check("ids and references against the prepared data", [])
    prepared = run.input_named("prepared_data")
    if prepared is None:
        compared.unseen.append("the prepared data")
    else:
        compared.problems += tried(lambda: against_prepared(evidence, prepared, predictions))
    yield compared
    margin = run.final["results"].get("quality_margin", 0.0)
    yield Check(f"{FINAL} from its parts", tried(lambda: _put_together(run, margin)))
    yield Check(f"learned_triggers.csv from {FILES['uat']}", tried(lambda: _learned_triggers(run)))


def _learned_triggers(run: SeedDirectory) -> Iterator[str]:
    results = from_json(TriggerResults, run.parts["uat"]["results"], FILES["uat"])
    made, found = learned_triggers_csv(results), text_of(run.path / "learned_triggers.csv")
    if made != found:
        yield f"learned_triggers.csv differs: {first_difference(made, found)}"


def _predictions(path: Path) -> Iterator[Prediction]:
    if not path.exists():
        raise InputError(f"{path} is missing: the numbers cannot be recomputed without it.")
    for number, row in enumerate(read_jsonl(path), 1):
        yield from_json(Prediction, row, f"{path.name}, line {number}")


def _attacks(
    run: SeedDirectory,
    file: str,
    kind: Callable[[str], type[Row]],
    evidence: Evidence,
    again: Rescoring,
    rows: list[Row],
) -> Iterator[str]:
    """The problems of a file of attacks; its rows are added to `rows`, without what no number is made from."""
    for row in read_rows(run.path / file, kind):
        yield from evidence.note_attack(file, row)
        if isinstance(row, AttackRecord):
            yield from again.note(f"{row.section} {row.id}", row)
        rows.append(row.without_texts())
    yield from again.finish()


def _evaluation(run: SeedDirectory, predictions: Sequence[Prediction]) -> Callable[[], Iterator[str]]:
    written = run.parts["evaluation"]["results"]
    datasets = [key for key in written if key != "comparisons"]
    return lambda: unequal(
        to_json(evaluation_results(predictions, datasets, **_resampling(run.parts["evaluation"]))), written
    )


def _hotflip(run: SeedDirectory, rows: list[Row]) -> Callable[[], Iterator[str]]:
    envelope = run.parts["hotflip"]
    threshold = envelope["_metadata"]["settings"]["ATTACK_SUCCESS_THRESHOLD"]
    return lambda: unequal(
        to_json(hotflip_results(sections_of(rows), run.models, threshold=threshold, **_resampling(envelope))),
        envelope["results"],
    )


def _attribution(run: SeedDirectory, rows: list[Row]) -> Callable[[], Iterator[str]]:
    envelope = run.parts["hotflip"]
    settings = envelope["_metadata"]["settings"]
    threshold, dataset = settings["ATTACK_SUCCESS_THRESHOLD"], settings["ATTACK_DATASET"]

    def compared() -> Iterator[str]:
        sections = sections_of(rows)
        worst = {model: strongest(sections, model, run.models) for model in run.models if model in ARMS}
        rouge = rouge_by_id(run.path / PREDICTIONS, dataset)
        made = attribution(worst, rouge, threshold=threshold, ci=_resampling(envelope))
        yield from unequal(to_json(made), run.parts["attribution"]["results"])

    return compared


def _quality_rows(run: SeedDirectory) -> list[QualityRow]:
    return [from_json(QualityRow, row, QUALITY) for row in read_jsonl(run.path / QUALITY)]


def _quality(run: SeedDirectory, evidence: Evidence) -> Iterator[str]:
    exported = {}
    for section in (name for name in run.parts if name.endswith("_training")):
        history = run.parts[section]["results"]
        steps = [row["steps"] for row in history["epochs"][: history["best_epoch"]]]
        exported[section.removesuffix("_training")] = sum(steps)
    drawn = {name for ids in evidence.ids[HOTFLIP].values() for name in ids}
    rouge = {name: row.rougeL for name, row in evidence.predictions.items()}
    least, threshold = (evidence.settings[name] for name in ("ATTACK_MIN_CLEAN_ROUGE", "ATTACK_SUCCESS_THRESHOLD"))
    yield from of_quality(_quality_rows(run), drawn, exported, rouge, least, threshold)


def _matched(run: SeedDirectory) -> Iterator[str]:
    written = run.parts["matched"]["results"]
    rows = _quality_rows(run)
    resampling = _resampling(run.parts["matched"])
    made = matched(rows, candidates=written["candidates"], missing=written["missing"], **resampling)
    yield from unequal(to_json(made), written)


def _triggers(run: SeedDirectory, rows: list[Row]) -> Callable[[], Iterator[str]]:
    envelope = run.parts["uat"]
    settings = envelope["_metadata"]["settings"]
    types, threshold = settings["TRIGGER_TYPES"], settings["ATTACK_SUCCESS_THRESHOLD"]
    return lambda: unequal(
        to_json(trigger_results(sections_of(rows), run.models, types, threshold=threshold, **_resampling(envelope))),
        envelope["results"],
    )


def _resampling(envelope: dict[str, Any]) -> Resampling:
    """How the intervals of a result were made."""
    settings = envelope["_metadata"]["settings"]
    return {
        "samples": settings["BOOTSTRAP_SAMPLES"],
        "seed": settings["DATA_SEED"],
        "confidence": settings["CONFIDENCE"],
    }


def _put_together(run: SeedDirectory, quality_margin: float) -> Iterator[str]:
    """What final_results.json has in figures; its sentences are checked with the report."""
    figures = {name: value for name, value in run.final["results"].items() if name not in ("verdict", "limits")}
    set_margin = run.metadata["settings"].get("QUALITY_MARGIN", quality_margin)
    yield from unequal(to_json(findings(run.parts, set_margin)), figures)


@dataclass
class Rescoring:
    """ROUGE of rows again from their texts, each pair of texts once, many pairs at a time.

    `known`: scores by summary and reference; `waiting`: rows whose texts are not scored yet, as (what the row is, its
    texts, the scores that it claims by metric).
    """

    references: dict[str, str] = field(default_factory=dict)
    known: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    waiting: list[tuple[str, tuple[str, str], dict[str, float]]] = field(default_factory=list)

    def note(self, where: str, row: Prediction | AttackRecord) -> Iterator[str]:
        """Take the row's scores in; what does not fit, of this row or of earlier ones."""
        if isinstance(row, Prediction):
            claimed = {metric: getattr(row, metric) for metric in METRICS}
            self.waiting.append((where, (row.prediction, row.reference), claimed))
        else:
            if row.reference is not None:  # a replay of an attack leaves out what the attack itself wrote
                self.references[row.id] = row.reference
            for side in ("clean", "attacked"):
                text = getattr(row, f"{side}_prediction")
                found = {metric: getattr(row, f"{side}_{metric}", None) for metric in METRICS}
                scores = {metric: score for metric, score in found.items() if score is not None}
                if text is not None and scores:
                    self.waiting.append((f"{where}, {side}", (text, self.references[row.id]), scores))
        if len(self.waiting) >= PAIRS_AT_ONCE:
            yield from self.finish()

    def finish(self) -> Iterator[str]:
        """Score what waits, and compare."""
        wanted: dict[tuple[str, ...], dict[tuple[str, str], None]] = {}  # pairs by the metrics that they need
        for _, pair, scores in self.waiting:
            if not scores.keys() <= self.known.get(pair, {}).keys():
                wanted.setdefault(tuple(scores), {})[pair] = None
        for metrics, distinct in wanted.items():
            pairs = list(distinct)
            made = rouge_scores([text for text, _ in pairs], [reference for _, reference in pairs], metrics=metrics)
            columns = zip(*(made[metric].tolist() for metric in metrics), strict=True)
            for pair, values in zip(pairs, columns, strict=True):
                self.known.setdefault(pair, {}).update(zip(metrics, values, strict=True))
        for where, pair, scores in self.waiting:
            for metric, value in scores.items():
                if not close(self.known[pair][metric], value):
                    yield f"{where}: {metric} {value} in the file, {self.known[pair][metric]} from its text"
        self.waiting = []

"""Finished results directories of experiments that came to little: records of every degenerate kind, and what the
product makes of them. Texts and scores belong together, so that verification has nothing to object to."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.analysis.aggregate import file_of, findings, hashes_below, read_sections
from utils.analysis.evaluation_summary import evaluation_results
from utils.analysis.final import FinalResults
from utils.analysis.hotflip_summary import hotflip_results
from utils.analysis.measures import reaches_threshold, relative_drop
from utils.analysis.records import HotFlipRecord, RandomTrigger, TriggerFound, TriggerRecord, TriggerSearch, rows_of
from utils.analysis.sections import SectionKey, Sections
from utils.analysis.trigger_summary import learned_triggers_csv, trigger_results
from utils.core.codec import from_json, to_json
from utils.core.files import write_jsonl, write_text
from utils.core.fingerprint import fingerprint
from utils.core.results import write_result
from utils.evaluation.predictions import score_summaries
from utils.reports.files import write_report
from utils.reports.verdict import final_results
from utils.scoring.rouge import rouge_scores

MODELS = ("standard", "baseline", "monotonic")
REFERENCE = "anna will meet ben at the old harbour on monday"
ATTACKABLE = ("all", "nothing", "not standard", "not baseline", "not monotonic", "disjoint", "losses are NaN")
OUTCOMES = ("every attack succeeds", "no attack succeeds", "ties", "the models differ")
SUMMARIES = ("of words", "empty", "the same for every text")
EXAMPLES = (1, 4)
TYPES = (("lead",), (), ("lead", "natural"))
DATASETS = (("cnn_dm", "xsum", "samsum"), ("cnn_dm",))
CONTROLS = (("random", "greedy"), ())
DIMENSIONS = (ATTACKABLE, OUTCOMES, SUMMARIES, EXAMPLES, TYPES, DATASETS, CONTROLS)


@dataclass(frozen=True)
class Case:
    """One degenerate experiment: a value of each dimension."""

    attackable: str
    outcome: str
    summaries: str
    examples: int
    types: tuple[str, ...]
    datasets: tuple[str, ...]
    controls: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(str(value) for value in vars(self).values())

    def skipped(self, model: str, number: int) -> str | None:
        """Why an example is not attackable on a model; None: it is."""
        if self.attackable == "losses are NaN":
            return "loss_not_finite"
        parity = {"baseline": 0, "monotonic": 1}.get(model, number % 2)
        out = self.attackable in ("nothing", f"not {model}") or (self.attackable == "disjoint" and number % 2 != parity)
        return "no_legal_flip" if out else None

    def clean(self, model: str, number: int) -> str:
        """What a model makes of an unattacked text."""
        if self.summaries == "empty":
            return ""
        words = REFERENCE.split()
        if self.summaries == "the same for every text" or self.outcome == "ties":
            return " ".join(words[:5])
        return " ".join(words[: 4 + MODELS.index(model) + number % 2])

    def attacked(self, model: str, number: int) -> str:
        """What it makes of an attacked one."""
        succeeds = self.outcome == "every attack succeeds" or (
            self.outcome == "the models differ" and model == "baseline"
        )
        return "nothing of it" if succeeds else self.clean(model, number)


def cover() -> list[Case]:
    """Cases in which every pair of values of two dimensions occurs: few, and always the same."""
    indexed = [range(len(values)) for values in DIMENSIONS]
    left = {
        (a, x, b, y)
        for a, b in itertools.combinations(range(len(DIMENSIONS)), 2)
        for x, y in itertools.product(indexed[a], indexed[b])
    }

    def met(choice: Sequence[int]) -> set[tuple[int, int, int, int]]:
        return {(a, choice[a], b, choice[b]) for a, b in itertools.combinations(range(len(choice)), 2)}

    cases = []
    while left:
        best = max(itertools.product(*indexed), key=lambda choice: len(met(choice) & left))
        left -= met(best)
        cases.append(Case(*(values[i] for values, i in zip(DIMENSIONS, best, strict=True))))  # type: ignore[arg-type]
    return cases


def make(case: Case, finished: Path, folder: Path, report: bool = True) -> FinalResults:
    """Fill `folder` with the results of `case`; what records do not decide is that of the `finished` run.

    `report`: with tables, figures and page.
    """
    shutil.copytree(finished, folder, dirs_exist_ok=True)
    ids = [f"cnn_dm/test/{number}" for number in range(case.examples)]
    parts = read_sections(folder)
    missing = {key: "no such repository" for key in ("xsum", "samsum") if key not in case.datasets}
    _adapt(parts, case, missing)
    settings = parts["uat"]["_metadata"]["settings"]
    known: dict[str, Any] = {
        "samples": settings["BOOTSTRAP_SAMPLES"], "seed": settings["DATA_SEED"], "confidence": settings["CONFIDENCE"],
    }  # fmt: skip
    predictions = [
        row
        for dataset, model in itertools.product(case.datasets, MODELS)
        for row in score_summaries(
            dataset, model, ids, [case.clean(model, n) for n in range(case.examples)], [REFERENCE] * case.examples
        )
    ]
    evaluation = evaluation_results(predictions, case.datasets, **known)
    threshold = settings["ATTACK_SUCCESS_THRESHOLD"]
    flips, triggers = _hotflip(case, ids, threshold), _triggers(case, ids, threshold)
    hotflip = hotflip_results(flips, MODELS, threshold=threshold, **known)
    uat = trigger_results(triggers, MODELS, case.types, threshold=threshold, **known)
    write_jsonl(folder / "predictions.jsonl", map(to_json, predictions))
    write_jsonl(folder / "hotflip_records.jsonl", rows_of(flips))
    write_jsonl(folder / "uat_records.jsonl", rows_of(triggers))
    write_text(folder / "learned_triggers.csv", learned_triggers_csv(uat))
    for name, made in (("evaluation", evaluation), ("hotflip", hotflip), ("uat", uat)):
        parts[name]["results"] = to_json(made)
    for name, envelope in parts.items():
        write_result(folder / file_of(name), envelope["results"], envelope["_metadata"])
    metadata = json.loads((folder / "final_results.json").read_text())["_metadata"]
    metadata |= {"missing_datasets": missing, "inputs": {}}
    _set(metadata, "TRIGGER_TYPES", list(case.types))
    final = final_results(findings(parts, metadata["settings"]["QUALITY_MARGIN"]))
    if report:
        for name in ("tables", "figures"):
            shutil.rmtree(folder / name)
        write_report(final, metadata, folder, folder)
    metadata["files"] = hashes_below(folder, without="final_results.json")
    write_result(folder / "final_results.json", to_json(final), metadata)
    return from_json(FinalResults, json.loads((folder / "final_results.json").read_text())["results"])


def _adapt(parts: dict[str, dict[str, Any]], case: Case, missing: dict[str, str]) -> None:
    """The parts that no record decides: fewer rows, a missing set, a training of one epoch."""
    for name, envelope in parts.items():
        metadata = envelope["_metadata"]
        metadata["inputs"] = {}
        if name in ("evaluation", "uat", "hotflip"):
            metadata["missing_datasets"] = missing
        if "TRIGGER_TYPES" in metadata["settings"]:
            _set(metadata, "TRIGGER_TYPES", list(case.types))
    data = parts["data"]["results"]
    data["missing"] = missing
    for key in missing:
        del data["sets"][key], data["prepared"][f"test_{key}"]
    for name in data["prepared"]:
        if name.startswith("test_") or name == "attack_evaluate":
            data["prepared"][name]["rows"] = case.examples
    if case.examples == 1:
        for arm in ("baseline", "monotonic"):
            history = parts[f"{arm}_training"]["results"]
            history["epochs"] = history["epochs"][:1]


def _set(metadata: dict[str, Any], name: str, value: object) -> None:
    metadata["settings"][name] = value
    metadata["config_fingerprint"] = fingerprint(metadata["settings"])


def _outcome(case: Case, model: str, number: int, threshold: float, change: float) -> dict[str, Any]:
    """The fields of an attacked example."""
    texts = {"clean": case.clean(model, number), "attacked": case.attacked(model, number)}
    rouge = {side: float(rouge_scores([text], [REFERENCE])["rougeL"][0]) for side, text in texts.items()}
    drop = relative_drop(rouge["clean"], rouge["attacked"])
    rise = 0.0 if case.outcome in ("ties", "no attack succeeds") else change
    return {
        "skipped": None, "relative_drop": drop, "success": reaches_threshold(drop, threshold), "clean_loss": 1.0,
        "attacked_loss": 1.0 + rise, "loss_increase": rise, "typable": True, "reference": REFERENCE,
        **{f"{side}_rougeL": score for side, score in rouge.items()},
        **{f"{side}_prediction": text for side, text in texts.items()},
    }  # fmt: skip


def _hotflip(case: Case, ids: Sequence[str], threshold: float) -> Sections:
    def rows(method: str, model: str) -> Iterator[HotFlipRecord]:
        for number, name in enumerate(ids):
            reason = case.skipped(model, number)
            found: dict[str, Any] = {"skipped": reason}
            if reason is None:
                changed = case.attacked(model, number) != case.clean(model, number)
                ids_read = {"clean_ids": [*range(5, 15), 1], "attacked_ids": [*range(5, 14), 20 if changed else 14, 1]}
                found = _outcome(case, model, number, threshold, 0.5) | ids_read | {"num_flips": int(changed)}
            yield HotFlipRecord(id=name, model=model, method=method, **found)

    sections: Sections = {}
    for model in MODELS:
        for part in ("attack", *case.controls):
            sections[SectionKey(part, model)] = list(rows(part, model))
        for target in MODELS:
            if target != model:
                sections[SectionKey("transfer", target, source=model)] = list(rows(f"flips of {model}", target))
    return sections


def _triggers(case: Case, ids: Sequence[str], threshold: float) -> Sections:
    def rows(kind: str, source: str, target: str) -> Iterator[TriggerRecord]:
        for number, name in enumerate(ids):
            reason = case.skipped(target, number)
            found: dict[str, Any] = {"skipped": reason}
            if reason is None or reason == "loss_not_finite":
                found = _outcome(case, target, number, threshold, 0.25)
                scores = {
                    side: rouge_scores([found[f"{side}_prediction"]], [REFERENCE]) for side in ("clean", "attacked")
                }
                found |= {f"{s}_{m}": float(scores[s][m][0]) for s in scores for m in ("rouge1", "rouge2", "rougeL")}
            if reason == "loss_not_finite":
                found |= {"skipped": reason, "success": False, "attacked_loss": None, "loss_increase": None}
            yield TriggerRecord(id=name, model=target, source=source, trigger_type=kind, **found)

    sections: Sections = {}
    # Ids beyond the vocabulary have no text; as many as TRIGGER_LENGTH says.
    learned: dict[str, Any] = {"trigger_ids": [*range(9000, 9005)], "trigger_text": "", "dev_gain": 1.0}
    learned["dev_rouge_change"] = -0.1
    drawn = RandomTrigger(**learned | {"trigger_ids": [*range(9100, 9105)]}, dev_gain_mean=0, draws=1)
    for kind, model in itertools.product(case.types, MODELS):
        sections[SectionKey("search", model, kind)] = [
            TriggerSearch(
                **learned, chosen_from="search", by_loss=TriggerFound(**learned), trigger_type=kind, source=model,
                method="gradient",
                restarts=[], num_dev=1, iterations=1, halfway_trigger_ids=[], curve=[], converged=True,
                forward_rows=1, gradient_rows=1, seconds=0.0, random_control=drawn,
            )
        ]  # fmt: skip
        sections[SectionKey("random", model, kind)] = list(rows(kind, model, model))
        for target in MODELS:
            sections[SectionKey("attack", target, kind, model)] = list(rows(kind, model, target))
    return sections

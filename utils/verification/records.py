"""Rows of the per-example files against themselves, each other and the prepared data: no model is needed for it.

A row says the same thing several times over (success and drop, drop and scores, scores and texts, section and model),
and several files tell of one summary. Whoever edits one of them contradicts another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from utils.analysis.measures import loss_increase, reaches_threshold, relative_drop
from utils.analysis.records import (
    AttackRecord,
    CeilingRecord,
    HotFlipRecord,
    LongBudgetRecord,
    Prediction,
    Row,
    TriggerRecord,
    TriggerSearch,
)
from utils.analysis.sections import SectionKey
from utils.core.names import BASELINE
from utils.verification.check import close
from utils.verification.provenance import SeedDirectory
from utils.verification.searches import beyond, near, of_flips, of_trigger

# The spelling in the records (utils/attacks/encoding.py, which needs torch).
LOW_CLEAN_ROUGE = "clean_rouge_below_minimum"
NOT_ATTACKED_BY_SOURCE = "not_attacked_by_source"
ROUNDED = 1.6e-6  # losses are written with six decimals: a difference of two may be off by one and a half of the last
SPACE = "▁"  # SentencePiece's sign for a space
# Parts that attack every example that was drawn; others may attack a sample of them.
COMPLETE = ("attack", "random", "greedy", "one_shot", "all_replaced", "transfer", "free", "halfway")
# Parts that attack the same HOTFLIP_METRIC_EXAMPLES of them (0: all).
SAMPLED = ("own_output", "metric", "word_importance", "random_metric", "protected", "typo")
Name = tuple[str, str]  # model and id of an example


@dataclass
class Evidence:
    """What was read so far, for later rows to be held against.

    `predictions`: what stage 4 made of the attacked set, by model and id; `references`: by id within that set;
    `clean`: by file, model and id, the fields of the unattacked side, which every section of a file must repeat;
    `lengths`: tokens of the unattacked input, by id; `searched`: the attacks that others go on from, by part, model and
    id; `ids`: of every section, in the order of its file.
    """

    settings: Mapping[str, Any]
    pieces: Tokenizer | None
    predictions: dict[Name, Prediction] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    clean: dict[tuple[str, Name], dict[str, Any]] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    searched: dict[tuple[str, Name], HotFlipRecord] = field(default_factory=dict)
    ids: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    @classmethod
    def of(cls, run: SeedDirectory) -> Evidence:
        tokenizer = run.path / "models" / BASELINE / "tokenizer.json"
        pieces = Tokenizer.from_file(str(tokenizer)) if tokenizer.exists() else None
        return cls(run.metadata["settings"], pieces)

    def note_prediction(self, row: Prediction) -> Iterator[str]:
        """Take a row of predictions.jsonl in."""
        self.ids.setdefault("predictions.jsonl", {}).setdefault(f"{row.dataset}/{row.model}", []).append(row.id)
        if row.dataset == self.settings["ATTACK_DATASET"]:
            self.predictions[row.model, row.id] = row
        yield from self._same_reference(f"{row.dataset} {row.model}", f"{row.dataset}/{row.id}", row.reference)

    def note_attack(self, file: str, row: Row) -> Iterator[str]:
        """Take a row of an attack in; what contradicts itself or an earlier row, in words."""
        where = f"{row.section} {getattr(row, 'id', '')}".strip()
        yield from (f"{where}: {words}" for words in self._contradictions(file, row))

    def _contradictions(self, file: str, row: Row) -> Iterator[str]:
        key = SectionKey.parse(row.section)
        yield from self._names(key, row)
        if isinstance(row, TriggerSearch):
            for found in (row, row.random_control, row.by_loss, *row.restarts):
                yield from self._trigger_text(found.trigger_ids, found.trigger_text)
            yield from of_trigger(row, self.settings["TRIGGER_LENGTH"])
            return
        if isinstance(row, CeilingRecord) and key.trigger_type:
            return  # on held-out validation texts, which nothing else is measured on
        self.ids.setdefault(file, {}).setdefault(row.section, []).append(row.id)
        if isinstance(row, CeilingRecord | LongBudgetRecord):
            own, metric = (self.searched.get((part, (row.model, row.id))) for part in ("attack", "metric"))
            yield from beyond(row, own, metric, self.settings)
        if isinstance(row, CeilingRecord):
            return
        yield from self._clean_side(file, row)
        if isinstance(row, LongBudgetRecord):
            if row.skipped is None and row.drops is not None:
                yield from _drops("drops", row.clean_rougeL, row.rougeL, row.drops)
            return
        yield from self._outcome(row)
        if isinstance(row, HotFlipRecord):
            if row.budget_drop is not None:
                yield from _drops("budget_drop", row.clean_rougeL, row.budget_rougeL, row.budget_drop)
            yield from self._flips(row)
            yield from of_flips(row, self.settings, self.pieces)
            if key.part in ("attack", "metric") and row.skipped is None:
                self.searched[key.part, (row.model, row.id)] = row
            source = self.searched.get(("attack", (key.source or "", row.id)))
            if source is not None and row.typable not in (None, source.typable):
                yield f"typable is {row.typable}, of {key.source}'s attack it is {source.typable}"
        else:
            yield from self._same_summary(row)

    def _names(self, key: SectionKey, row: Row) -> Iterator[str]:
        """The section is named after model, source and type of its rows."""
        model = row.source if isinstance(row, TriggerSearch) else row.model
        if key.model != model:
            yield f"the row is of model {model}"
        if isinstance(row, TriggerRecord | TriggerSearch):
            if key.trigger_type != row.trigger_type:
                yield f"the row is of trigger type {row.trigger_type}"
            if (key.source or key.model) != row.source:
                yield f"the row's trigger was found on {row.source}"
        elif key.source and isinstance(row, HotFlipRecord) and row.method != f"flips of {key.source}":
            yield f"the row holds {row.method}"

    def _trigger_text(self, ids: Sequence[int], text: str) -> Iterator[str]:
        if self.pieces is None:
            return
        made = "".join(self.pieces.id_to_token(number) or "" for number in ids).replace(SPACE, " ").strip()
        if made != text.strip():
            yield f"trigger_text {text!r}, by its trigger_ids {made!r}"

    def _clean_side(self, file: str, row: HotFlipRecord | LongBudgetRecord | TriggerRecord) -> Iterator[str]:
        """What a model makes of the unattacked text is one thing, in whichever section it is repeated."""
        names = (
            "clean_rougeL",
            "clean_rouge1",
            "clean_rouge2",
            "clean_loss",
            "clean_prediction",
            "clean_ids",
            "labels",
        )
        known = self.clean.setdefault((file, (row.model, row.id)), {})
        for name in names:
            value = getattr(row, name, None)
            if value is None:
                continue
            if isinstance(value, list):
                value = tuple(value)
            earlier: Any = known.setdefault(name, value)
            same = near(earlier, row.clean_loss or 0.0) if name == "clean_loss" else earlier == value
            if not same:
                yield f"{name} is not that of other sections on {row.model}"
        if isinstance(row, AttackRecord) and row.reference is not None:
            yield from self._same_reference("", f"{self.settings['ATTACK_DATASET']}/{row.id}", row.reference)
        tau, rouge = self.settings["ATTACK_MIN_CLEAN_ROUGE"], row.clean_rougeL
        if rouge is None:
            return
        low = not reaches_threshold(rouge, tau)
        if (row.skipped is None and low) or (row.skipped == LOW_CLEAN_ROUGE and not low):
            yield f"skipped is {row.skipped!r}, clean ROUGE-L {rouge:.4f} and the least attacked {tau}"

    def _same_reference(self, who: str, name: str, reference: str) -> Iterator[str]:
        if self.references.setdefault(name, reference) != reference:
            yield f"{f'{who} {name}: ' if who else ''}reference is not that of other rows of this example"

    def _outcome(self, row: HotFlipRecord | TriggerRecord) -> Iterator[str]:
        """Success by drop (of what an attacker may write), drop by scores, rise by losses."""
        if row.relative_drop is None:
            if row.skipped is None:
                yield "is not skipped, and has no outcome"
            return
        if row.clean_rougeL is not None and row.attacked_rougeL is not None:
            drop = relative_drop(row.clean_rougeL, row.attacked_rougeL)
            if not close(drop, row.relative_drop):
                yield f"relative_drop {row.relative_drop} in the file, {drop} from its scores"
        typed = row.typable or self.settings["ATTACK_TOKEN_SET"] == "raw"
        if None not in (row.legal, row.typable) and row.legal != typed:
            yield f"legal is {row.legal}, typable {row.typable}"
        reached = reaches_threshold(row.relative_drop, self.settings["ATTACK_SUCCESS_THRESHOLD"])
        success = row.skipped is None and row.legal is not False and reached
        if row.success is not None and row.success != success:
            yield f"success is {row.success}, by relative_drop {row.relative_drop} it is {success}"
        if row.clean_loss is not None and row.attacked_loss is not None and row.loss_increase is not None:
            rise = loss_increase(row.clean_loss, row.attacked_loss)
            if not close(rise, row.loss_increase, ROUNDED):
                yield f"loss_increase {row.loss_increase} in the file, {rise:.6f} from its losses"

    def _flips(self, row: HotFlipRecord) -> Iterator[str]:
        """The input of stage 4 is that of HotFlip, so its summary is, too; and as many ids differ as were flipped."""
        known = self.predictions.get((row.model, row.id))
        if row.clean_ids is not None:
            self.lengths[row.id] = len(row.clean_ids)
        if known is not None and row.clean_rougeL is not None and row.clean_prediction not in (None, known.prediction):
            yield "clean_prediction is not the summary in predictions.jsonl"
        if row.clean_ids and row.attacked_ids and len(row.clean_ids) == len(row.attacked_ids):
            changed = sum(a != b for a, b in zip(row.clean_ids, row.attacked_ids, strict=True))
            if row.num_flips is not None and changed != row.num_flips:
                yield f"num_flips is {row.num_flips}, {changed} ids differ"

    def _same_summary(self, row: TriggerRecord) -> Iterator[str]:
        """Where no room had to be made for the trigger, the model read the text of stage 4 (as HotFlip's ids show)."""
        known, length = self.predictions.get((row.model, row.id)), self.lengths.get(row.id)
        if known is None or length is None or row.input_length is None or row.clean_prediction is None:
            return
        untouched = row.input_length == length + self.settings["TRIGGER_LENGTH"]
        if untouched and row.clean_prediction != known.prediction:
            yield "clean_prediction is not the summary in predictions.jsonl"


def _drops(name: str, clean: float | None, scores: Sequence[float] | None, drops: Sequence[float]) -> Iterator[str]:
    made = [relative_drop(clean or 0.0, score) for score in scores or ()]
    if len(made) != len(drops) or not all(map(close, made, drops)):
        yield f"{name} is not the drop of its scores"


def completeness(run: SeedDirectory, evidence: Evidence) -> Iterator[str]:
    """Rows that are missing, twice there, or of examples that were not drawn."""
    rows = {name: entry["rows"] for name, entry in run.parts["data"]["results"]["prepared"].items()}
    drawn = rows["attack_evaluate"]
    missing = run.parts["evaluation"]["_metadata"]["missing_datasets"]
    datasets = [key for key in run.metadata["settings"]["TEST_DATASETS"] if key not in missing]
    wanted = {f"{key}/{model}" for key in datasets for model in run.models}
    found = evidence.ids.get("predictions.jsonl", {})
    for cell in sorted(wanted ^ set(found)):
        yield f"predictions.jsonl: {cell} {'has no rows' if cell in wanted else 'is not of this run'}"
    for file, sections in evidence.ids.items():
        groups: dict[str, dict[str, list[str]]] = {}  # sections that have the same examples
        for section, ids in sections.items():
            part = section.split("/")[0]
            yield from (f"{file}: {section} {name} is there {n} times" for name, n in Counter(ids).items() if n > 1)
            if file == "predictions.jsonl":
                groups.setdefault(f"test_{part}", {})[section] = ids
            elif part in COMPLETE + SAMPLED:
                groups.setdefault("attack_evaluate" if part in COMPLETE else "sample", {})[section] = ids
        rows["sample"] = min(run.metadata["settings"]["HOTFLIP_METRIC_EXAMPLES"] or drawn, drawn)
        for part, members in groups.items():
            number = rows.get(part)
            first = next(iter(members.values()))
            for section, ids in members.items():
                if number is not None and len(ids) != number:
                    yield f"{file}: {section} has {len(ids)} rows, {number} are due"
                yield from _other_ids(f"{file}: {section}", ids, first)
    attacked = run.metadata["settings"]["ATTACK_DATASET"]
    known = {name for section, ids in found.items() if section.split("/")[0] == attacked for name in ids}
    if len(known) == rows.get(f"test_{attacked}") and run.metadata["full_test_sets"]:  # drawn from these
        for file, sections in evidence.ids.items():
            for section, ids in sections.items():
                if file != "predictions.jsonl":
                    yield from (f"{file}: {section} {name} is no test example" for name in ids if name not in known)


def _other_ids(where: str, ids: Sequence[str], first: Sequence[str]) -> Iterator[str]:
    for name in sorted({*ids} ^ {*first})[:3]:
        yield f"{where} {'lacks' if name in first else 'alone has'} {name}"


def against_prepared(evidence: Evidence, directory: Path, predictions: Iterable[Prediction]) -> Iterator[str]:
    """Rows whose id or reference is not that of the test sets and attack examples in the prepared data."""
    from utils.data.store import load_prepared, read_manifest

    sets = read_manifest(directory)["sets"]

    def summaries(name: str) -> dict[str, str]:
        data = load_prepared(directory, name)
        return dict(zip(data["id"], data["summary"], strict=True))

    texts = {name: summaries(name) for name in sets if name.startswith("test_")}
    for row in predictions:
        known = texts.get(f"test_{row.dataset}", {})
        if row.id not in known:
            yield f"predictions.jsonl: {row.dataset} {row.model} {row.id} is not in the prepared data"
        elif known[row.id] != row.reference:
            yield f"predictions.jsonl: {row.dataset} {row.model} {row.id}: reference is not the prepared summary"
    drawn = summaries("attack_evaluate")
    attacked = evidence.settings["ATTACK_DATASET"]
    for file, sections in evidence.ids.items():
        if file == "predictions.jsonl":
            continue
        for name in sorted({name for ids in sections.values() for name in ids}):
            if name not in drawn:
                yield f"{file}: {name} is not among the attack examples of the prepared data"
            elif evidence.references.get(f"{attacked}/{name}", drawn[name]) != drawn[name]:
                yield f"{file}: {name}: reference is not the prepared summary"

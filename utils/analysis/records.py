"""What attacks and evaluation write down per example: the rows of the three JSONL files. Torch-free.

`predictions.jsonl` has a Prediction a line. `hotflip_records.jsonl` has a HotFlipRecord a line, a LongBudgetRecord in
sections `long/...`, and a CeilingRecord in `ceiling/...`. `uat_records.jsonl` has a TriggerRecord a line, a
TriggerSearch in sections `search/...` and `free_search/...`, and a CeilingRecord in `ceiling/...`. Fields of one name
mean the same in all files. ROUGE F-measures and shares are from 0 to 1, losses in nats per token, positions and token
ids those of the model's input.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from utils.analysis.sections import SectionKey, Sections
from utils.core.codec import Range, from_json, to_json
from utils.core.errors import InputError
from utils.core.files import read_jsonl

Count = Annotated[int, Range(0)]
Share = Annotated[float, Range(0, 1)]
Score = Annotated[float, Range(0, 1), "ROUGE F-measure"]
Loss = Annotated[float, "nats per token"]
Ids = list[int]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One summary of a test set, beside its reference."""

    dataset: str
    model: str
    id: Annotated[str, "of the example, within its data set"]
    prediction: Annotated[str, "the generated summary"]
    reference: str
    rouge1: Score
    rouge2: Score
    rougeL: Score
    rougeLsum: Annotated[Score, "ROUGE-L by sentences"]


@dataclass(frozen=True, kw_only=True)
class AttackRecord:
    """One model on one attacked example: what every kind of attack writes down.

    What does not apply is left out: everything but the names where the example was skipped before the attack.
    """

    section: Annotated[str, "which attack: its name, then the models, such as attack/baseline"] = ""
    id: Annotated[str, "of the example, within the attack set"]
    model: Annotated[str, "that read the attacked text"]
    skipped: Annotated[str | None, "why the example is not attackable; null: it counts"]
    clean_rougeL: Annotated[Score | None, "of the summary of the unattacked text"] = None
    attacked_rougeL: Annotated[Score | None, "of the summary of the attacked text"] = None
    relative_drop: Annotated[float | None, "(clean - attacked) / clean ROUGE-L; 0 where the clean one is 0"] = None
    success: Annotated[bool | None, "attackable, a legal attack, and the drop reaches the threshold"] = None
    clean_loss: Annotated[Loss | None, "of the reference given the unattacked text, nats per token"] = None
    attacked_loss: Annotated[Loss | None, "of the reference given the attacked text, nats per token"] = None
    loss_increase: Annotated[Loss | None, "attacked minus clean loss, nats per token"] = None
    clean_prediction: Annotated[str | None, "summary of the unattacked text"] = None
    attacked_prediction: Annotated[str | None, "summary of the attacked text"] = None
    reference: Annotated[str | None, "the summary to compare with; left out in replays of an attack"] = None
    typable: Annotated[bool | None, "the attacked text, typed, is read as the attacked ids"] = None
    legal: Annotated[bool | None, "an input that the attacker can give: typable, unless ATTACK_TOKEN_SET is raw"] = None


@dataclass(frozen=True, kw_only=True)
class Flip:
    """One replaced token."""

    position: Count
    old: Count
    new: Count
    predicted_gain: Annotated[Loss | None, "first-order estimate, nats per token; null for random flips"]
    actual_gain: Annotated[Loss, "exact, nats per token"]
    random: Annotated[bool, "drawn at random, not by gradient"]


@dataclass(frozen=True, kw_only=True)
class SearchStep:
    """One step of the strongest restart."""

    step: Count
    accepted: Annotated[bool, "a candidate raised the loss"]
    loss: Annotated[Loss, "of the best state so far, nats per token"]
    best_candidate_loss: Annotated[Loss | None, "nats per token; null where no candidate's is finite"]
    queries: Annotated[Count, "exact scores so far"]


@dataclass(frozen=True, kw_only=True)
class SearchTrace:
    """How a HotFlip search went, and what it cost."""

    losses: Annotated[list[float], "best loss with 0, 1, ... flips, nats per token"]
    budgets: Annotated[list[list[list[int]]], "the flips behind them, each [position, new token]"]
    flips: Annotated[list[Flip], "the final attack"]
    steps: list[SearchStep]
    queries: Annotated[Count, "exact scores of candidates"]
    gradients: Count
    generations: Annotated[Count, "summaries that chose between candidates; 0 where the loss chose"] = 0
    bad_losses: Annotated[Count, "candidates whose loss was not finite"]
    retried_gradients: Annotated[Count, "not finite, computed again in float32"] = 0
    bad_gradients: Annotated[Count, "not finite then either: taken for zero"] = 0
    gradient_norm: Annotated[float | None, "of the loss by the embeddings, at the unattacked text; null: not measured"]
    zero_gradient: Annotated[bool, "there is no gradient at the unattacked text"]
    fidelity: Annotated[float | None, "Spearman correlation of predicted and exact gain over random legal flips"]
    fidelity_top: Annotated[float | None, "the same over the flips that the gradient proposed"]
    fidelity_pairs: Annotated[list[list[float]], "[predicted, exact] gain of the random legal flips, nats per token"]
    seconds: Annotated[float, "of the search, summaries excluded; shared evenly by the examples of a block"]


@dataclass(frozen=True, kw_only=True)
class HotFlipRecord(AttackRecord):
    """A HotFlip attack, one of its controls, or flips found on another model, on one example."""

    method: Annotated[str, "gradient, greedy, metric, word_importance, or the name of what was replayed"]
    num_flips: Annotated[Count | None, "tokens changed"] = None
    perturbed_share: Annotated[Share | None, "of the text's tokens"] = None
    attackable_positions: Annotated[Count | None, "tokens that may change"] = None
    reference_flips: Annotated[Count | None, "tokens changed in content words of the reference"] = None
    short_article: Annotated[bool | None, "fewer tokens may change than there are flips"] = None
    clean_ids: Annotated[Ids | None, "the model's input before the attack"] = None
    attacked_ids: Annotated[Ids | None, "the model's input after it"] = None
    labels: Annotated[Ids | None, "ids of the reference"] = None
    attacked_document: Annotated[str | None, "the attacked text, without the task prefix"] = None
    budget_rougeL: Annotated[list[float] | None, "ROUGE-L with 1, 2, ... flips"] = None
    budget_drop: Annotated[list[float] | None, "relative drop with 1, 2, ... flips"] = None
    search: Annotated[SearchTrace | None, "left out in replays: nothing was searched"] = None

    def without_texts(self) -> HotFlipRecord:
        """Without what fills most of a record and no number is made from, so that many fit into memory."""
        search = self.search and replace(self.search, budgets=[], flips=[], steps=[])
        return replace(self, clean_ids=None, attacked_ids=None, labels=None, attacked_document=None, search=search)


@dataclass(frozen=True, kw_only=True)
class LongBudgetRecord:
    """HotFlip beyond its budget on one example: the lists belong together, one entry for each budget."""

    section: Annotated[str, "long/MODEL"] = ""
    id: str
    model: str
    skipped: Annotated[str | None, "why the example is not attackable; null: it counts"]
    clean_rougeL: Score | None = None
    clean_loss: Loss | None = None
    tokens: Annotated[Count | None, "of the text"] = None
    budgets: Annotated[list[int | None] | None, "tokens that may change, the attack's own first; null: all"] = None
    num_flips: Annotated[list[int] | None, "tokens changed"] = None
    losses: Annotated[list[float | None] | None, "nats per token; null: not finite"] = None
    rougeL: list[float] | None = None
    drops: Annotated[list[float] | None, "relative ROUGE-L drops"] = None
    inputs: Annotated[list[Ids] | None, "the model's input"] = None

    def without_texts(self) -> LongBudgetRecord:
        """Without the inputs, which no number is made from."""
        return replace(self, inputs=None)


@dataclass(frozen=True, kw_only=True)
class CeilingRecord:
    """The best that one token can do to an example, beside what an attack found: a flip, or a trigger's last slot.

    The best token of a slot is the one that raises the mean loss of all examples most.
    """

    section: Annotated[str, "ceiling/MODEL, of triggers ceiling/TYPE/MODEL"] = ""
    id: str
    model: str
    skipped: Annotated[str | None, "why the example is not attackable; null: it counts"]
    moves: Annotated[Count | None, "flips, or tokens in the slot, whose loss was computed"] = None
    every_move: Annotated[bool | None, "these are all legal ones; else a random sample"] = None
    best_loss_increase: Annotated[Loss | None, "by the best of them, nats per token"] = None
    found_loss_increase: Annotated[Loss | None, "by the first flip of HotFlip, or by the trigger, nats per token"] = (
        None
    )
    summaries: Annotated[Count | None, "flips whose summary was generated, drawn at random"] = None
    best_drop: Annotated[float | None, "relative ROUGE-L drop by any of them"] = None
    found_drop: Annotated[float | None, "by the first flip of the search by metric"] = None

    def without_texts(self) -> CeilingRecord:
        """As it is: it has no texts."""
        return self


@dataclass(frozen=True, kw_only=True)
class TriggerRecord(AttackRecord):
    """A universal trigger in one example."""

    source: Annotated[str, "model that the trigger was found on"]
    trigger_type: str
    clean_rouge1: Score | None = None
    clean_rouge2: Score | None = None
    attacked_rouge1: Score | None = None
    attacked_rouge2: Score | None = None
    slot: Annotated[Count | None, "position of the trigger's first token"] = None
    input_length: Annotated[Count | None, "tokens of the attacked input"] = None
    one_sentence: Annotated[bool | None, "the text is one sentence: infix has one place"] = None

    def without_texts(self) -> TriggerRecord:
        """As it is: it has no long lists."""
        return self


@dataclass(frozen=True, kw_only=True)
class TriggerFound:
    """A trigger and what it gains on the held-out part of the optimisation examples."""

    trigger_ids: Ids
    trigger_text: str
    dev_gain: Annotated[Loss, "NLL rise on the held-out part of the optimisation examples, nats per token"]
    dev_rouge_change: Annotated[float, "ROUGE-L after minus before on the held-out part: the choice is by this"]


@dataclass(frozen=True, kw_only=True)
class RandomTrigger(TriggerFound):
    """The best of several random triggers by dev gain."""

    dev_gain_mean: Annotated[Loss, "over all draws, nats per token"]
    draws: Count


@dataclass(frozen=True, kw_only=True)
class TriggerCurvePoint:
    """One iteration of a trigger search; lists have one number for each restart."""

    iteration: Count
    loss: Annotated[list[float | None], "mean over the examples of this iteration, nats per token; null: at rest"]
    accepted: Annotated[list[int], "restarts that took a new trigger"]
    dev_gain: Annotated[list[float | None] | None, "where this iteration looked at the held-out part"] = None


@dataclass(frozen=True, kw_only=True)
class TriggerSearchFacts(TriggerFound):
    """The trigger that a search found, and how the search went."""

    trigger_type: str
    source: Annotated[str, "model it was found on"]
    method: Literal["gradient", "random"]
    chosen_from: Annotated[Literal["search", "random"], "random: no learned trigger did as much harm when held out"]
    by_loss: Annotated[TriggerFound, "the learned trigger of largest dev_gain"]
    restarts: Annotated[list[TriggerFound], "the best trigger of each restart that found any"]
    num_dev: Annotated[Count, "held-out examples"]
    iterations: Count
    halfway_trigger_ids: Annotated[Ids, "best after half of the iterations; empty: none by then"]
    curve: list[TriggerCurvePoint]
    converged: Annotated[bool, "the second half of the search gained next to nothing"]
    forward_rows: Annotated[Count, "examples through the model"]
    gradient_rows: Count
    seconds: Annotated[float, Range(0)]


@dataclass(frozen=True, kw_only=True)
class TriggerSearch(TriggerSearchFacts):
    """A trigger search as a row of uat_records.jsonl."""

    section: Annotated[str, "search/TYPE/MODEL or free_search/TYPE/MODEL"] = ""
    random_control: RandomTrigger

    def without_texts(self) -> TriggerSearch:
        """As it is: there is one for each trigger."""
        return self


Row = HotFlipRecord | LongBudgetRecord | CeilingRecord | TriggerRecord | TriggerSearch
Value = TypeVar("Value")
AnyRow = TypeVar("AnyRow", HotFlipRecord, LongBudgetRecord, CeilingRecord, TriggerRecord)


def attackable(records: Iterable[AnyRow]) -> list[AnyRow]:
    """The records of examples that could be attacked."""
    return [record for record in records if record.skipped is None]


def given(value: Value | None) -> Value:
    """A field that the record at hand must have; ValueError where it was left out."""
    if value is None:
        raise ValueError("a record of an attacked example lacks one of its fields")
    return value


def column(records: Sequence[object], name: str) -> NDArray[np.float64]:
    """float64 [N] of a field that every record has."""
    return np.array([getattr(record, name) for record in records], dtype=np.float64)


def hotflip_row(section: str) -> type[HotFlipRecord] | type[LongBudgetRecord] | type[CeilingRecord]:
    """The class of a row of hotflip_records.jsonl."""
    others: dict[str, type[LongBudgetRecord] | type[CeilingRecord]] = {
        "long": LongBudgetRecord,
        "ceiling": CeilingRecord,
    }
    return others.get(SectionKey.parse(section).part, HotFlipRecord)


def trigger_row(section: str) -> type[TriggerRecord] | type[TriggerSearch] | type[CeilingRecord]:
    """The class of a row of uat_records.jsonl."""
    others: dict[str, type[TriggerSearch] | type[CeilingRecord]] = {
        "search": TriggerSearch,
        "free_search": TriggerSearch,
        "ceiling": CeilingRecord,
    }
    return others.get(SectionKey.parse(section).part, TriggerRecord)


def rows_of(sections: Mapping[SectionKey, Sequence[Row]]) -> Iterator[dict[str, Any]]:
    """Every record as JSON with its `section`, for one JSONL file."""
    for key, records in sections.items():
        for record in records:
            yield to_json(record) | {"section": str(key)}


def read_rows(path: Path, kind: Callable[[str], type[Row]], named: Container[str] | None = None) -> Iterator[Row]:
    """The rows of a JSONL file of attacks, one at a time; `named`: of these sections only.

    InputError where the file is missing or a row is not what it should be.
    """
    if not path.exists():
        raise InputError(f"{path} is missing: run the stage that writes it.")
    for number, row in enumerate(read_jsonl(path), 1):
        if named is not None and row.get("section") not in named:
            continue
        try:
            record = kind(str(row.get("section")))
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        yield from_json(record, row, f"{path.name}, line {number}")


def encoded(sections: Mapping[SectionKey, Sequence[Row]]) -> dict[str, list[dict[str, Any]]]:
    """The sections as JSON, as the parts of a job array keep them."""
    return {str(key): [to_json(record) for record in records] for key, records in sections.items()}


def decoded(parts: Mapping[str, Sequence[dict[str, Any]]], kind: Callable[[str], type[Row]]) -> Sections:
    """The sections again from what `encoded` made of them."""
    return {SectionKey.parse(name): [from_json(kind(name), row, name) for row in rows] for name, rows in parts.items()}


def sections_of(rows: Iterable[Row]) -> Sections:
    """Records by their section."""
    sections: Sections = {}
    for row in rows:
        sections.setdefault(SectionKey.parse(row.section), []).append(row)
    return sections

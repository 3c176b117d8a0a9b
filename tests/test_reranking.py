"""Summaries that the search by the metric asks for: full batches, and the search that it would be one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests import attack_world as world
from utils.attacks.context import Victim
from utils.attacks.hotflip import metric_search as module
from utils.attacks.hotflip.attack import HotFlipSettings
from utils.attacks.hotflip.metric_search import FlipProposer, MetricSettings, MetricTrajectory, metric_search
from utils.attacks.hotflip.proposals import State
from utils.attacks.hotflip.typos import TypedState, TypoProposer
from utils.attacks.objective import Objective, Targets
from utils.attacks.triggers.candidates import random_triggers
from utils.attacks.triggers.inputs import trigger_examples
from utils.attacks.triggers.objective import TriggerObjective
from utils.attacks.triggers.search import rouge_changes
from utils.evaluation import generation

TOKENIZER = world.tokenizer()
# Texts of 17 and 18 tokens: about 64 of them are a batch of stage 4.
CONTEXT = world.attack_context(TOKENIZER, generation_tokens=64 * 18)
SETTINGS = replace(HotFlipSettings().metric, positions=8, replacements=16, summaries=136, threshold=0.15)


def search(count: int, settings: MetricSettings, proposer: str = "flips", seed: int = 0) -> list[MetricTrajectory]:
    victim = Victim("standard", world.planted_model(), "planted")
    examples = world.planted_examples(count)
    if proposer == "typos":  # in words of at least four letters
        examples = [replace(one, document=one.document.replace(" ", "ba ")) for one in examples]
    items = CONTEXT.encode(examples)
    if proposer == "typos":
        typed = [TypedState.of(CONTEXT, item) for item in items]
        return metric_search(CONTEXT, victim, items, typed, [1.0] * count, TypoProposer(settings), settings, seed=seed)
    objective = Objective(victim.model, batch_tokens=4096)
    targets = Targets([item.labels for item in items], objective.device)
    flips = FlipProposer(CONTEXT, objective, items, targets, settings)
    clean = [State(np.asarray(item.ids, dtype=np.int64), 0.0) for item in items]
    return metric_search(CONTEXT, victim, items, clean, [1.0] * count, flips, settings, seed=seed)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Texts in each batch that the model generates from."""
    counted: list[int] = []
    plain = generation.beam_search

    def beam_search(engine: object, batch: Sequence, *rest: object) -> object:
        counted.append(len(batch))
        return plain(engine, batch, *rest)

    monkeypatch.setattr(generation, "beam_search", beam_search)
    return counted


def test_batches_of_the_search_are_as_full_as_stage_4s(rows: list[int]) -> None:
    found = search(3, replace(SETTINGS, threshold=2.0))  # nothing is a success: 3 × 136 summaries
    asked = sum(one.generations for one in found)
    assert sum(rows) == asked >= 3 * 120
    # 24 probes, and then never less than 48 of 64: three searches come to 16 flips each at once.
    assert rows[0] == 24 and min(rows[1:-1]) >= 48, rows
    rows.clear()
    search(16, replace(SETTINGS, threshold=2.0, summaries=40))
    # 16 × 8 flips fill two batches each time, the last time less.
    assert [sum(pair) for pair in zip(rows[:-2:2], rows[1:-2:2], strict=True)] == [128] * (len(rows) // 2 - 1), rows


def test_triggers_are_chosen_among_in_full_batches(rows: list[int]) -> None:
    items = trigger_examples(CONTEXT, world.planted_examples(10), 2)
    victim = Victim("standard", world.planted_model(), "planted")
    triggers = random_triggers(CONTEXT.legal, "lead", 2, 12, np.random.default_rng(0))
    dev = TriggerObjective(Objective(victim.model, batch_tokens=4096), items, "lead", 0)
    rouge_changes(CONTEXT, victim, dev, triggers)
    assert sum(rows) == 10 * 13 and rows[:-1] == [60, 60]  # texts of 19 tokens now


@pytest.mark.parametrize("proposer", ["flips", "typos"])
def test_several_positions_at_once_find_what_one_after_the_other_finds(
    proposer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = [search(6, SETTINGS, proposer, seed) for seed in range(2)]
    monkeypatch.setattr(module, "WAITING", 1)
    alone = [search(6, SETTINGS, proposer, seed) for seed in range(2)]
    pairs = [pair for a, b in zip(together, alone, strict=True) for pair in zip(a, b, strict=True)]
    wasted = 0
    for one, other in pairs:
        assert one.rouges == other.rouges
        assert [state.ids.tolist() for state in one.best] == [state.ids.tolist() for state in other.best]
        succeeded = one.succeeded(one.rouge, SETTINGS)
        assert one.generations == other.generations or (succeeded and one.generations > other.generations)
        assert one.generations <= SETTINGS.summaries
        wasted += one.generations - other.generations
    assert any(one.state.flips for one, _ in pairs)
    assert wasted <= 0.1 * sum(other.generations for _, other in pairs)

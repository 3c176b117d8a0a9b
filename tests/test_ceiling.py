"""What is there to be found, by trying everything; and a model whose gradients are masked is named, no other."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import attack_world as world
from tests.test_attack_suite import _legal_inputs
from utils.analysis import attack_warnings
from utils.analysis.attack_suite import compare_found, found_of_possible, interval_of, last_slot_shares
from utils.analysis.attack_warnings import little_found, unequal_search
from utils.analysis.records import CeilingRecord
from utils.analysis.sections import SectionKey
from utils.attacks.context import Victim, exact_losses, summaries
from utils.attacks.encoding import Example
from utils.attacks.hotflip.attack import HotFlipSettings, attack_examples
from utils.attacks.hotflip.ceiling import ceilings
from utils.attacks.triggers.experiment import search_triggers
from utils.attacks.triggers.search import TriggerSettings

TOKENIZER = world.tokenizer()
CONTEXT = world.attack_context(TOKENIZER)
CI = {"samples": 200, "seed": 0, "confidence": 0.95}
SETTINGS = HotFlipSettings(num_flips=1, candidates=32, min_clean_rouge=0.0, metric_summaries=10, metric_replacements=4)


def _records(
    victim: Victim, home: Path, examples: list[Example], *, moves: int = 10**6, settings: HotFlipSettings = SETTINGS
) -> list[CeilingRecord]:
    rows = [
        attack_examples(CONTEXT, victim, examples, dataclasses.replace(settings, method=method),
                        cache_dir=home / method)
        for method in ("gradient", "metric")
    ]  # fmt: skip
    items = CONTEXT.encode(examples)
    return ceilings(CONTEXT, victim, items, *rows, settings, moves=moves, summaries_each=5, seed=0, cache_dir=home)


def test_the_ceiling_is_the_best_of_all_legal_flips(tmp_path: Path) -> None:
    victim = Victim("standard", world.model(len(TOKENIZER) + 8, scale=1.5), "weights")
    (record,) = _records(victim, tmp_path, world.examples(1, words=4))
    example = world.examples(1, words=4)[0]
    inputs, (item,) = list(_legal_inputs(example).values()), CONTEXT.encode([example])
    losses = exact_losses(CONTEXT, victim, inputs, [item.labels] * len(inputs))
    clean = exact_losses(CONTEXT, victim, [item.ids], [item.labels])[0]
    assert record.every_move and record.moves == len(inputs)
    assert record.best_loss_increase == pytest.approx(losses.max() - clean, abs=1e-4)
    assert 0 < record.found_loss_increase <= record.best_loss_increase
    assert record.best_drop >= record.found_drop
    (sampled,) = _records(victim, tmp_path / "sample", world.examples(1, words=4), moves=30)
    assert not sampled.every_move and sampled.moves <= 30
    assert sampled.best_loss_increase <= record.best_loss_increase + 1e-6


def test_the_ceiling_is_of_the_loss_that_the_attack_raised(tmp_path: Path) -> None:
    """The model's own summary has a smaller loss than the reference: their difference would pass for a gain."""
    victim = Victim("standard", world.model(len(TOKENIZER) + 8, scale=1.5), "weights")
    example = world.examples(1, words=4)[0]
    settings = dataclasses.replace(SETTINGS, loss="own_output")
    (record,) = _records(victim, tmp_path, [example], settings=settings)
    (item,) = CONTEXT.encode([example])
    (text,) = summaries(CONTEXT, victim, [item.ids])
    inputs, labels = list(_legal_inputs(example).values()), CONTEXT.labels([text])[0]
    losses = exact_losses(CONTEXT, victim, [item.ids, *inputs], [labels] * (1 + len(inputs)))
    assert record.best_loss_increase == pytest.approx(losses[1:].max() - losses[0], abs=1e-4)


def _record(name: str, found: float, best: float) -> CeilingRecord:
    return CeilingRecord(
        id=name, model="m", skipped=None, moves=9, every_move=True, best_loss_increase=best,
        found_loss_increase=found, summaries=3, best_drop=0.4, found_drop=0.1,
    )  # fmt: skip


def test_shares_and_their_difference_by_hand() -> None:
    first = [_record("a", 0.5, 1.0), _record("b", 0.3, 0.4), _record("c", 0.0, 0.0)]
    second = [_record("a", 0.25, 1.0), _record("b", 0.1, 0.2), _record("d", 1.0, 1.0)]
    found = found_of_possible(first, CI)
    assert (found.num_examples, found.by_loss_examples) == (3, 2)  # c has nothing to be found
    assert found.by_loss.mean == pytest.approx((0.5 + 0.75) / 2) and found.by_rougeL.mean == pytest.approx(0.25)
    test = compare_found(first, second, ci=CI)
    assert test.n == 2 and test.difference == pytest.approx((0.25 - 0.5 + 0.5 - 0.75) / 2)


def _compared(first: np.ndarray, second: np.ndarray) -> list[str]:
    """Models that the attack is said to be weaker on, where these shares are found."""
    pairs = [[_record(str(n), share, 1.0) for n, share in enumerate(row)] for row in (first, second)]
    test = compare_found(*pairs, ci=CI)
    return [f"{found.model} {found.message}" for found in unequal_search(test, "the first flip")]


def test_an_attack_that_is_weaker_on_one_model_is_a_doubt_about_that_model() -> None:
    rng = np.random.default_rng(0)
    high, low = np.clip(rng.normal(0.8, 0.1, 15), 0, 1), np.clip(rng.normal(0.5, 0.1, 15), 0, 1)
    (said,) = _compared(high, low)
    assert said.startswith("monotonic the first flip finds 5") and "on baseline: the attack is the weaker" in said
    (said,) = _compared(low, high)
    assert said.startswith("baseline ") and "on monotonic" in said
    assert _compared(high[:11], low[:11]) == []  # too few texts
    # The interesting null: one model's share is lower by just the margin. A doubt in at most 5 % of the experiments.
    drawn = np.clip(rng.normal(0.7, 0.15, (400, 2, 14)), 0.05, 1)
    alarms = [bool(_compared(a, np.clip(b - 0.05, 0, 1))) for a, b in drawn]
    assert np.mean(alarms) <= 0.05


@pytest.mark.slow
def test_the_last_slot_of_a_trigger_is_tried_with_every_legal_token(tmp_path: Path) -> None:
    """By transformers alone, on the typed texts: every token that the tokenizer reads back in the last slot."""
    examples, model = world.planted_examples(16), world.planted_model()
    how = TriggerSettings(("lead",), iterations=1, restarts=1, candidates=4, gradient_examples=2, random_controls=1)

    def run(name: str, moves: int) -> tuple[list[int], list[CeilingRecord]]:
        sections = search_triggers(CONTEXT, Victim("standard", model, "planted"), ["lead"], examples, how,
                                   cache_dir=tmp_path / name, ceiling_examples=3, ceiling_moves=moves)  # fmt: skip
        search, ceiling = (SectionKey(part, "standard", "lead") for part in ("search", "ceiling"))
        return sections[search][0].by_loss.trigger_ids, sections[ceiling]

    trigger, records = run("all", 10**6)
    chosen = [next(example for example in examples if example.id == record.id) for record in records]
    tried = [[*trigger[:-1], token] for token in np.flatnonzero(~CONTEXT.view.special).tolist()]
    words = {tuple(ids): TOKENIZER.decode(ids) for ids in tried}
    legal = {ids: text for ids, text in words.items() if TOKENIZER(text).input_ids[:-1] == list(ids)}

    def losses(prefix: str) -> np.ndarray:
        found = []
        for example in chosen:
            ids = TOKENIZER(f"summarize: {prefix}{example.document}", return_tensors="pt").input_ids
            labels = TOKENIZER(example.summary, return_tensors="pt").input_ids
            with torch.no_grad():
                found.append(float(model(input_ids=ids, labels=labels).loss))
        return np.array(found)

    clean = losses("")
    rises = {ids: losses(text + " ") - clean for ids, text in legal.items()}
    best = max(rises.values(), key=lambda rise: rise.mean())
    assert all(record.every_move and record.moves == len(legal) for record in records) and len(records) == 3
    assert [record.best_loss_increase for record in records] == pytest.approx(best, abs=1e-4)
    assert [record.found_loss_increase for record in records] == pytest.approx(rises[tuple(trigger)], abs=1e-4)
    sampled = run("some", 5)[1]
    assert all(not record.every_move and record.moves <= 6 for record in sampled)
    assert sum(record.best_loss_increase for record in sampled) <= best.sum() + 1e-4


def test_the_share_of_a_last_slot_is_a_ratio_of_means_with_the_interval_of_one() -> None:
    rng = np.random.default_rng(0)
    best = rng.gamma(2.0, size=(2, 60))
    found = np.stack([0.8 * best[0], 0.5 * best[1]]) + 0.2 * rng.normal(size=(2, 60))
    rows = {kind: [_record(f"{n}", found[t, n], best[t, n]) for n in range(60)] for t, kind in enumerate("ab")}
    rows["nothing"] = [_record("0", 0.0, -0.1)]
    values = last_slot_shares(rows)
    drawn = rng.integers(60, size=(4000, 60))
    ratios = (found[:, drawn].mean(2) / best[:, drawn].mean(2)).mean(0)
    share = interval_of(values, CI | {"samples": 4000})
    assert share.mean == pytest.approx((found.mean(1) / best.mean(1)).mean())
    assert (share.lower, share.upper) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])), abs=0.01)


def _planted(seed: int, *, masked: bool) -> Victim:
    """A model that knows the planted task; masked: scores so large that the softmax is saturated, gradients are 0."""
    model = copy.deepcopy(world.planted_model())
    torch.manual_seed(seed)
    for weight in model.encoder.parameters():
        weight.data += 0.01 * weight.std() * torch.randn_like(weight)
    if masked:
        model.decoder.final_layer_norm.weight.data *= 1000
    return Victim("standard", model, f"{seed} {masked}")


@pytest.mark.slow
def test_masked_gradients_are_named_and_real_ones_never_in_twenty_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def doubts(seed: int, *, masked: bool, texts: int, moves: int) -> list[str]:
        home, examples = tmp_path / f"{seed}{masked}", world.planted_examples(texts, seed)
        records = _records(_planted(seed, masked=masked), home, examples, moves=moves)
        return [warning.warning for warning in little_found("standard", found_of_possible(records, CI))]

    # Of 40 texts and all moves the masked search finds 0.37 +- 0.05; a sample of moves has a smaller best one.
    assert doubts(0, masked=True, texts=40, moves=100_000) == ["possibly_masked_gradients"]
    monkeypatch.setattr(attack_warnings, "ENOUGH", 6)  # twenty times twenty texts would take long
    assert [doubts(seed, masked=False, texts=6, moves=200) for seed in range(20)] == [[]] * 20

"""HotFlip finds what is there to be found, never goes back, and gives the same numbers however it is run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import attack_world as world
from utils.analysis.hotflip_summary import summarise
from utils.analysis.records import HotFlipRecord
from utils.attacks import cache
from utils.attacks.context import AttackContext, Victim, exact_losses
from utils.attacks.encoding import (
    EMPTY_ARTICLE,
    EMPTY_REFERENCE,
    LOSS_NOT_FINITE,
    LOW_CLEAN_ROUGE,
    NO_LEGAL_FLIP,
    SKIP_REASONS,
    Example,
)
from utils.attacks.hotflip import attack as hotflip
from utils.attacks.hotflip.attack import HotFlipSettings, attack_examples
from utils.attacks.hotflip.coordinates import CoordinateProposer, Memory
from utils.attacks.hotflip.proposals import FirstOrderScorer, Flip, SearchTrajectory
from utils.attacks.hotflip.search import search
from utils.attacks.objective import Objective, Targets
from utils.core.codec import to_json
from utils.core.errors import Interrupted, UsageError
from utils.core.files import read_jsonl
from utils.evaluation.decoding import input_fingerprint

pytestmark = pytest.mark.slow

TOKENIZER = world.tokenizer()
CONTEXT = world.attack_context(TOKENIZER)
SETTINGS = HotFlipSettings(num_flips=3, candidates=8, random_candidates=2, min_clean_rouge=0.0)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "BLOCK_SIZE", 4)


def _victim(seed: int = 0, scale: float = 1.5) -> Victim:
    return Victim("standard", world.model(len(TOKENIZER) + 8, seed=seed, scale=scale), f"weights {seed}")


def _planted() -> Victim:
    return Victim("standard", world.planted_model(), "planted")


def _search(context: AttackContext, victim: Victim, examples: list[Example], **more: Any) -> list[SearchTrajectory]:
    items = context.encode(examples)
    objective = Objective(victim.model, batch_tokens=context.batch_tokens)
    targets = Targets([item.labels for item in items], objective.device)
    losses = objective.losses([item.ids for item in items], targets, np.arange(len(items)))
    proposer = CoordinateProposer(objective, context.legal, items, targets, random_candidates=2)
    return search(objective, context.legal, items, targets, losses.tolist(), proposer, **({"scores": [8] * 3} | more))


@pytest.mark.parametrize("token_set", ["roundtrip", "raw"])
def test_all_candidates_means_the_best_single_flip(token_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.attacks.hotflip.search.ROUND", 2000)  # thousands of small rounds would take long
    context = world.attack_context(TOKENIZER, token_set=token_set)
    victim = _victim()
    example = world.examples(1, words=5)[0]
    (trajectory,) = _search(context, victim, [example], scores=[30_000])
    (item,) = context.encode([example])
    every = []
    for position in item.attackable:
        for token in context.legal.ids.tolist():
            ids = list(item.ids)
            if token == ids[position]:
                continue
            ids[position] = token
            if token_set == "roundtrip":
                text = "summarize: " + TOKENIZER.decode(ids[item.start : -1])
                if TOKENIZER(text)["input_ids"] != ids:
                    continue
            every.append(ids)
    losses = exact_losses(context, victim, every, [item.labels] * len(every))
    assert trajectory.queries == len(every)
    assert trajectory.best[1].ids.tolist() == every[int(np.argmax(losses))]
    assert trajectory.best[1].loss == pytest.approx(losses.max(), abs=1e-4)


def test_proposals_are_the_pairs_of_largest_first_order_gain() -> None:
    context = world.attack_context(TOKENIZER, token_set="raw")
    (item,) = context.encode(world.examples(1))
    embedding = _victim().model.get_input_embeddings().weight.detach()
    ids = torch.tensor([item.ids])
    gradient = torch.randn(1, len(item.ids), embedding.shape[1], generator=torch.Generator().manual_seed(0))
    open_ = np.zeros((1, len(item.ids)), dtype=bool)
    open_[0, list(item.attackable)] = True
    (top,) = FirstOrderScorer(context.legal, embedding, candidates=8, per_position=50).top(ids, gradient, open_, open_)
    gains = {
        (p, v): float(gradient[0, p] @ (embedding[v] - embedding[item.ids[p]]))
        for p in item.attackable
        for v in context.legal.ids.tolist()
        if v != item.ids[p]
    }
    best = sorted(gains, key=lambda pair: -gains[pair])[:16]
    assert list(zip(top.positions.tolist(), top.tokens.tolist(), strict=True)) == best
    assert top.gains == pytest.approx([gains[pair] for pair in best], rel=1e-4)


def test_loss_never_falls_and_flips_are_nested(tmp_path: Path) -> None:
    records = attack_examples(CONTEXT, _victim(), world.examples(8), SETTINGS, cache_dir=tmp_path)
    assert len(records) == 8 and all(record.skipped is None for record in records)
    for record in records:
        assert all(b >= a for a, b in pairwise(record.search.losses))
        assert record.search.losses[-1] > record.search.losses[0]
        changed = [
            i for i, pair in enumerate(zip(record.clean_ids, record.attacked_ids, strict=True)) if len({*pair}) == 2
        ]
        assert sorted(flip.position for flip in record.search.flips) == changed
        assert len(changed) == record.num_flips <= 3
        assert record.search.queries == 24 and record.search.gradients == 5  # two noisy ones at the first step
        for flip in record.search.flips:
            assert record.clean_ids[flip.position] == flip.old and flip.actual_gain > 0
        for smaller, larger in pairwise(record.search.budgets):
            assert larger[: len(smaller)] == smaller
        assert record.loss_increase == pytest.approx(record.search.losses[-1] - record.search.losses[0], abs=1e-4)
        assert record.typable


def test_reported_losses_are_those_of_the_attacked_text(tmp_path: Path) -> None:
    victim = _victim()
    for record in attack_examples(CONTEXT, victim, world.examples(4), SETTINGS, cache_dir=tmp_path):
        batch = TOKENIZER("summarize: " + record.attacked_document, truncation=True, max_length=48)
        assert batch["input_ids"] == record.attacked_ids
        with torch.no_grad():
            out = victim.model(input_ids=torch.tensor([batch["input_ids"]]), labels=torch.tensor([record.labels]))
        assert record.attacked_loss == pytest.approx(float(out.loss), abs=1e-3)


def test_a_model_that_reads_its_text_is_broken(tmp_path: Path) -> None:
    settings = replace(SETTINGS, candidates=32, random_candidates=2, min_clean_rouge=0.05)
    records = attack_examples(CONTEXT, _planted(), world.planted_examples(16), settings, cache_dir=tmp_path)
    clean = np.mean([record.clean_rougeL for record in records])
    live = [record for record in records if record.skipped is None]
    assert clean > 0.9 and len(live) >= 15
    assert np.mean([record.success for record in live]) >= 0.75
    assert np.mean([record.loss_increase for record in live]) > 1


@pytest.mark.parametrize("batch_tokens", [1, 200, 100_000])
def test_batch_size_changes_nothing(batch_tokens: int, tmp_path: Path) -> None:
    context = world.attack_context(TOKENIZER, batch_tokens=batch_tokens)
    first = attack_examples(CONTEXT, _victim(), world.examples(6), SETTINGS, cache_dir=tmp_path / "a")
    second = attack_examples(context, _victim(), world.examples(6), SETTINGS, cache_dir=tmp_path / "b")
    assert _essence(first) == _essence(second)


def test_order_changes_nothing(tmp_path: Path) -> None:
    examples = world.examples(10)
    first = attack_examples(CONTEXT, _victim(), examples, SETTINGS, cache_dir=tmp_path / "a")
    second = attack_examples(CONTEXT, _victim(), examples[::-1], SETTINGS, cache_dir=tmp_path / "b")
    assert _essence(first) == _essence(second[::-1])


def test_stopped_and_started_again_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = world.examples(10)
    whole = attack_examples(CONTEXT, _victim(), examples, SETTINGS, cache_dir=tmp_path / "whole")
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) in (3, 5)  # once while generating or searching, once later

    context = replace(CONTEXT, stop_requested=stop)
    tries, parts = 0, None
    while parts is None:
        tries += 1
        try:
            parts = attack_examples(context, _victim(), examples, SETTINGS, cache_dir=tmp_path / "parts")
        except Interrupted:
            assert tries < 10
    assert tries == 3
    assert [_timeless(r) for r in parts] == [_timeless(r) for r in whole]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a finished attack was done again")

    monkeypatch.setattr(hotflip, "_search_block", refuse)
    again = attack_examples(CONTEXT, _victim(), examples, SETTINGS, cache_dir=tmp_path / "parts")
    assert again == parts


def test_other_weights_or_settings_are_not_mixed(tmp_path: Path) -> None:
    examples = world.examples(4)
    first = attack_examples(CONTEXT, _victim(0), examples, SETTINGS, cache_dir=tmp_path)
    other = attack_examples(CONTEXT, _victim(1), examples, SETTINGS, cache_dir=tmp_path)
    assert [r.clean_loss for r in first] != [r.clean_loss for r in other]
    fewer = attack_examples(CONTEXT, _victim(1), examples, replace(SETTINGS, num_flips=1), cache_dir=tmp_path)
    assert all(len(record.search.losses) == 2 for record in fewer)


def test_known_summaries_are_taken_not_made_again(tmp_path: Path) -> None:
    examples = world.examples(4)
    known = {input_fingerprint(item.ids): f"said before {i}" for i, item in enumerate(CONTEXT.encode(examples)[:3])}
    victim = replace(_victim(), known=known)
    records = attack_examples(CONTEXT, victim, examples, SETTINGS, cache_dir=tmp_path)
    assert [record.clean_prediction for record in records[:3]] == list(known.values())
    made = [row["index"] for row in read_jsonl(tmp_path / "clean.jsonl") if "index" in row]
    assert made == [0] and records[3].clean_prediction not in known.values()
    others = replace(victim, known=known | {next(iter(known)): "said later"})
    assert attack_examples(CONTEXT, others, examples, SETTINGS, cache_dir=tmp_path)[0].clean_prediction == "said later"


def test_more_work_is_never_weaker() -> None:
    victim, examples = _victim(), world.examples(6)
    plain = [trajectory.best[-1].loss for trajectory in _search(CONTEXT, victim, examples)]
    beam = [trajectory.best[-1].loss for trajectory in _search(CONTEXT, victim, examples, beam=3)]
    restarts = [trajectory.best[-1].loss for trajectory in _search(CONTEXT, victim, examples, restarts=3)]
    assert all(b >= a - 1e-4 for a, b in zip(plain, restarts, strict=True))
    assert np.mean(beam) >= np.mean(plain)
    for trajectory in _search(CONTEXT, victim, examples, restarts=2, beam=2):
        losses = [state.loss for state in trajectory.best]
        assert losses == sorted(losses)
        assert [len(state.flips) <= k for k, state in enumerate(trajectory.best)] == [True] * 4


def test_the_gradient_free_control_has_as_many_passes(tmp_path: Path) -> None:
    examples, passes = world.examples(4), {}
    for method in ("gradient", "greedy"):
        how = replace(SETTINGS, method=method)
        records = attack_examples(CONTEXT, _victim(), examples, how, cache_dir=tmp_path / method)
        passes[method] = [r.search.queries + 3 * r.search.gradients for r in records]
    assert passes["greedy"] == passes["gradient"] == [3 * (8 + 3) + 3 * 2] * 4  # two noisy gradients, at the first step


def test_shares_of_positions_and_tokens_are_those_that_made_the_gains() -> None:
    """Gains made of known shares, every pair but one: its gain is predicted without having been seen."""
    rng = np.random.default_rng(0)
    at, of = rng.normal(size=6), rng.normal(size=8)
    flips = [Flip(p, 99, 10 + v, math.nan) for p in range(6) for v in range(8)]
    gains = [float(at[f.position] + of[f.new - 10]) for f in flips]
    memory, unseen = Memory(), int(np.argmax(gains))
    memory.learn([*flips[:unseen], *flips[unseen + 1 :], flips[0]], [*gains[:unseen], *gains[unseen + 1 :], math.nan])
    by_place, by_token = memory.shares()
    sums = [by_place[f.position] + by_token[f.new] for f in flips]
    assert int(np.argmax(sums)) == unseen
    assert np.corrcoef(sums, gains)[0, 1] > 0.99


def test_gradient_norms_are_written_down_only_where_asked(tmp_path: Path) -> None:
    for wanted in (True, False):
        how = replace(SETTINGS, gradient_norms=wanted)
        records = attack_examples(CONTEXT, _victim(), world.examples(2), how, cache_dir=tmp_path / str(wanted))
        assert [record.search.gradient_norm is not None for record in records] == [wanted] * 2
        summary = summarise(records, threshold=0.15, samples=50, seed=0)
        assert (summary.gradient_norm is not None) == wanted and summary.zero_gradient_count == 0


def test_own_output_is_attacked_without_the_reference(tmp_path: Path) -> None:
    settings = replace(SETTINGS, loss="own_output")
    examples = world.examples(4)
    blind = [replace(example, summary="ba be") for example in examples]
    first = attack_examples(CONTEXT, _victim(), examples, settings, cache_dir=tmp_path / "a")
    second = attack_examples(CONTEXT, _victim(), blind, settings, cache_dir=tmp_path / "b")
    assert [record.attacked_ids for record in first] == [record.attacked_ids for record in second]


def test_every_bad_example_is_counted_and_named(tmp_path: Path) -> None:
    good = world.planted_examples(3)
    bad = [
        Example("empty", " ", "re pa ri"),
        Example("no reference", "ba be bi", ""),
        Example("nothing to lose", good[0].document, "zz zz"),
        Example("unknown signs", "你 好", "re pa ri"),
        Example("short", "ba be", "re pa ri"),
    ]
    context = world.attack_context(TOKENIZER)
    records = attack_examples(
        context, _planted(), [*good, *bad], replace(SETTINGS, min_clean_rouge=0.01), cache_dir=tmp_path
    )
    by_id = {record.id: record for record in records}
    assert by_id["empty"].skipped == EMPTY_ARTICLE
    assert by_id["no reference"].skipped == EMPTY_REFERENCE
    assert by_id["nothing to lose"].skipped == LOW_CLEAN_ROUGE
    assert by_id["short"].skipped in (None, LOW_CLEAN_ROUGE) and by_id["short"].short_article
    assert by_id["short"].skipped or by_id["short"].num_flips <= 2
    assert all(record.skipped is None or record.skipped in SKIP_REASONS for record in records)
    json.dumps(to_json(records), allow_nan=False)


def test_no_typable_flip_is_counted(tmp_path: Path) -> None:
    settings = replace(SETTINGS, min_clean_rouge=0.0)
    examples = [Example("cut", "ba" * 60, "ba be"), *world.examples(1)]  # one half-visible word: no text changes it
    records = attack_examples(CONTEXT, _victim(), examples, settings, cache_dir=tmp_path)
    assert [record.skipped for record in records] == [NO_LEGAL_FLIP, None]
    raw = world.attack_context(TOKENIZER, token_set="raw")
    records = attack_examples(raw, _victim(), examples, settings, cache_dir=tmp_path)
    assert [record.skipped for record in records] == [None, None]


def test_a_loss_that_is_not_finite_is_counted(tmp_path: Path) -> None:
    victim = _victim()
    with torch.no_grad():
        victim.model.get_input_embeddings().weight[TOKENIZER.convert_tokens_to_ids("▁bofa")] = math.nan
    examples = [Example("nan", "bofa ba be bi", "ba be"), *world.examples(1)]
    records = attack_examples(CONTEXT, victim, examples, SETTINGS, cache_dir=tmp_path)
    assert records[0].skipped == LOSS_NOT_FINITE


def test_settings_that_make_no_sense_are_refused() -> None:
    for values in ({"num_flips": 0}, {"candidates": 0}, {"loss": "rouge"}, {"random_candidates": 99}, {"method": "x"}):
        with pytest.raises(UsageError):
            HotFlipSettings(**values)  # type: ignore[arg-type]


def _essence(records: list[dict]) -> list[tuple]:
    return [(r.id, r.attacked_ids, [round(x, 3) for x in r.search.losses], r.attacked_prediction) for r in records]


def _timeless(record: HotFlipRecord) -> HotFlipRecord:
    """The record without what a clock says."""
    return replace(record, search=record.search and replace(record.search, seconds=0.0))

"""The suite of attacks: the same moves and budget for all, a search by the metric, a worst case that is one."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from tests import attack_world as world
from utils.analysis.attack_suite import noise_floor, strongest, suite, worst_case
from utils.analysis.records import HotFlipRecord
from utils.analysis.sections import SectionKey
from utils.attacks.context import Victim
from utils.attacks.encoding import FUNCTION_WORDS, Example, reference_positions
from utils.attacks.hotflip import attack, experiment
from utils.attacks.hotflip import metric_search as metric_search_module
from utils.attacks.hotflip.attack import METRIC_METHODS, HotFlipSettings, attack_examples
from utils.attacks.hotflip.controls import random_at_reference, strongest_random
from utils.attacks.hotflip.coordinates import CoordinateProposer
from utils.attacks.hotflip.experiment import ControlSettings, HotFlipPlan
from utils.attacks.hotflip.metric_search import metric_search
from utils.attacks.hotflip.proposals import EditablePositions, SearchTrajectory, State, random_flips
from utils.attacks.hotflip.typos import TypedState, TypoProposer, edited
from utils.attacks.objective import Objective, Targets
from utils.core.errors import StageError
from utils.evaluation.generation import generate

TOKENIZER = world.tokenizer()
CONTEXT = world.attack_context(TOKENIZER)


def _victim() -> Victim:
    return Victim("standard", world.model(len(TOKENIZER) + 8, scale=1.5), "weights")


def _legal_inputs(example: Example) -> dict[tuple[int, int], list[int]]:
    """Every single flip whose text is read as the flipped ids, by asking the tokenizer about each."""
    (item,) = CONTEXT.encode([example])
    found = {}
    for position in item.attackable:
        for token in np.flatnonzero(~CONTEXT.view.special).tolist():
            ids = list(item.ids)
            ids[position] = token
            text = "summarize: " + TOKENIZER.decode(ids[item.start : -1])
            if ids != list(item.ids) and TOKENIZER(text)["input_ids"] == ids:
                found[position, token] = ids
    return found


def test_attack_greedy_and_random_make_the_same_moves() -> None:
    example = world.examples(1, words=4)[0]
    (item,) = CONTEXT.encode([example])
    state = State(np.array(item.ids), 0.0)
    legal = set(_legal_inputs(example))
    rng = np.random.default_rng(0)
    drawn = random_flips(EditablePositions(CONTEXT.legal, item, state), 3000, rng)
    objective = Objective(_victim().model, batch_tokens=4096)
    greedy = CoordinateProposer(
        objective, CONTEXT.legal, [item], Targets([item.labels], objective.device), random_candidates=0, guided=False
    )
    looks = greedy.look([SearchTrajectory(0, 0, [state], rng, best=[state])], [state], 3000)
    (proposed,) = greedy.propose(looks, 3000)
    assert {(f.position, f.new) for f in drawn} == {(f.position, f.new) for f in proposed} == legal
    # test_attacks_hotflip shows the same of the gradient attack.


def test_passes_of_attack_and_controls_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0
    losses, gradients = Objective.losses, Objective.gradients

    def counted_losses(self: Objective, inputs: list, *rest: object) -> object:
        nonlocal count
        count += len(inputs)
        return losses(self, inputs, *rest)

    def counted_gradients(self: Objective, inputs: list, *rest: object, smoothing: object = None) -> object:
        nonlocal count
        count += 3 * len(inputs) * (len(smoothing.samples) if smoothing else 1)
        return gradients(self, inputs, *rest, smoothing=smoothing)

    monkeypatch.setattr(Objective, "losses", counted_losses)
    monkeypatch.setattr(Objective, "gradients", counted_gradients)
    settings = HotFlipSettings(num_flips=3, candidates=8, random_candidates=2, min_clean_rouge=0.0)
    spent = {}
    for method in ("gradient", "greedy"):
        count = 0
        attack_examples(CONTEXT, _victim(), world.examples(3), replace(settings, method=method),
                        cache_dir=tmp_path / method)  # fmt: skip
        spent[method] = count / 3 - (1 + 4 + 2)  # the clean loss, each budget again in float32, before and after
    items = CONTEXT.encode(world.examples(3))
    objective, count = Objective(_victim().model, batch_tokens=4096), 0
    targets = Targets([item.labels for item in items], objective.device)
    rngs = [np.random.default_rng(0) for _ in items]
    strongest_random(objective, CONTEXT.legal, items, targets, num_flips=3, draws=settings.passes, rngs=rngs)
    spent["random"] = count / 3
    assert max(spent.values()) <= 1.02 * min(spent.values()), spent


def test_a_random_control_climbs_the_loss_of_the_attack() -> None:
    items = CONTEXT.encode(world.examples(4))
    objective = Objective(_victim().model, batch_tokens=4096)
    chosen = []
    for labels in ([item.labels for item in items], [(9, 12, 1)] * 4):
        targets = Targets(labels, objective.device)
        rngs = [np.random.default_rng(k) for k in range(4)]
        found = strongest_random(objective, CONTEXT.legal, items, targets, num_flips=3, draws=20, rngs=rngs)
        chosen.append([list(ids) for ids in found])
    assert chosen[0] != chosen[1]


@pytest.mark.slow
def test_the_search_by_the_metric_finds_the_lowest_rouge_of_all_single_flips(tmp_path: Path) -> None:
    example = world.examples(1, words=4)[0]
    everything = {"metric_positions": 10**6, "metric_replacements": 3000, "metric_rounds": 10**6}
    settings = HotFlipSettings(
        num_flips=1, success_threshold=2.0, min_clean_rouge=0.0, metric_summaries=10**6, **everything
    )
    inputs = list(_legal_inputs(example).values())
    victim = _victim()
    example = replace(example, summary=generate(victim.model, TOKENIZER, [CONTEXT.encode([example])[0].ids],
                                                CONTEXT.decoding, batch_tokens=4096, label="").texts[0])  # fmt: skip
    texts, _ = generate(victim.model, TOKENIZER, inputs, CONTEXT.decoding, batch_tokens=4096, label="")
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    lowest = min(scorer.score(example.summary, text)["rougeL"].fmeasure for text in texts)
    for method in METRIC_METHODS:
        (record,) = attack_examples(
            CONTEXT, victim, [example], replace(settings, method=method), cache_dir=tmp_path / method
        )
        assert record.attacked_rougeL == pytest.approx(lowest), method
        assert record.attacked_rougeL < record.clean_rougeL and record.num_flips == 1 and record.typable


def test_the_search_by_the_metric_ends_at_success_and_keeps_its_budget(tmp_path: Path) -> None:
    victim = Victim("standard", world.planted_model(), "planted")
    settings = HotFlipSettings(num_flips=3, method="metric", metric_summaries=30, metric_replacements=5)
    records = attack_examples(CONTEXT, victim, world.planted_examples(8), settings, cache_dir=tmp_path)
    for record in records:
        assert record.search.generations <= 30 and record.num_flips <= 3
        drops = record.budget_drop
        if record.success and record.num_flips > 1:
            assert drops[record.num_flips - 2] < 0.15  # one flip fewer is none
        assert all(later >= earlier - 1e-9 for earlier, later in pairwise(drops))
        assert sorted(flip.position for flip in record.search.flips) == [
            p for p, pair in enumerate(zip(record.clean_ids, record.attacked_ids, strict=True)) if len({*pair}) == 2
        ]
    assert np.mean([record.success for record in records]) >= 0.5


def test_the_search_by_the_metric_is_nowhere_below_the_one_by_loss_at_equal_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Costs counted where the model is asked, successes by transformers and rouge-score; changes help in pairs."""
    model, examples, cost = world.planted_model(), world.planted_examples(24), 0.0
    losses, gradients, texts = Objective.losses, Objective.gradients, attack.summaries

    def counted_losses(self: Objective, inputs: list, *rest: object) -> object:
        nonlocal cost
        cost += len(inputs)
        return losses(self, inputs, *rest)

    def counted_gradients(self: Objective, inputs: list, *rest: object, smoothing: object = None) -> object:
        nonlocal cost
        cost += 3 * len(inputs) * (len(smoothing.samples) if smoothing else 1)
        return gradients(self, inputs, *rest, smoothing=smoothing)

    def counted_summaries(context: object, victim: object, inputs: list, **more: object) -> list[str]:
        nonlocal cost
        cost += 3.75 * len(inputs)
        return texts(context, victim, inputs, **more)

    monkeypatch.setattr(Objective, "losses", counted_losses)
    monkeypatch.setattr(Objective, "gradients", counted_gradients)
    for module in (attack, metric_search_module):
        monkeypatch.setattr(module, "summaries", counted_summaries)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)

    def rouges(inputs: list[list[int]], records: list[HotFlipRecord]) -> np.ndarray:
        padded = TOKENIZER.pad({"input_ids": inputs}, return_tensors="pt")
        ids = model.generate(**padded, num_beams=2, length_penalty=1.0, min_new_tokens=2, max_new_tokens=8,
                             no_repeat_ngram_size=3, do_sample=False)  # fmt: skip
        typed = TOKENIZER.batch_decode(ids, skip_special_tokens=True)
        pairs = zip(records, typed, strict=True)
        return np.array([scorer.score(record.reference, text)["rougeL"].fmeasure for record, text in pairs])

    def run(method: str, candidates: int) -> tuple[float, list[float]]:
        nonlocal cost
        settings = HotFlipSettings(num_flips=3, candidates=candidates, method=method, metric_positions=16,
                                   metric_replacements=8, metric_summaries=60)  # fmt: skip
        victim = Victim("standard", model, "planted")
        cost = 0.0
        records = attack_examples(CONTEXT, victim, examples, settings, cache_dir=tmp_path / f"{method}{candidates}")
        spent, clean, rates = cost / len(records), rouges([record.clean_ids for record in records], records), []
        for flips in (1, 2, 3):
            inputs = [list(record.clean_ids) for record in records]
            for ids, record in zip(inputs, records, strict=True):
                for position, token in record.search.budgets[flips]:
                    ids[position] = token
            changed = [
                sum(a != b for a, b in zip(ids, r.clean_ids, strict=True))
                for ids, r in zip(inputs, records, strict=True)
            ]
            assert max(changed) <= flips
            rates.append(float(np.mean((clean - rouges(inputs, records)) / clean >= 0.15 - 1e-9)))
        return spent, rates

    spent, by_metric = run("metric", 16)
    allowed, by_loss = run("gradient", 40)
    assert allowed >= spent, (allowed, spent)
    assert all(ours >= other for ours, other in zip(by_metric, by_loss, strict=True)), (by_metric, by_loss)
    assert by_metric[2] > by_metric[0] > 0.5


def _record(name: str, drop: float, rise: float = 0.1, **more: object) -> HotFlipRecord:
    figures = {"clean_rougeL": 0.5, "attacked_rougeL": 0.5 * (1 - drop), "relative_drop": drop, "loss_increase": rise}
    return HotFlipRecord(id=name, model="baseline", method="x", skipped=None, **figures | more)


def test_the_worst_case_is_no_weaker_than_any_member_and_takes_legal_attacks_alone() -> None:
    parts = {
        "attack": [_record("a", 0.1, clean_prediction="x"), _record("b", 0.4), _record("c", 0.9, legal=False)],
        "metric": [_record("a", 0.3), _record("b", 0.2), _record("c", 0.8, legal=False)],
        "greedy": [_record("a", 0.0), _record("b", 0.1), _record("c", 0.7, legal=False), _record("d", 0.9)],
        "random": [_record("a", 0.2), _record("b", 0.0), _record("c", 0.0)],
        "random_metric": [_record("a", 0.0), _record("b", 0.3), _record("c", 0.0)],
        "unchanged": [_record(k, 0.0, attacked_prediction="x" if k == "a" else "y") for k in "abc"],
        "one_shot": [_record(k, 0.99) for k in "abc"],
    }
    sections = {SectionKey(part, "baseline"): rows for part, rows in parts.items()}
    found = {record.id: record.relative_drop for record in strongest(sections, "baseline", ("baseline",))}
    assert found == {"a": 0.3, "b": 0.4, "c": 0.0}  # d was not attacked by every member; c only by what is not legal
    members = suite(sections, "baseline", ("baseline",), threshold=0.15)
    assert set(members) == {"gradient", "metric", "greedy"}
    worst = worst_case(strongest(sections, "baseline", ("baseline",)), threshold=0.15)
    assert worst.success_rate == pytest.approx(2 / 3)
    assert all(member.success_rate <= worst.success_rate for member in members.values())
    floor = noise_floor(sections, "baseline", threshold=0.15)
    assert (floor.success_rate, floor.unchanged_success_rate) == (pytest.approx(2 / 3), 0.0)
    assert floor.unchanged_differs == pytest.approx(2 / 3)


def test_words_of_the_reference_are_found_by_hand() -> None:
    (item,) = CONTEXT.encode([Example("x", "baba the ku. fa dido fafa", "Baba ate the DIDO, fa")])
    shared = reference_positions(CONTEXT.view, item)
    assert CONTEXT.view.text([item.ids[p] for p in sorted(shared)]) == " baba fa dido"
    changed = random_at_reference(CONTEXT, item, num_flips=1, rng=np.random.default_rng(0))
    assert {p for p in range(len(item.ids)) if changed[p] != item.ids[p]} <= shared


def test_gradients_that_are_not_finite_are_computed_again_counted_and_refused_beyond_one_percent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    items = CONTEXT.encode(world.examples(3))
    targets = Targets([item.labels for item in items], torch.device("cpu"))

    def gradients(objective: Objective) -> list[np.ndarray]:
        found: list[np.ndarray] = [np.zeros(0)] * 3

        def use(rows: np.ndarray, ids: torch.Tensor, gradient: torch.Tensor) -> None:
            for k, i in enumerate(rows):
                found[i] = gradient[k, : len(items[i].ids)].numpy()

        objective.gradients([item.ids for item in items], targets, [0, 1, 2], use)
        return found

    model = _victim().model
    exact = gradients(Objective(model, batch_tokens=4096))
    plain = Objective._gradient

    def broken(self: Objective, embeds: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor, precision: str):
        nll, gradient = plain(self, embeds, mask, labels, "fp32")
        if precision == "bf16" or always:
            gradient[0, 0, 0] = torch.nan
        return nll, gradient

    always = False
    monkeypatch.setattr(Objective, "_gradient", broken)
    objective = Objective(model, batch_tokens=4096, precision="bf16")
    for got, wanted in zip(gradients(objective), exact, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    assert objective.retried.total() == 1 and objective.bad_rows == 0
    always = True
    objective = Objective(model, batch_tokens=4096)
    gradients(objective)  # one odd text among the first is counted, and no share yet
    assert objective.bad_rows == 1
    with pytest.raises(StageError, match="2 of 6 gradients of an attack are not finite"):
        gradients(objective)


def test_losses_that_bfloat16_cannot_hold_are_computed_again() -> None:
    objective = Objective(_victim().model, batch_tokens=4096, precision="bf16")
    (item,) = CONTEXT.encode(world.examples(1))
    targets = Targets([item.labels], objective.device)
    objective.engine.mean_nll = lambda ids, labels: torch.full((len(ids),), torch.nan)  # type: ignore[method-assign]
    exact = Objective(objective.model, batch_tokens=4096).losses([item.ids], targets, [0])
    assert objective.losses([item.ids], targets, [0]) == pytest.approx(exact)
    assert objective.retried_losses == 1


def test_cudnn_attention_is_off_in_every_process_that_computes() -> None:
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_protected_words_stay_and_typos_are_single_edits(tmp_path: Path) -> None:
    examples = [replace(e, summary=" ".join(e.document.split()[2:5]) + " ba") for e in world.examples(6)]
    settings = HotFlipSettings(num_flips=3, candidates=16, min_clean_rouge=0.0, protect=True)
    records = attack_examples(CONTEXT, _victim(), examples, settings, cache_dir=tmp_path)
    free = attack_examples(CONTEXT, _victim(), examples, replace(settings, protect=False), cache_dir=tmp_path / "free")
    assert any(record.reference_flips for record in free)
    for example, record in zip(examples, records, strict=True):
        assert record.reference_flips == 0 and record.num_flips > 0
        words = example.document.split()
        kept = [w for w in words if w.strip(".") in example.summary.split() and w.strip(".") not in FUNCTION_WORDS]
        assert kept and all(record.attacked_document.split().count(w) >= words.count(w) for w in kept)
    rng = np.random.default_rng(0)
    for _ in range(200):
        word = "bakery"
        changed = edited(word, rng)
        assert changed[0] == "b" and abs(len(changed) - len(word)) <= 1
        if len(changed) == len(word):  # one letter replaced (by itself at times), or two neighbours swapped
            different = [k for k in range(len(word)) if changed[k] != word[k]]
            assert len(different) <= 1 or (len(different) == 2 and different[1] == different[0] + 1)


def test_typos_are_read_as_they_are_typed() -> None:
    victim = Victim("standard", world.planted_model(), "planted")
    examples = [
        Example(f"t{k}", e.document.replace(" ", "ba "), e.summary) for k, e in enumerate(world.planted_examples(4))
    ]
    items = CONTEXT.encode(examples)
    settings = replace(HotFlipSettings().metric, num_flips=2, summaries=40, replacements=5, threshold=2.0)
    starts = [TypedState.of(CONTEXT, item) for item in items]
    found = metric_search(CONTEXT, victim, items, starts, [0.9] * 4, TypoProposer(settings), settings, seed=0)
    assert any(search.state.flips for search in found)
    for item, search in zip(items, found, strict=True):
        document, ids = item.document.split(), search.state.ids.tolist()
        assert TOKENIZER("summarize: " + search.state.document, truncation=True, max_length=48)["input_ids"] == ids
        changed = [k for k, (a, b) in enumerate(zip(document, search.state.document.split(), strict=True)) if a != b]
        assert len(changed) == len(search.state.flips) <= 2


def test_no_typing_error_is_tried_twice_on_one_document(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [Example("t", "bada fege kilo moru", "ba")]
    items = CONTEXT.encode(examples)
    settings = replace(HotFlipSettings().metric, num_flips=1, summaries=60, replacements=24, threshold=2.0)
    summarised: list[tuple[int, ...]] = []

    def same(context: object, victim: object, inputs: list, **more: object) -> list[str]:
        summarised.extend(tuple(map(int, ids)) for ids in inputs)
        return ["ba"] * len(inputs)

    monkeypatch.setattr(metric_search_module, "summaries", same)
    (search,) = metric_search(CONTEXT, _victim(), items, [TypedState.of(CONTEXT, items[0])], [0.9],
                              TypoProposer(settings), settings, seed=0)  # fmt: skip
    assert len(search.state.tried) == search.generations == len(summarised) > 40


def test_what_generates_summaries_is_not_made_again_and_metric_settings_are_no_concern_of_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = HotFlipSettings(num_flips=1, candidates=4, random_candidates=1, min_clean_rouge=0.0, metric_summaries=6)
    examples, controls, victim = world.examples(2), ControlSettings(), _victim()
    plan = HotFlipPlan.of(CONTEXT, examples, controls)

    def everything(metric_summaries: int) -> dict[str, dict[str, list[int]]]:
        how = replace(settings, metric_summaries=metric_summaries)
        records = attack_examples(CONTEXT, victim, examples, how, cache_dir=tmp_path / "attack")
        metric = attack_examples(
            CONTEXT, victim, examples, replace(how, method="metric"), cache_dir=tmp_path / "metric"
        )
        return experiment._other_inputs(CONTEXT, victim, plan, records, {SectionKey("metric", "standard"): metric},
                                        how, controls, cache_dir=tmp_path)  # fmt: skip

    first = everything(6)
    again: list[str] = []
    for module, name in (
        (experiment, "strongest_random_by_metric"), (experiment, "metric_search"), (attack, "search"),
        (attack, "metric_search"),
    ):  # fmt: skip
        made = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, made=made, name=name, **k: (again.append(name), made(*a, **k))[1])
    assert everything(6) == first and again == []
    everything(5)
    # By loss once: what the search by the metric asks; the attack by loss is kept.
    assert again.count("search") == 1 and set(again) == {"search", "strongest_random_by_metric", "metric_search"}

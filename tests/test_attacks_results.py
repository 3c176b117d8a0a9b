"""Results are made from the records alone, say what the records say, and warn where the attack proves nothing."""

from __future__ import annotations

import copy
import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from tests import attack_world as world
from utils.analysis.attack_suite import strongest, worst_case
from utils.analysis.hotflip_summary import hotflip_results, summarise
from utils.analysis.records import (
    HotFlipRecord,
    attackable,
    decoded,
    encoded,
    hotflip_row,
    rows_of,
    sections_of,
)
from utils.analysis.results import (
    HotFlipResults,
    ModelTriggers,
)
from utils.analysis.sections import SectionKey, Sections
from utils.analysis.trigger_summary import learned_triggers_csv, trigger_results
from utils.attacks import cache
from utils.attacks.context import Victim
from utils.attacks.hotflip.attack import HotFlipSettings
from utils.attacks.hotflip.controls import all_replaced, one_shot, random_sets
from utils.attacks.hotflip.experiment import ControlSettings, HotFlipPlan, attack_with_controls, flips_of_others
from utils.attacks.objective import Objective
from utils.attacks.transfer import attacked_inputs, replay, typable_by_id
from utils.attacks.triggers import search
from utils.attacks.triggers.experiment import measure_triggers, search_triggers
from utils.attacks.triggers.search import TriggerSettings
from utils.core.codec import from_json, to_json
from utils.core.errors import Interrupted

pytestmark = pytest.mark.slow

TOKENIZER = world.tokenizer()
CONTEXT = world.attack_context(TOKENIZER)
MODELS = ("standard", "baseline", "monotonic")
HOTFLIP = HotFlipSettings(num_flips=2, candidates=6, random_candidates=2, metric_summaries=20, metric_replacements=4)
CONTROLS = ControlSettings(convergence_examples=4, long_examples=5)
CI = {"samples": 100, "seed": 0}


def _load(key: str) -> Victim:
    """A model that knows nothing, one that knows the planted task, and one that knows it a little differently."""
    if key == "standard":
        return Victim(key, world.model(len(TOKENIZER) + 8, scale=1.5), key)
    model = copy.deepcopy(world.planted_model())
    torch.manual_seed(0)
    for weight in model.encoder.parameters():
        weight.data += 0.02 * (key == "monotonic") * weight.std() * torch.randn_like(weight)
    return Victim(key, model, key)


def _record(**values: object) -> HotFlipRecord:
    record = {
        "id": "a",
        "model": "baseline",
        "method": "gradient",
        "skipped": None,
        "clean_rougeL": 0.4,
        "attacked_rougeL": 0.3,
        "relative_drop": 0.25,
        "loss_increase": 0.5,
        "clean_loss": 2.0,
    }
    return HotFlipRecord(**record | values)


@pytest.fixture(scope="module", autouse=True)
def _small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "BLOCK_SIZE", 3)
        patch.setattr(search, "RACE_EXAMPLES", 4)
        patch.setattr(search, "CONFIRM_EXAMPLES", 8)
        yield


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> Sections:
    home = tmp_path_factory.mktemp("hotflip")
    sections = _attack(MODELS, home)
    for key in MODELS:
        sections |= flips_of_others(CONTEXT, _load(key), sections, HOTFLIP, cache_dir=home / "transfer")
    return sections


def _attack(models: tuple[str, ...], home: Path, shard: tuple[int, int] = (0, 1)) -> Sections:
    """Attack and controls on each model, as stage 6 does it."""
    plan = HotFlipPlan.of(CONTEXT, world.planted_examples(8), CONTROLS, shard)
    sections: Sections = {}
    for key in models:
        cache_dir = cache.shard_dir(home, shard) / key
        sections |= attack_with_controls(CONTEXT, _load(key), plan, HOTFLIP, CONTROLS, cache_dir=cache_dir)
    return sections


@pytest.fixture(scope="module")
def results(sections: Sections) -> HotFlipResults:
    return hotflip_results(sections, MODELS, threshold=0.15, **CI)


def test_summary_by_hand() -> None:
    records = [
        _record(),
        _record(id="b", relative_drop=0.15, loss_increase=1.5),
        _record(id="c", relative_drop=-0.2, attacked_rougeL=0.48, loss_increase=0.1),
        _record(id="d", skipped="empty_article"),
    ]
    found = summarise(records, threshold=0.15, **CI)
    assert found.num_attackable == 3 and found.num_skipped == 1 and found.skipped == {"empty_article": 1}
    assert found.mean_degradation == pytest.approx(0.2 / 3)
    assert found.success_rate == pytest.approx(2 / 3) and found.improved_rate == pytest.approx(1 / 3)
    assert found.mean_loss_increase == pytest.approx(0.7)
    assert found.success_by_threshold["0.25"] == pytest.approx(1 / 3)
    assert found.success_by_threshold["0.30"] == 0
    low, high = found.success_rate_ci
    assert 0 < low < 2 / 3 < high < 1


def test_nothing_attackable_is_said_not_crashed_on() -> None:
    found = summarise([_record(skipped="empty_article")], threshold=0.15, **CI)
    assert found.success_rate is None and found.num_attackable == 0
    assert worst_case([], threshold=0.15).success_rate is None


def test_worst_case_is_taken_example_by_example() -> None:
    """Of every attack on the model, flips of others included; not of what is no attack, nor of another model's."""
    sections = {
        SectionKey("attack", "baseline"): [("a", 0.5, 0.1), ("b", 0.0, 0.2)],
        SectionKey("greedy", "baseline"): [("a", 0.0, 0.9), ("b", 0.1, 0.1)],
        SectionKey("transfer", "baseline", source="monotonic"): [("a", 0.2, 0.3), ("b", 0.3, 0.0)],
        SectionKey("all_replaced", "baseline"): [("a", 0.99, 5.0), ("b", 0.99, 5.0)],
        SectionKey("attack", "monotonic"): [("a", 0.9, 4.0), ("b", 0.9, 4.0)],
    }
    records = {
        key: [_record(id=name, relative_drop=drop, loss_increase=rise) for name, drop, rise in rows]
        for key, rows in sections.items()
    }
    found = {record.id: record for record in strongest(records, "baseline", MODELS)}
    assert {name: (record.relative_drop, record.loss_increase) for name, record in found.items()} == {
        "a": (0.5, 0.9),
        "b": (0.3, 0.2),
    }
    worst = worst_case(list(found.values()), threshold=0.15)
    assert (worst.num_attackable, worst.success_rate) == (2, 1.0) and worst.mean_degradation == pytest.approx(0.4)


def test_every_section_covers_every_example(sections: Sections) -> None:
    for name, records in sections.items():
        assert len(records) == {"double": 1, "long": 5}.get(name.part, 8), name
    names = {name.part for name in sections}
    assert names == {
        "attack",
        "own_output",
        "metric",
        "word_importance",
        "random_metric",
        "reference_words",
        "protected",
        "typo",
        "unchanged",
        "ceiling",
        "greedy",
        "double",
        "random",
        "one_shot",
        "all_replaced",
        "long",
        "transfer",
    }


def test_results_come_from_the_records_alone(sections: Sections, results: HotFlipResults) -> None:
    text = "\n".join(json.dumps(row, allow_nan=False) for row in rows_of(sections))
    rows = [json.loads(line) for line in text.splitlines()]
    again = sections_of(from_json(hotflip_row(row["section"]), row) for row in rows)
    assert hotflip_results(again, MODELS, threshold=0.15, **CI) == results
    lean = {name: [record.without_texts() for record in records] for name, records in again.items()}
    assert hotflip_results(lean, MODELS, threshold=0.15, **CI) == results  # what verification keeps in memory
    assert from_json(HotFlipResults, json.loads(json.dumps(to_json(results), allow_nan=False))) == results
    assert decoded(encoded(sections), hotflip_row) == sections


def test_the_contract_of_hotflip_results(results: HotFlipResults) -> None:
    written = to_json(results)
    for key in MODELS:
        for name in ("mean_degradation", "success_rate", "num_attackable", "num_skipped", "mean_loss_increase"):
            assert name in written[key]
        for target in MODELS:
            assert "success_rate" in written["transfer_matrix"][key][target]
        assert results.transfer_matrix[key][key].success_rate == results.models[key].success_rate
    main = results.comparisons.baseline_vs_monotonic
    assert all(0 <= test.p_value_holm <= 1 for test in (main.success, main.relative_drop, main.loss_increase))
    baseline = results.models["baseline"]
    assert len(baseline.budget_curve) == 2
    assert baseline.success_rate == baseline.budget_curve[-1].success_rate
    assert baseline.controls["random"].num_attackable == baseline.num_attackable
    assert baseline.mean_loss_increase > baseline.controls["random"].mean_loss_increase
    assert baseline.worst_case.success_rate >= baseline.success_rate


def test_fidelity_is_spearman_of_predicted_and_actual_gain(sections: Sections, results: HotFlipResults) -> None:
    live = attackable(sections[SectionKey("attack", "baseline")])
    pairs = np.array([pair for record in live for pair in record.search.fidelity_pairs])
    expected = spearmanr(pairs[:, 0], pairs[:, 1]).statistic
    assert results.models["baseline"].taylor_fidelity_spearman.pooled == pytest.approx(expected)
    assert len(pairs) == results.models["baseline"].taylor_fidelity_spearman.pairs > 0


def test_transfer_replays_the_very_ids(sections: Sections) -> None:
    source = {record.id: record for record in sections[SectionKey("attack", "monotonic")]}
    live = attackable(sections[SectionKey("transfer", "baseline", source="monotonic")])
    assert live
    model = world.planted_model()
    for record in live:
        ids, labels = source[record.id].attacked_ids, source[record.id].labels
        with torch.no_grad():
            loss = float(model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss)
        assert record.attacked_loss == pytest.approx(loss, abs=1e-4)


def test_the_budget_grows_until_nothing_is_left(sections: Sections, results: HotFlipResults) -> None:
    own = {record.id: record for record in sections[SectionKey("attack", "baseline")]}
    live = attackable(sections[SectionKey("long", "baseline")])
    assert live
    start = len(TOKENIZER("summarize: ", add_special_tokens=False)["input_ids"])
    for record in live:
        clean, flips = np.array(own[record.id].clean_ids), record.num_flips
        assert record.inputs[0] == own[record.id].attacked_ids and record.budgets[:3] == [2, 4, 8]
        assert record.budgets[-1] is None and record.budgets[-2] < record.tokens
        assert all(later >= earlier - 1e-5 for earlier, later in pairwise(record.losses))
        for budget, count, ids, loss in zip(record.budgets, flips, record.inputs, record.losses, strict=True):
            changed = np.flatnonzero(np.array(ids) != clean)
            assert len(changed) == count <= (budget or len(clean))
            assert set(changed.tolist()) <= set(range(start, len(clean) - 1))
            assert TOKENIZER(TOKENIZER.decode(ids[:-1]))["input_ids"] == ids  # a person could type it
            assert loss == pytest.approx(_loss(ids, own[record.id].labels), abs=1e-3)
    curve = results.models["baseline"].long_budget_curve
    assert [point.flips for point in curve] == live[0].budgets
    assert curve[-1].success_rate == np.mean([record.drops[-1] >= 0.15 for record in live])
    assert curve[-1].success_rate >= curve[0].success_rate


def _loss(ids: list[int], labels: list[int]) -> float:
    with torch.no_grad():
        return float(world.planted_model()(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss)


def test_a_replay_that_was_stopped_goes_on(sections: Sections, tmp_path: Path) -> None:
    attacks, own = (
        attacked_inputs(sections[SectionKey("attack", "monotonic")]),
        sections[SectionKey("attack", "baseline")],
    )
    asked: list[int] = []
    stop = {"stop_requested": lambda: bool(asked.append(1)) or len(asked) == 3, "generation_tokens": 60}
    arguments = (attacks, own)
    typable = typable_by_id(sections[SectionKey("attack", "monotonic")])
    how = {"name": "flips", "threshold": 0.15, "cache_dir": tmp_path, "typable": typable}
    with pytest.raises(Interrupted):
        replay(replace(CONTEXT, **stop), _load("baseline"), *arguments, **how)
    (file,) = tmp_path.glob("*.jsonl")
    before = file.read_text()
    assert len(before.splitlines()) > 1
    records = replay(
        replace(CONTEXT, **(stop | {"stop_requested": lambda: False})), _load("baseline"), *arguments, **how
    )
    assert file.read_text().startswith(before)  # what was done was not done again
    assert records == [
        replace(r, method="flips") for r in sections[SectionKey("transfer", "baseline", source="monotonic")]
    ]


def test_control_arms_change_nothing_in_the_figures_of_the_three(sections: Sections, results: HotFlipResults) -> None:
    def named(key: SectionKey) -> SectionKey:
        return SectionKey.parse(str(key).replace("standard", "sign_frozen"))

    of_standard = [key for key in sections if "standard" in (key.model, key.source)]
    more = dict(sections) | {named(key): sections[key] for key in of_standard}
    for key in (*MODELS, "sign_frozen"):
        for a, b in ((key, "sign_frozen"), ("sign_frozen", key)):
            more[SectionKey("transfer", b, source=a)] = sections[SectionKey("attack", "baseline")]
    found = hotflip_results(more, (*MODELS, "sign_frozen"), threshold=0.15, **CI)
    assert {key: found.models[key] for key in MODELS} == results.models
    assert found.comparisons.baseline_vs_monotonic == results.comparisons.baseline_vs_monotonic
    assert "sign_frozen" in found.transfer_matrix["baseline"]


def test_shards_join_to_the_whole(sections: Sections, tmp_path: Path) -> None:
    joined: Sections = {}
    for shard in range(2):
        part = _attack(("baseline",), tmp_path, (shard, 2))
        for name, records in part.items():
            joined.setdefault(name, []).extend(records)
    for name in {key.part for key in part}:
        key = SectionKey(name, "baseline")
        whole = {r.id: r for r in sections[key]}
        assert {r.id for r in joined[key]} == set(whole)
        for record in joined[key]:
            same = whole[record.id]
            for field in ("skipped", "attacked_rougeL", "attacked_ids", "losses", "rougeL", "inputs"):
                assert getattr(record, field, None) == getattr(same, field, None), (name, field)
            if getattr(record, "search", None):
                assert record.search.losses == same.search.losses, name


def test_controls_have_the_same_budget() -> None:
    items = CONTEXT.encode(world.planted_examples(4))
    for item in items:
        for flips in random_sets(CONTEXT.legal, item, num_flips=5, draws=4, rng=np.random.default_rng(0)):
            assert len({flip.position for flip in flips}) == 5
        changed = all_replaced(CONTEXT.legal, item, np.random.default_rng(0))
        assert list(changed[: item.start]) == list(item.ids[: item.start]) and changed[-1] == item.ids[-1]
    attacked = one_shot(Objective(world.planted_model(), batch_tokens=4096), CONTEXT.legal, items, num_flips=3)
    for item, ids in zip(items, attacked, strict=True):
        changed = [p for p, (a, b) in enumerate(zip(item.ids, ids, strict=True)) if a != b]
        assert len(changed) == 3 and set(changed) <= set(item.attackable)


def _triggers(settings: TriggerSettings, home: Path, models: tuple[str, ...]) -> Sections:
    """Triggers searched on each model and measured on all, as stage 5 does it."""
    searched: Sections = {}
    for key in models:
        searched |= search_triggers(CONTEXT, _load(key), settings.types, world.planted_examples(12), settings,
                                    cache_dir=home / key, gradient_free_types=("lead",))  # fmt: skip
    sections = dict(searched)
    for key in models:
        examples = world.planted_examples(6, seed=3)
        sections |= measure_triggers(CONTEXT, _load(key), searched, examples, settings, cache_dir=home / key)
    return sections


def test_triggers_end_to_end(tmp_path: Path) -> None:
    settings = TriggerSettings(types=("lead", "infix"), iterations=4, restarts=2, candidates=8, gradient_examples=4,
                               dev_every=2, random_controls=4)  # fmt: skip
    models = ("baseline", "monotonic")
    whole = _triggers(settings, tmp_path / "whole", models)
    results = trigger_results(whole, models, settings.types, threshold=0.15, **CI)
    written = json.loads(json.dumps(to_json(results), allow_nan=False))
    for key in models:
        assert from_json(ModelTriggers, written[key]) == results.models[key]
    for key in models:
        for kind in settings.types:
            cell = results.models[key].types[kind]
            for name in ("trigger_text", "trigger_ids", "clean", "attacked", "delta_rougeL", "nll_increase"):
                assert name in written[key][kind]
            assert set(written[key][kind]["clean"]["rougeL"]) == {"mean", "lower", "upper"}
            assert cell.random_control.nll_increase is not None
            assert results.transfer_matrix[kind][key][key].nll_increase == cell.nll_increase
            half = whole.get(SectionKey("halfway", key, kind))
            assert (half is not None) == (cell.halfway_trigger_ids not in ([], cell.trigger_ids))
            assert (cell.halfway is None) == (half is None)
            if half:
                rises = [[r.loss_increase for r in attackable(rows)]
                         for rows in (half, whole[SectionKey("attack", key, kind, key)])]  # fmt: skip
                assert cell.halfway.nll_change == pytest.approx(np.mean(rises[1]) - np.mean(rises[0]))
        types = results.models[key].types
        assert types["lead"].gradient_free_control and types["infix"].gradient_free_control is None
        per_example = results.models[key].worst.per_example
        assert (
            per_example.delta_rougeL is None
            or per_example.delta_rougeL <= min(types[kind].delta_rougeL for kind in settings.types) + 1e-9
            or types["lead"].num_skipped > 0
        )
    assert 0 <= results.comparisons["lead"].nll_increase.p_value_holm <= 1
    rows = list(csv.DictReader(io.StringIO(learned_triggers_csv(results))))
    assert list(rows[0]) == ["model", "trigger_type", "trigger_text", "trigger_ids"] and len(rows) == 4
    for row in rows:
        ids = [int(i) for i in row["trigger_ids"].split()]
        assert TOKENIZER(row["trigger_text"], add_special_tokens=False)["input_ids"] == ids

    joined: Sections = {}
    for trigger_type in settings.types:  # as tasks of a job array deal them out
        joined |= _triggers(replace(settings, types=(trigger_type,)), tmp_path / "parts", models)
    assert set(joined) == set(whole)
    for name in whole:
        if not name.part.endswith("search"):
            assert joined[name] == whole[name], name

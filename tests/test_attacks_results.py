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
from utils.analysis.attack_warnings import doubling_matters, hotflip_flags, trigger_flags
from utils.analysis.hotflip_summary import summarise, worst_case
from utils.attacks import cache
from utils.attacks.context import Victim
from utils.attacks.hotflip.attack import HotFlipSettings
from utils.attacks.hotflip.controls import all_replaced, one_shot, random_sets
from utils.attacks.hotflip.experiment import (
    ControlSettings,
    Sections,
    hotflip_results,
    hotflip_sections,
    rows_of,
    sections_of,
)
from utils.attacks.objective import Objective
from utils.attacks.transfer import attacked_inputs, replay
from utils.attacks.triggers import search
from utils.attacks.triggers.experiment import learned_triggers_csv, trigger_results, trigger_sections
from utils.attacks.triggers.search import TriggerSettings
from utils.core.errors import Interrupted

TOKENIZER = world.tokenizer()
CONTEXT = world.attack_context(TOKENIZER)
MODELS = ("standard", "baseline", "monotonic")
HOTFLIP = HotFlipSettings(num_flips=2, candidates=6, random_candidates=2)
CONTROLS = ControlSettings(random_draws=3, convergence_examples=4, long_examples=5)
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


def _record(**values: object) -> dict:
    record = {
        "id": "a",
        "skipped": None,
        "clean_rouge": 0.4,
        "attacked_rouge": 0.3,
        "relative_drop": 0.25,
        "loss_increase": 0.5,
        "clean_loss": 2.0,
    }
    return record | values


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
    return hotflip_sections(CONTEXT, _load, MODELS, world.planted_examples(8), HOTFLIP, CONTROLS, cache_dir=home)


@pytest.fixture(scope="module")
def results(sections: Sections) -> dict:
    return hotflip_results(sections, MODELS, HOTFLIP, **CI)


def test_summary_by_hand() -> None:
    records = [
        _record(),
        _record(id="b", relative_drop=0.15, loss_increase=1.5),
        _record(id="c", relative_drop=-0.2, attacked_rouge=0.48, loss_increase=0.1),
        _record(id="d", skipped="empty_article"),
    ]
    found = summarise(records, threshold=0.15, **CI)
    assert found["num_attackable"] == 3 and found["num_skipped"] == 1 and found["skipped"] == {"empty_article": 1}
    assert found["mean_degradation"] == pytest.approx(0.2 / 3)
    assert found["success_rate"] == pytest.approx(2 / 3) and found["improved_rate"] == pytest.approx(1 / 3)
    assert found["mean_loss_increase"] == pytest.approx(0.7)
    assert found["success_by_threshold"]["0.25"] == pytest.approx(1 / 3)
    assert found["success_by_threshold"]["0.30"] == 0
    low, high = found["success_rate_ci"]
    assert 0 < low < 2 / 3 < high < 1


def test_nothing_attackable_is_said_not_crashed_on() -> None:
    found = summarise([_record(skipped="empty_article")], threshold=0.15, **CI)
    assert found["success_rate"] is None and found["num_attackable"] == 0
    assert worst_case([[_record(skipped="empty_article")]], threshold=0.15)["success_rate"] is None


def test_worst_case_is_taken_example_by_example() -> None:
    first = [_record(id="a", relative_drop=0.5), _record(id="b", relative_drop=0.0)]
    second = [_record(id="a", relative_drop=0.0), _record(id="b", relative_drop=0.3)]
    assert worst_case([first, second], threshold=0.15) == {
        "num_attackable": 2,
        "success_rate": 1.0,
        "mean_degradation": pytest.approx(0.4),
    }


def test_every_section_covers_every_example(sections: Sections) -> None:
    for name, records in sections.items():
        assert len(records) == {"double": 1, "long": 5}.get(name.split("/")[0], 8), name
    names = {name.split("/")[0] for name in sections}
    assert names == {
        "attack",
        "greedy",
        "double",
        "random",
        "one_shot",
        "all_replaced",
        "long",
        "transfer",
    }


def test_results_come_from_the_records_alone(sections: Sections, results: dict) -> None:
    text = "\n".join(json.dumps(row, allow_nan=False) for row in rows_of(sections))
    again = sections_of([json.loads(line) for line in text.splitlines()])
    assert hotflip_results(again, MODELS, HOTFLIP, **CI) == results
    json.dumps(results, allow_nan=False)


def test_the_contract_of_hotflip_results(results: dict) -> None:
    for key in MODELS:
        for name in ("mean_degradation", "success_rate", "num_attackable", "num_skipped", "mean_loss_increase"):
            assert name in results[key]
        for target in MODELS:
            assert "success_rate" in results["transfer_matrix"][key][target]
        assert results["transfer_matrix"][key][key]["success_rate"] == results[key]["success_rate"]
    main = results["comparisons"]["baseline_vs_monotonic"]
    assert {"success", "relative_drop", "loss_increase"} <= set(main)
    assert all(0 <= main[name]["p_value_holm"] <= 1 for name in ("success", "relative_drop", "loss_increase"))
    baseline = results["baseline"]
    assert len(baseline["budget_curve"]) == 2
    assert baseline["success_rate"] == baseline["budget_curve"][-1]["success_rate"]
    assert baseline["controls"]["random"]["num_attackable"] == baseline["num_attackable"]
    assert baseline["mean_loss_increase"] > baseline["controls"]["random"]["mean_loss_increase"]
    assert baseline["worst_case"]["success_rate"] >= baseline["success_rate"]


def test_fidelity_is_spearman_of_predicted_and_actual_gain(sections: Sections, results: dict) -> None:
    live = [r for r in sections["attack/baseline"] if r["skipped"] is None]
    pairs = np.array([pair for record in live for pair in record["fidelity_pairs"]])
    expected = spearmanr(pairs[:, 0], pairs[:, 1]).statistic
    assert results["baseline"]["taylor_fidelity_spearman"]["pooled"] == pytest.approx(expected)
    assert len(pairs) == results["baseline"]["taylor_fidelity_spearman"]["pairs"] > 0


def test_transfer_replays_the_very_ids(sections: Sections) -> None:
    source = {record["id"]: record for record in sections["attack/monotonic"]}
    live = [r for r in sections["transfer/monotonic/baseline"] if r["skipped"] is None]
    assert live
    model = world.planted_model()
    for record in live:
        ids, labels = source[record["id"]]["adv_ids"], source[record["id"]]["labels"]
        with torch.no_grad():
            loss = float(model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss)
        assert record["adv_loss"] == pytest.approx(loss, abs=1e-4)


def test_the_budget_grows_until_nothing_is_left(sections: Sections, results: dict) -> None:
    own = {record["id"]: record for record in sections["attack/baseline"]}
    live = [record for record in sections["long/baseline"] if record["skipped"] is None]
    assert live
    start = len(TOKENIZER("summarize: ", add_special_tokens=False)["input_ids"])
    for record in live:
        clean, flips = np.array(own[record["id"]]["clean_ids"]), record["num_flips"]
        assert record["inputs"][0] == own[record["id"]]["adv_ids"] and record["budgets"][:3] == [2, 4, 8]
        assert record["budgets"][-1] is None and record["budgets"][-2] < record["tokens"]
        assert all(later >= earlier - 1e-5 for earlier, later in pairwise(record["losses"]))
        for budget, count, ids, loss in zip(record["budgets"], flips, record["inputs"], record["losses"], strict=True):
            changed = np.flatnonzero(np.array(ids) != clean)
            assert len(changed) == count <= (budget or len(clean))
            assert set(changed.tolist()) <= set(range(start, len(clean) - 1))
            assert TOKENIZER(TOKENIZER.decode(ids[:-1]))["input_ids"] == ids  # a person could type it
            assert loss == pytest.approx(_loss(ids, own[record["id"]]["labels"]), abs=1e-3)
    curve = results["baseline"]["long_budget_curve"]
    assert [point["flips"] for point in curve] == live[0]["budgets"]
    assert curve[-1]["success_rate"] == np.mean([record["drops"][-1] >= 0.15 for record in live])
    assert curve[-1]["success_rate"] >= curve[0]["success_rate"]


def _loss(ids: list[int], labels: list[int]) -> float:
    with torch.no_grad():
        return float(world.planted_model()(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss)


def test_a_replay_that_was_stopped_goes_on(sections: Sections, tmp_path: Path) -> None:
    attacks, own = attacked_inputs(sections["attack/monotonic"]), sections["attack/baseline"]
    asked: list[int] = []
    stop = {"stop_requested": lambda: bool(asked.append(1)) or len(asked) == 3, "generation_tokens": 60}
    arguments = (attacks, own)
    how = {"name": "flips", "threshold": 0.15, "cache_dir": tmp_path}
    with pytest.raises(Interrupted):
        replay(replace(CONTEXT, **stop), _load("baseline"), *arguments, **how)
    (file,) = tmp_path.glob("*.jsonl")
    before = file.read_text()
    assert len(before.splitlines()) > 1
    records = replay(
        replace(CONTEXT, **(stop | {"stop_requested": lambda: False})), _load("baseline"), *arguments, **how
    )
    assert file.read_text().startswith(before)  # what was done was not done again
    assert records == [{**r, "method": "flips"} for r in sections["transfer/monotonic/baseline"]]


def test_control_arms_change_nothing_in_the_figures_of_the_three(sections: Sections, results: dict) -> None:
    def named(key: str) -> str:
        return key.replace("standard", "sign_frozen")

    more = dict(sections) | {named(name): rows for name, rows in sections.items() if "standard" in name}
    for key in (*MODELS, "sign_frozen"):
        more |= {
            f"transfer/{a}/{b}": sections["attack/baseline"] for a, b in ((key, "sign_frozen"), ("sign_frozen", key))
        }
    found = hotflip_results(more, (*MODELS, "sign_frozen"), HOTFLIP, **CI)
    assert {key: found[key] for key in MODELS} == {key: results[key] for key in MODELS}
    assert found["comparisons"]["baseline_vs_monotonic"] == results["comparisons"]["baseline_vs_monotonic"]
    assert "sign_frozen" in found["transfer_matrix"]["baseline"]


def test_shards_join_to_the_whole(sections: Sections, tmp_path: Path) -> None:
    examples = world.planted_examples(8)
    joined: Sections = {}
    for shard in range(2):
        part = hotflip_sections(
            CONTEXT, _load, ("baseline",), examples, HOTFLIP, CONTROLS, cache_dir=tmp_path, shard=(shard, 2)
        )
        for name, records in part.items():
            joined.setdefault(name, []).extend(records)
    for name in ("attack", "greedy", "random", "one_shot", "all_replaced", "double", "long"):
        name += "/baseline"
        whole = {r["id"]: r for r in sections[name]}
        assert {r["id"] for r in joined[name]} == set(whole)
        for record in joined[name]:
            for field in ("skipped", "attacked_rouge", "adv_ids", "losses", "inputs"):
                assert record.get(field) == whole[record["id"]].get(field), (name, field)


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


def _verdicts(**values: object) -> set[str]:
    """The flags of a model that is fine but for `values`."""
    own = {
        "success_rate": 0.5,
        "mean_loss_increase": 1.0,
        "num_attackable": 100,
        "zero_gradient_count": 0,
        "taylor_fidelity_spearman": {"mean": 0.5},
        "budget_curve": [{"success_rate": r} for r in (0.2, 0.4, 0.5)],
        "controls": {
            "random": {"success_rate": 0.2, "mean_loss_increase": 0.2, "num_attackable": 100},
            "greedy": {"success_rate": 0.4, "mean_loss_increase": 0.7, "num_attackable": 100},
            "all_replaced": {"success_rate": 0.99, "mean_loss_increase": 3.0, "num_attackable": 100},
        },
    }
    own |= values
    weak = {"success_rate": 0.1, "mean_loss_increase": 0.1, "num_attackable": 100}
    tests = {
        "random": {"loss_increase": {"difference": own["mean_loss_increase"] - 0.2}},
        "double": {
            "num_common": 50,
            "success": {"difference": values.get("doubled", 0.0)},
            "loss_increase": {"mean_a": values.get("doubled_loss", 1.0), "mean_b": 1.0},
        },
    }
    fine = {"success_rate": 0.5, "mean_loss_increase": 1.0, "num_attackable": 100, "controls": {}}
    results = {
        "baseline": fine,
        "monotonic": own,
        "transfer_matrix": {"baseline": {"monotonic": values.get("transfer", weak)}, "monotonic": {"baseline": weak}},
        "comparisons": {"attack_minus_control": {"monotonic": tests, "baseline": {}}},
    }
    flags = hotflip_flags(results, ["baseline", "monotonic"])
    assert all(flag["model"] == "monotonic" and flag["message"] for flag in flags)
    return {flag["flag"] for flag in flags}


def _trigger_verdicts(**values: object) -> list[dict]:
    cell = {"trigger_ids": [5], "nll_increase": 1.0, "converged": True, "halfway": None} | values
    results = {"baseline": {"lead": cell}, "transfer_matrix": {"lead": {"baseline": {"baseline": {}}}}}
    return trigger_flags(results, ["baseline"])


def test_two_points_of_success_from_twice_the_iterations_are_not_converged() -> None:
    assert _trigger_verdicts() == []
    half = {"num_common": 100, "success_change": 0.03, "nll_change": 0.2}
    assert doubling_matters(half) and not doubling_matters(half | {"success_change": 0.01})
    assert not doubling_matters(half | {"num_common": 20})  # one example is five points there
    (flag,) = _trigger_verdicts(converged=False, halfway=half)
    assert flag["flag"] == "not_converged" and "lead (success +3.0%, NLL +0.200)" in flag["message"]


def test_a_sound_attack_raises_no_flag() -> None:
    assert _verdicts() == set()


def test_each_warning_has_its_cause() -> None:
    greedy = {"success_rate": 0.6, "mean_loss_increase": 0.9, "num_attackable": 100}
    assert _verdicts(controls={"greedy": greedy}) == {"possibly_masked_gradients"}
    transfer = {"success_rate": 0.6, "mean_loss_increase": 0.9, "num_attackable": 100}
    assert _verdicts(transfer=transfer) == {"possibly_masked_gradients"}
    assert _verdicts(zero_gradient_count=50) == {"zero_gradients"}
    assert _verdicts(taylor_fidelity_spearman={"mean": 0.02}) == {"low_taylor_fidelity"}
    assert _verdicts(budget_curve=[{"success_rate": r} for r in (0.6, 0.5)]) == {"budget_not_monotone"}
    assert _verdicts(doubled=-0.1) == {"not_converged"}
    assert _verdicts(doubled_loss=1.2) == {"not_converged"}
    all_replaced_cell = {"success_rate": 0.3, "mean_loss_increase": 3.0, "num_attackable": 100}
    assert _verdicts(controls={"all_replaced": all_replaced_cell}) == {"no_collapse"}
    long = [{"flips": f, "success_rate": s, "num_examples": 100} for f, s in ((5, 0.5), (10, 0.8), (None, 0.97))]
    assert _verdicts(long_budget_curve=long) == set()
    assert _verdicts(long_budget_curve=[*long[:2], {**long[2], "success_rate": 0.6}]) == {
        "budget_not_monotone",
        "no_collapse",
    }
    assert "nothing_attackable" in _verdicts(num_attackable=0)


def test_triggers_end_to_end(tmp_path: Path) -> None:
    settings = TriggerSettings(types=("lead", "infix"), iterations=4, restarts=2, candidates=8, gradient_examples=4,
                               dev_every=2, random_controls=4)  # fmt: skip
    models = ("baseline", "monotonic")
    arguments = (CONTEXT, _load, models, world.planted_examples(12), world.planted_examples(6, seed=3), settings)
    free = {"gradient_free_types": ("lead",)}
    whole = trigger_sections(*arguments, cache_dir=tmp_path / "whole", **free)
    results = trigger_results(whole, models, settings, **CI)
    json.dumps(results, allow_nan=False)
    for key in models:
        for kind in settings.types:
            cell = results[key][kind]
            for name in ("trigger_text", "trigger_ids", "clean", "attacked", "delta_rougeL", "nll_increase"):
                assert name in cell
            assert set(cell["clean"]["rougeL"]) == {"mean", "lower", "upper"}
            assert "success_rate" in cell and cell["random_control"]["nll_increase"] is not None
            assert results["transfer_matrix"][kind][key][key]["nll_increase"] == cell["nll_increase"]
            half = whole.get(f"halfway/{kind}/{key}")
            assert (half is not None) == (cell["halfway_trigger_ids"] not in ([], cell["trigger_ids"]))
            assert (cell["halfway"] is None) == (half is None)
            if half:
                rises = [[r["loss_increase"] for r in rows if r["skipped"] is None]
                         for rows in (half, whole[f"attack/{kind}/{key}/{key}"])]  # fmt: skip
                assert cell["halfway"]["nll_change"] == pytest.approx(np.mean(rises[1]) - np.mean(rises[0]))
        assert "gradient_free_control" in results[key]["lead"] and "gradient_free_control" not in results[key]["infix"]
        per_example = results[key]["worst"]["per_example"]
        assert (
            per_example["delta_rougeL"] is None
            or per_example["delta_rougeL"] <= min(results[key][kind]["delta_rougeL"] for kind in settings.types) + 1e-9
            or results[key]["lead"]["num_skipped"] > 0
        )
    assert 0 <= results["comparisons"]["lead"]["nll_increase"]["p_value_holm"] <= 1
    rows = list(csv.DictReader(io.StringIO(learned_triggers_csv(results, models, settings.types))))
    assert list(rows[0]) == ["model", "trigger_type", "trigger_text", "trigger_ids"] and len(rows) == 4
    for row in rows:
        ids = [int(i) for i in row["trigger_ids"].split()]
        assert TOKENIZER(row["trigger_text"], add_special_tokens=False)["input_ids"] == ids

    joined: Sections = {}
    for shard in range(2):
        joined |= trigger_sections(*arguments, cache_dir=tmp_path / "parts", shard=(shard, 2), **free)
    assert set(joined) == set(whole)
    for name in whole:
        if not name.split("/")[0].endswith("search"):
            assert joined[name] == whole[name], name

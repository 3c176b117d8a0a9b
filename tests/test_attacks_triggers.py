"""Universal triggers: a planted one is found, chance does not find it, and runs are repeatable and resumable."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import attack_world as world
from utils.attacks.context import AttackContext, Victim
from utils.attacks.encoding import LOW_CLEAN_ROUGE, Example
from utils.attacks.objective import Objective
from utils.attacks.triggers import search
from utils.attacks.triggers.candidates import token_pool
from utils.attacks.triggers.evaluation import clean_side, evaluate_trigger
from utils.attacks.triggers.experiment import with_own_output
from utils.attacks.triggers.inputs import TriggerExample, trigger_examples
from utils.attacks.triggers.objective import TriggerObjective, slot_gains
from utils.attacks.triggers.search import TriggerSettings, optimise_trigger, split_examples
from utils.core.codec import to_json
from utils.core.errors import Interrupted, StageError, UsageError
from utils.core.names import TRIGGER_TYPES

pytestmark = pytest.mark.slow

TOKENIZER = world.tokenizer()
CONTEXT = world.attack_context(TOKENIZER)
SETTINGS = TriggerSettings(
    iterations=15,
    restarts=4,
    candidates=24,
    gradient_examples=8,
    dev_every=2,
    random_controls=10,
)


@pytest.fixture(autouse=True)
def _few_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "RACE_EXAMPLES", 8)
    monkeypatch.setattr(search, "CONFIRM_EXAMPLES", 8)


def _with_room(examples: list[Example]) -> list[TriggerExample]:
    return trigger_examples(CONTEXT, examples, 5)


def _victim() -> Victim:
    return Victim("standard", world.planted_model(), "planted")


def _optimise(
    kind: str,
    state: Path,
    *,
    context: AttackContext = CONTEXT,
    settings: TriggerSettings = SETTINGS,
    batch_tokens: int = 4096,
) -> dict:
    objective = Objective(world.planted_model(), batch_tokens=batch_tokens)
    items = _with_room(world.planted_examples(40))
    return optimise_trigger(context, _victim(), objective, items, kind, settings, state_file=state)


def _planted_gain(kind: str) -> float:
    """What the planted words alone do to the dev part."""
    _, dev = split_examples(_with_room(world.planted_examples(40)), SETTINGS.seed)
    trigger_objective = TriggerObjective(Objective(world.planted_model(), batch_tokens=4096), dev, kind, SETTINGS.seed)
    trigger = TOKENIZER(" ".join([*world.PLANTED, "be be be"]), add_special_tokens=False)["input_ids"]
    return float(
        trigger_objective.losses([trigger], range(len(dev)), "dev").mean() - trigger_objective.clean_losses().mean()
    )


@pytest.mark.parametrize("kind", TRIGGER_TYPES)
def test_a_planted_trigger_is_found(kind: str, tmp_path: Path) -> None:
    # One planted word alone does nothing, so nothing leads to the pair: a start has to have one of them by chance.
    found = _optimise(kind, tmp_path / "state.json", settings=replace(SETTINGS, restarts=10, iterations=20))
    planted = _planted_gain(kind)
    assert planted > 0.5
    assert found.dev_gain >= planted
    assert found.random_control.dev_gain < 0.6 * found.dev_gain
    assert set(world.PLANTED) <= {CONTEXT.view.text([i]).strip() for i in found.trigger_ids}
    harms = [found.random_control.dev_rouge_change, *(restart.dev_rouge_change for restart in found.restarts)]
    assert found.dev_rouge_change == min(harms) and found.by_loss.dev_gain >= found.restarts[0].dev_gain
    assert len(found.trigger_ids) == 5 and len(found.restarts) == 10
    assert TOKENIZER(found.trigger_text, add_special_tokens=False)["input_ids"] == found.trigger_ids
    json.dumps(to_json(found), allow_nan=False)


def test_the_trigger_spoils_summaries_it_never_saw(tmp_path: Path) -> None:
    found = _optimise("lead", tmp_path / "state.json")
    items = _with_room(
        [*world.planted_examples(12, seed=2), Example("empty", "", "re"), Example("other", "be bi", "xx")]
    )
    victim = _victim()
    clean = clean_side(CONTEXT, victim, items, cache_dir=tmp_path)
    records = evaluate_trigger(
        CONTEXT,
        victim,
        items,
        clean,
        trigger_type="lead",
        trigger=found.trigger_ids,
        source="standard",
        threshold=0.15,
        min_clean_rouge=0.05,
        seed=0,
        cache_dir=tmp_path,
    )
    live = [record for record in records if record.skipped is None]
    assert [record.skipped for record in records[-2:]] == ["empty_article", LOW_CLEAN_ROUGE]
    assert len(live) >= 10 and all(record.typable for record in live)
    assert np.mean([record.success for record in live]) >= 0.8
    assert np.mean([record.loss_increase for record in live]) > 0.7 * found.dev_gain
    for record, item in zip(records, items, strict=True):
        if record.skipped is None:
            typed = f"summarize: {found.trigger_text} {item.visible_text}"
            ids = TOKENIZER(typed, truncation=True, max_length=48, return_tensors="pt").input_ids
            with torch.no_grad():
                loss = victim.model(input_ids=ids, labels=torch.tensor([item.labels])).loss
            assert record.attacked_loss == pytest.approx(float(loss), abs=1e-3)


def test_own_output_is_attacked_without_the_reference(tmp_path: Path) -> None:
    examples = world.planted_examples(8)
    blind = [replace(example, summary="ba be") for example in examples]
    labels = []
    for name, some in (("a", examples), ("b", blind)):
        items = with_own_output(CONTEXT, _victim(), _with_room(some), done_file=tmp_path / name)
        labels.append([item.labels for item in items])
    assert labels[0] == labels[1] != [item.labels for item in _with_room(blind)]
    right = [a == b.labels for a, b in zip(labels[0], _with_room(examples), strict=True)]
    assert np.mean(right) > 0.8  # this model's own summaries are the references, nearly always


def test_the_incumbent_only_gives_way_to_paired_gains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "CONFIRM_EXAMPLES", 100)  # every train example in every comparison: an exact hill climb
    found = _optimise("tail", tmp_path / "state.json")
    for restart in range(2):
        losses = [point.loss[restart] for point in found.curve if point.loss[restart] is not None]
        assert all(b >= a - 1e-4 for a, b in pairwise(losses))


def test_a_second_run_and_a_resumed_run_are_the_same(tmp_path: Path) -> None:
    whole = _optimise("infix", tmp_path / "a.json")
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(Interrupted):
        _optimise("infix", tmp_path / "b.json", context=replace(CONTEXT, stop_requested=stop))
    assert json.loads((tmp_path / "b.json").read_text())["value"]["state"]["iteration"] == 3
    resumed = _optimise("infix", tmp_path / "b.json")
    assert replace(resumed, seconds=0) == replace(whole, seconds=0)
    assert _optimise("infix", tmp_path / "b.json") == resumed


@pytest.mark.parametrize("batch_tokens", [60, 400])
def test_batch_size_changes_nothing(batch_tokens: int, tmp_path: Path) -> None:
    settings = replace(SETTINGS, iterations=3)
    first = _optimise("lead", tmp_path / "a.json", settings=settings)
    second = _optimise("lead", tmp_path / "b.json", settings=settings, batch_tokens=batch_tokens)
    assert first.trigger_ids == second.trigger_ids
    assert first.dev_gain == pytest.approx(second.dev_gain, abs=1e-4)


def test_slot_gradients_are_those_of_the_slots() -> None:
    items = _with_room(world.planted_examples(3))
    objective = Objective(world.planted_model(), batch_tokens=4096)
    triggers = [[5, 6, 7, 8, 9], [50, 51, 52, 53, 54]]
    for kind in ("instruction", "tail", "infix"):
        trigger_objective = TriggerObjective(objective, items, kind, seed=0)
        gradients = trigger_objective.slot_gradients(triggers, [0, 1, 2], "moment")
        single = np.zeros_like(gradients)
        for t, trigger in enumerate(triggers):
            for row in range(3):
                place = trigger_objective.boundary(row, "moment")
                slot = items[row].slot(kind, place)
                kept = {}

                def use(rows: np.ndarray, ids: torch.Tensor, gradient: torch.Tensor, kept: dict = kept) -> None:
                    kept["gradient"] = gradient[0].numpy()

                objective.gradients(
                    [items[row].with_trigger(kind, trigger, place)], trigger_objective.targets, [row], use
                )
                single[t] += kept["gradient"][slot : slot + 5] / 3
        assert np.abs(gradients - single).max() <= 1e-3 * np.abs(single).max()


def test_slot_gains_are_those_of_every_token_against_the_one_in_the_slot() -> None:
    trigger_objective = TriggerObjective(
        Objective(world.planted_model(), batch_tokens=4096), _with_room(world.planted_examples(2)), "lead", 0
    )
    trigger, pool = [5, 6, 7, 8, 9], token_pool(CONTEXT.legal, "lead")
    gradients = np.random.default_rng(0).normal(size=(1, 5, 32)).astype(np.float32)
    (found,) = slot_gains(CONTEXT, trigger_objective, [trigger], gradients)
    table = trigger_objective.objective.embedding.detach().numpy()
    for slot, old in enumerate(trigger):
        assert found[slot] == pytest.approx((table[pool] - table[old]) @ gradients[0, slot], rel=1e-4, abs=1e-4)


def test_too_few_examples_are_refused(tmp_path: Path) -> None:
    items = _with_room([*world.planted_examples(1), Example("empty", "", "re")])
    objective = Objective(world.planted_model(), batch_tokens=4096)
    with pytest.raises(StageError, match="1 usable examples of 2"):
        optimise_trigger(CONTEXT, _victim(), objective, items, "lead", SETTINGS, state_file=tmp_path / "s.json")


def test_a_model_of_nans_is_an_error_for_people(tmp_path: Path) -> None:
    model = world.model(len(TOKENIZER) + 8)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    objective = Objective(model, batch_tokens=4096)
    items = _with_room(world.planted_examples(8))
    with pytest.raises(StageError, match="finite"):
        optimise_trigger(
            CONTEXT,
            Victim("standard", model, "nan"),
            objective,
            items,
            "lead",
            SETTINGS,
            state_file=tmp_path / "s.json",
        )


def test_settings_that_make_no_sense_are_refused() -> None:
    for values in ({"types": ("middle",)}, {"iterations": 0}, {"method": "x"}, {"restarts": 0}):
        with pytest.raises(UsageError):
            TriggerSettings(**values)  # type: ignore[arg-type]

"""A record of a search tells most things twice: whoever edits one of the two is named. Worked out by hand.

The text "the cat sat down" is read behind the prefix "sum: " as [9, 1, 2, 3, 4, 0]; the attack makes it "the dog sat
up": two of four tokens, [9, 1, 5, 3, 6, 0], with losses 1.0, 1.5, 2.25.
"""

from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from utils.analysis.quality_curve import QualityRow
from utils.analysis.records import (
    CeilingRecord,
    Flip,
    HotFlipRecord,
    LongBudgetRecord,
    RandomTrigger,
    SearchTrace,
    TriggerFound,
    TriggerSearch,
)
from utils.verification.searches import beyond, of_flips, of_quality, of_trigger

SETTINGS = {"HOTFLIP_NUM_FLIPS": 2, "CEILING_MOVES": 30, "TASK_PREFIX": "sum: ", "MAX_INPUT_LENGTH": 6}
WORDS = {"</s>": 0, "the": 1, "cat": 2, "sat": 3, "down": 4, "dog": 5, "up": 6, "sum:": 9, "?": 7}


def tokenizer() -> Tokenizer:
    made = Tokenizer(WordLevel(WORDS, unk_token="?"))
    made.pre_tokenizer = WhitespaceSplit()
    made.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    return made


def flip(position: int, old: int, new: int) -> Flip:
    return Flip(position=position, old=old, new=new, predicted_gain=None, actual_gain=0.5, random=False)


SEARCH = SearchTrace(
    losses=[1.0, 1.5, 2.25], budgets=[[], [[2, 5]], [[2, 5], [4, 6]]], flips=[flip(2, 2, 5), flip(4, 4, 6)],
    steps=[], queries=9, gradients=2, bad_losses=0, gradient_norm=None, zero_gradient=False, fidelity=None,
    fidelity_top=None, fidelity_pairs=[], seconds=0.1,
)  # fmt: skip
ATTACK = HotFlipRecord(
    section="attack/baseline", id="a", model="baseline", skipped=None, method="gradient", clean_loss=1.0,
    attacked_loss=2.25, relative_drop=0.5, num_flips=2, perturbed_share=0.5, attackable_positions=3,
    short_article=False, typable=True, clean_ids=[9, 1, 2, 3, 4, 0], attacked_ids=[9, 1, 5, 3, 6, 0],
    attacked_document="the dog sat up", budget_drop=[0.25, 0.5], search=SEARCH,
)  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        ({"attacked_ids": [9, 1, 5, 3, 4, 0]}, "search.flips are not"),
        ({"attacked_ids": [9, 1, 5, 3, 4, 0]}, "search.budgets do not end"),
        ({"search": replace(SEARCH, flips=[flip(2, 2, 5), flip(4, 3, 6)])}, "search.flips are not"),
        ({"search": replace(SEARCH, budgets=[[], [[2, 5]], [[2, 5]]])}, "search.budgets do not end"),
        ({"attacked_ids": [9, 2, 5, 3, 6, 0]}, "3 ids differ, HOTFLIP_NUM_FLIPS is 2"),
        ({"clean_loss": 1.1}, "clean_loss is 1.1, search.losses has 1.0"),
        ({"attacked_loss": 2.0}, "attacked_loss is 2.0, search.losses has 2.25"),
        ({"short_article": True}, "short_article is True with 3"),
        ({"perturbed_share": 0.4}, "perturbed_share is 0.4, 2 of 4"),
        ({"typable": False}, "typable is False, attacked_document is read as attacked_ids"),
        ({"attacked_document": "the dog sat down"}, "typable is True, attacked_document is not read"),
    ],
)
def test_a_search_that_contradicts_its_record_is_named(edit: dict[str, Any], named: str) -> None:
    assert not list(of_flips(ATTACK, SETTINGS, tokenizer()))
    assert any(named in line for line in of_flips(replace(ATTACK, **edit), SETTINGS, tokenizer()))


def test_a_text_beyond_the_limit_is_read_as_far_as_the_model_reads_it() -> None:
    assert not list(of_flips(replace(ATTACK, attacked_document="the dog sat up up"), SETTINGS, tokenizer()))
    own = replace(ATTACK, section="own_output/baseline", clean_loss=0.1, attacked_loss=0.2)  # of another target
    assert not list(of_flips(own, SETTINGS, tokenizer()))


LONG = LongBudgetRecord(
    section="long/baseline", id="a", model="baseline", skipped=None, tokens=4, budgets=[2, None], num_flips=[2, 3],
    losses=[2.25, 3.0], drops=[0.5, 0.75], inputs=[[9, 1, 5, 3, 6, 0], [9, 2, 5, 3, 6, 0]],
)  # fmt: skip
CEILING = CeilingRecord(
    section="ceiling/baseline", id="a", model="baseline", skipped=None, moves=30, every_move=True,
    best_loss_increase=0.75, found_loss_increase=0.5, summaries=5, best_drop=0.5, found_drop=0.25,
)  # fmt: skip


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (replace(LONG, drops=[0.25, 0.75]), "the first budget is not the attack's own"),
        (replace(LONG, losses=[2.0, 3.0]), "the first budget is not the attack's own"),
        (replace(LONG, num_flips=[2, 4]), "num_flips is [2, 4], [2, 3] ids differ"),
        (replace(LONG, budgets=[2, 2]), "budgets are [2, 2]"),
        (replace(LONG, tokens=5), "tokens is 5, by the attack's share they are 4"),
        (replace(CEILING, found_loss_increase=0.7), "by the first flip of the attack it is 0.500000"),
        (replace(CEILING, best_loss_increase=0.4), "best_loss_increase is below"),
        (replace(CEILING, found_drop=0.3), "the first flip by metric dropped 0.25"),
        (replace(CEILING, best_drop=0.2), "best_drop is below"),
        (replace(CEILING, moves=31), "CEILING_MOVES is 30"),
    ],
)
def test_what_goes_on_from_an_attack_begins_with_it(row: LongBudgetRecord | CeilingRecord, named: str) -> None:
    for right in (LONG, CEILING):
        assert not list(beyond(right, ATTACK, ATTACK, SETTINGS))
    assert any(named in line for line in beyond(row, ATTACK, ATTACK, SETTINGS))
    assert list(beyond(LONG, None, None, SETTINGS)) == ["there is no attack before it that it could be compared with"]


def found(ids: list[int], gain: float, change: float) -> TriggerFound:
    return TriggerFound(trigger_ids=ids, trigger_text="", dev_gain=gain, dev_rouge_change=change)


CHOSEN, STRONG = found([1, 2], 0.5, -0.3), found([3, 4], 0.75, -0.2)
RANDOM = RandomTrigger(trigger_ids=[5, 6], trigger_text="", dev_gain=0.1, dev_rouge_change=-0.1, dev_gain_mean=0,
                       draws=20)  # fmt: skip
TRIGGER = TriggerSearch(
    section="search/lead/baseline", trigger_type="lead", source="baseline", method="gradient", chosen_from="search",
    **vars(CHOSEN), by_loss=STRONG, restarts=[CHOSEN, STRONG], random_control=RANDOM, num_dev=4, iterations=1,
    halfway_trigger_ids=[], curve=[], converged=True, forward_rows=1, gradient_rows=1, seconds=0.1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        ({"dev_rouge_change": -0.9}, "none of those that were found"),
        ({"trigger_ids": [7, 8]}, "none of those that were found"),
        (vars(STRONG), "another trigger that was found does more harm"),
        ({"by_loss": CHOSEN}, "by_loss is not"),
        ({"chosen_from": "random"}, "chosen_from is random"),
        (vars(RANDOM) | {"chosen_from": "search"}, "chosen_from is search"),
        ({"by_loss": replace(STRONG, trigger_ids=[3])}, "TRIGGER_LENGTH = 2"),
    ],
)
def test_a_trigger_is_the_most_harmful_one_that_was_found(edit: dict[str, Any], named: str) -> None:
    assert not list(of_trigger(TRIGGER, 2))
    edit = {name: value for name, value in edit.items() if name not in ("dev_gain_mean", "draws")}
    assert any(named in line for line in of_trigger(replace(TRIGGER, **edit), 2))


def snapshot(step: int, name: str, rouge: float, success: bool | None = True, arm: str = "baseline") -> QualityRow:
    lost = None if success is None else 0.3
    return QualityRow(arm=arm, step=step, epoch=step / 8, id=name, clean_rougeL=rouge, success=success,
                      relative_drop=lost, loss_increase=lost)  # fmt: skip


CURVE = [snapshot(8, "a", 0.1, None), snapshot(8, "b", 0.3), snapshot(16, "a", 0.5), snapshot(16, "b", 0.6)]


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        (CURVE[:-1], "baseline step 16 has not every example once"),
        ([*CURVE, CURVE[0]], "baseline step 8 has not every example once"),
        ([replace(row, id="z") if row.id == "b" else row for row in CURVE], "z is not among the attack examples"),
        ([snapshot(8, "a", 0.1), *CURVE[1:]], "attacked at a clean ROUGE-L of 0.1000"),
        ([*CURVE[:2], snapshot(16, "a", 0.4), snapshot(16, "b", 0.5)], "of 2 of 2 rows is not that of predictions"),
        ([CURVE[0], replace(CURVE[1], relative_drop=0.1), *CURVE[2:]], "success at a drop of 0.1000"),
        ([replace(CURVE[0], loss_increase=0.5), *CURVE[1:]], "attacked and not attacked"),
        ([*CURVE, snapshot(8, "a", 0.5, arm="no_ffn")], "no_ffn was not trained"),
    ],
)
def test_the_quality_curve_is_whole_and_ends_in_the_exported_model(rows: list[QualityRow], named: str) -> None:
    def problems(rows: list[QualityRow]) -> list[str]:
        rouge = {("baseline", "a"): 0.5, ("baseline", "b"): 0.6}
        return list(of_quality(rows, {"a", "b"}, {"baseline": 16}, rouge, 0.2, 0.15))

    assert not problems(CURVE)
    assert any(named in line for line in problems(rows))

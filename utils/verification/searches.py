"""Records of searches against themselves: flips, ids, losses, typed text and chosen trigger are each told twice.

What no second telling holds is the search's own word: losses between the first and the last, a trigger's gains on
held-out texts, the best of all single moves. `--regenerate` makes losses of drawn rows again; docs/results.md has the
whole list of what is taken on trust.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from utils.analysis.measures import reaches_threshold
from utils.analysis.quality_curve import QualityRow
from utils.analysis.records import CeilingRecord, HotFlipRecord, LongBudgetRecord, TriggerSearch, given
from utils.verification.check import close

BATCH_ROUNDING = 0.02  # nats: batches of other shapes round otherwise, with bfloat16 in the third digit
ROUNDED = 3e-6  # a difference of two losses of six decimals, written with six decimals


def near(made: float, found: float, digits: float = BATCH_ROUNDING) -> bool:
    """Whether two losses are one, measured twice."""
    return abs(made - found) <= digits


def of_flips(row: HotFlipRecord, settings: Mapping[str, Any], pieces: Tokenizer | None) -> Iterator[str]:
    """A search's record: what was flipped, how much of the text that is, and what of it can be typed."""
    if row.search is None or not row.clean_ids or not row.attacked_ids:
        return
    trace, pairs = row.search, enumerate(zip(row.clean_ids, row.attacked_ids, strict=True))
    changed = {place: pair for place, pair in pairs if pair[0] != pair[1]}
    if {flip.position: (flip.old, flip.new) for flip in trace.flips} != changed:
        yield "search.flips are not the ids that differ"
    if {pair[0]: pair[1] for pair in trace.budgets[-1]} != {place: new for place, (_, new) in changed.items()}:
        yield "search.budgets do not end in the flips of attacked_ids"
    if len(changed) > settings["HOTFLIP_NUM_FLIPS"]:
        yield f"{len(changed)} ids differ, HOTFLIP_NUM_FLIPS is {settings['HOTFLIP_NUM_FLIPS']}"
    if not row.section.startswith("own_output"):  # there the search's loss is that of the model's own summary
        ends = (("clean_loss", row.clean_loss, trace.losses[0]), ("attacked_loss", row.attacked_loss, trace.losses[-1]))
        yield from (
            f"{name} is {loss}, search.losses has {told}" for name, loss, told in ends if not near(given(loss), told)
        )
    if row.short_article != (given(row.attackable_positions) < settings["HOTFLIP_NUM_FLIPS"]):
        yield f"short_article is {row.short_article} with {row.attackable_positions} attackable positions"
    if pieces is not None:
        yield from _typed(row, len(changed), settings, pieces)


def _typed(row: HotFlipRecord, changed: int, settings: Mapping[str, Any], pieces: Tokenizer) -> Iterator[str]:
    prefix, limit = settings["TASK_PREFIX"], settings["MAX_INPUT_LENGTH"]
    tokens = len(given(row.clean_ids)) - len(pieces.encode(prefix, add_special_tokens=False).ids) - 1  # 1: eos
    if not close(changed / max(tokens, 1), given(row.perturbed_share)):
        yield f"perturbed_share is {row.perturbed_share}, {changed} of {tokens} tokens changed"
    read = pieces.encode(prefix + given(row.attacked_document)).ids
    if len(read) > limit:
        read = [*read[: limit - 1], read[-1]]
    same = read == row.attacked_ids
    if row.typable != same:
        yield f"typable is {row.typable}, attacked_document is {'' if same else 'not '}read as attacked_ids"


def beyond(row: LongBudgetRecord | CeilingRecord, own: HotFlipRecord | None, metric: HotFlipRecord | None,
           settings: Mapping[str, Any]) -> Iterator[str]:  # fmt: skip
    """What goes beyond HotFlip's attack begins with what that attack found: `own`; by metric: `metric`."""
    if row.skipped is not None:
        return
    if own is None or own.search is None:
        yield "there is no attack before it that it could be compared with"
        return
    if isinstance(row, CeilingRecord):
        told = own.search.losses[1] - own.search.losses[0]
        if not near(given(row.found_loss_increase), told, ROUNDED):
            yield f"found_loss_increase is {row.found_loss_increase}, by the first flip of the attack it is {told:.6f}"
        if given(row.best_loss_increase) < given(row.found_loss_increase):
            yield "best_loss_increase is below found_loss_increase"
        if metric is not None and metric.budget_drop and not close(metric.budget_drop[0], given(row.found_drop)):
            yield f"found_drop is {row.found_drop}, the first flip by metric dropped {metric.budget_drop[0]}"
        if row.best_drop is not None and row.best_drop < given(row.found_drop):
            yield "best_drop is below found_drop"
        if given(row.moves) > settings["CEILING_MOVES"]:
            yield f"moves is {row.moves}, CEILING_MOVES is {settings['CEILING_MOVES']}"
        return
    inputs, clean = given(row.inputs), given(own.clean_ids)
    first = (inputs[0] == own.attacked_ids, close(given(row.drops)[0], given(own.relative_drop)),
             near(given(given(row.losses)[0]), given(own.attacked_loss)))  # fmt: skip
    if not all(first):
        yield "the first budget is not the attack's own input, drop and loss"
    counted = [sum(a != b for a, b in zip(ids, clean, strict=True)) for ids in inputs]
    if counted != row.num_flips:
        yield f"num_flips is {row.num_flips}, {counted} ids differ"
    if any(limit is not None and number > limit for number, limit in zip(counted, given(row.budgets), strict=True)):
        yield f"{counted} ids differ, budgets are {row.budgets}"
    if row.tokens and own.num_flips and not close(own.num_flips / row.tokens, given(own.perturbed_share)):
        yield f"tokens is {row.tokens}, by the attack's share they are {own.num_flips / given(own.perturbed_share):.0f}"


def of_trigger(row: TriggerSearch, length: int) -> Iterator[str]:
    """The trigger of a search is the one of all that it found which does most harm to ROUGE-L on held-out texts."""
    found = (*row.restarts, row.by_loss, row.random_control)
    chosen = (row.trigger_ids, row.dev_gain, row.dev_rouge_change)
    if chosen not in [(one.trigger_ids, one.dev_gain, one.dev_rouge_change) for one in found]:
        yield "its trigger is none of those that were found"
    if row.dev_rouge_change > min(one.dev_rouge_change for one in found):
        yield "another trigger that was found does more harm on held-out texts (dev_rouge_change)"
    if row.restarts and row.by_loss.dev_gain < max(one.dev_gain for one in row.restarts):
        yield "by_loss is not the trigger of largest dev_gain"
    if (row.chosen_from == "random") != (row.trigger_ids == row.random_control.trigger_ids):
        yield f"chosen_from is {row.chosen_from}"
    if any(len(one.trigger_ids) != length for one in (row, *found)):
        yield f"a trigger is not of TRIGGER_LENGTH = {length} tokens"


def of_quality(
    rows: Sequence[QualityRow], drawn: set[str], exported: Mapping[str, int], rouge: Mapping[tuple[str, str], float],
    least: float, threshold: float,
) -> Iterator[str]:  # fmt: skip
    """Rows of the quality curve: every snapshot on the same drawn examples, and the exported one as stage 4 saw it.

    exported: step of each trained arm's exported snapshot; rouge: clean ROUGE-L of stage 4 by arm and id.
    least: clean ROUGE-L that is attacked at all; threshold: the relative drop of a success.
    """
    by_snapshot: dict[tuple[str, int], list[QualityRow]] = {}
    for row in rows:
        by_snapshot.setdefault((row.arm, row.step), []).append(row)
        if row.clean_rougeL is not None and row.success is not None and not reaches_threshold(row.clean_rougeL, least):
            yield f"{row.arm} step {row.step} {row.id}: attacked at a clean ROUGE-L of {row.clean_rougeL:.4f}"
        if len({row.success is None, row.relative_drop is None, row.loss_increase is None}) > 1:
            yield f"{row.arm} step {row.step} {row.id}: attacked and not attacked"
        elif row.success and not reaches_threshold(row.relative_drop or 0.0, threshold):
            yield f"{row.arm} step {row.step} {row.id}: success at a drop of {row.relative_drop:.4f}"
    ids = sorted({row.id for row in rows})
    yield from (f"{name} is not among the attack examples" for name in ids if name not in drawn)
    yield from (f"{arm} was not trained in this run" for arm in sorted({row.arm for row in rows} - {*exported}))
    for (arm, step), group in by_snapshot.items():
        if sorted(row.id for row in group) != ids:
            yield f"{arm} step {step} has not every example once"
        pairs = [(row.clean_rougeL, rouge.get((arm, row.id))) for row in group] if exported.get(arm) == step else []
        other = sum(a is None or b is None or not close(a, b) for a, b in pairs)
        if 2 * other > len(pairs):  # other batches: bfloat16 may turn a beam here and there
            yield f"{arm} step {step}: clean ROUGE-L of {other} of {len(pairs)} rows is not that of predictions.jsonl"

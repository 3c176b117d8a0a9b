"""The parts of stage 5: triggers of some types searched on a model, and all triggers measured on a model.

Every record is returned under the key of its section; utils/analysis/trigger_summary.py makes the results of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from utils.analysis.sections import SectionKey, Sections
from utils.attacks.context import AttackContext, Victim, summaries
from utils.attacks.encoding import Example
from utils.attacks.precision import search_objective
from utils.attacks.triggers.ceiling import last_slot
from utils.attacks.triggers.evaluation import clean_side, evaluate_trigger
from utils.attacks.triggers.inputs import TriggerExample, trigger_examples
from utils.attacks.triggers.search import TriggerSettings, optimise_trigger, split_examples


def search_triggers(
    context: AttackContext,
    victim: Victim,
    types: Sequence[str],
    examples: Sequence[Example],
    settings: TriggerSettings,
    *,
    cache_dir: Path,
    gradient_free_types: Sequence[str] = (),
    ceiling_examples: int = 0,
    ceiling_moves: int = 1,
) -> Sections:
    """One trigger of each of `types`, found on `victim` and the optimisation `examples`.

    Sections: `search` (one record each), and for `gradient_free_types` `free_search`, the gradient-free search of equal
    cost; with `ceiling_examples` held-out texts `ceiling`: up to `ceiling_moves` tokens tried in the last slot.
    """
    objective = search_objective(context, victim, context.encode(examples[:64]))
    items = trigger_examples(context, examples, settings.length)
    if settings.loss == "own_output":
        items = with_own_output(context, victim, items, done_file=cache_dir / "own_output.jsonl")
    searches = [("search", trigger_type, settings) for trigger_type in types]
    gradient_free = replace(settings, method="random")
    searches += [("free_search", kind, gradient_free) for kind in types if kind in gradient_free_types]
    sections: Sections = {
        SectionKey(part, victim.key, trigger_type): [
            optimise_trigger(
                context,
                victim,
                objective,
                items,
                trigger_type,
                how_hard,
                state_file=cache_dir / f"{part}_{trigger_type}.json",
            )
        ]
        for part, trigger_type, how_hard in searches
    }
    if not ceiling_examples:
        return sections
    held_out = split_examples(items, settings.seed)[1][:ceiling_examples]
    ceilings = {
        replace(key, part="ceiling"): last_slot(
            context,
            victim,
            objective,
            held_out,
            found[0],
            moves=ceiling_moves,
            seed=settings.seed,
            cache_file=cache_dir / f"ceiling_{key.trigger_type}.json",
        )
        for key, found in sections.items()
        if key.part == "search"
    }
    return sections | ceilings


def measure_triggers(
    context: AttackContext,
    victim: Victim,
    searched: Sections,
    examples: Sequence[Example],
    settings: TriggerSettings,
    *,
    cache_dir: Path,
) -> Sections:
    """What all triggers in `searched`, those of other models included, do to `victim` on the evaluation `examples`.

    Sections: `attack` for each source, and of the victim's own searches `random` (the best random trigger), `by_loss`
    (the learned trigger of largest loss) and `halfway` (what half of the iterations had found), where these are other
    triggers, and `free` (the gradient-free one).
    """
    items = trigger_examples(context, examples, settings.length)
    clean = clean_side(context, victim, items, cache_dir=cache_dir)
    sections: Sections = {}
    for search in [key for key in searched if key.part == "search"]:
        found = searched[search][0]
        triggers = {"attack": found.trigger_ids}
        if search.model == victim.key:
            triggers["random"] = found.random_control.trigger_ids
            if found.halfway_trigger_ids not in ([], found.trigger_ids):
                triggers["halfway"] = found.halfway_trigger_ids
            if found.by_loss.trigger_ids != found.trigger_ids:
                triggers["by_loss"] = found.by_loss.trigger_ids
            gradient_free = searched.get(replace(search, part="free_search"))
            if gradient_free:
                triggers["free"] = gradient_free[0].trigger_ids
        for part, trigger in triggers.items():
            key = SectionKey(part, victim.key, search.trigger_type, search.model if part == "attack" else "")
            sections[key] = evaluate_trigger(
                context,
                victim,
                items,
                clean,
                trigger_type=search.trigger_type,
                trigger=trigger,
                source=search.model,
                threshold=settings.success_threshold,
                min_clean_rouge=settings.min_clean_rouge,
                seed=settings.seed,
                cache_dir=cache_dir,
                name=part,
            )
    return sections


def with_own_output(
    context: AttackContext, victim: Victim, items: Sequence[TriggerExample], *, done_file: Path
) -> list[TriggerExample]:
    """`items` with the model's own clean summary in the place of the reference."""
    usable = [n for n, item in enumerate(items) if item.problem is None]
    texts = summaries(
        context, victim, [items[n].clean for n in usable], done_file=done_file, label=f"{victim.key}: own output"
    )
    labels = dict(zip(usable, context.labels(texts), strict=True)) if usable else {}
    return [replace(item, labels=tuple(labels[n])) if n in labels else item for n, item in enumerate(items)]

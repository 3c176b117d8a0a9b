"""Stage 5 as a whole: triggers of every type against every model, their transfer and controls.

Every record is returned under the name of its section; utils/analysis/trigger_summary.py makes the results of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from utils.analysis.records import Sections
from utils.attacks.context import AttackContext, Victim, summaries
from utils.attacks.encoding import Example
from utils.attacks.hotflip.experiment import Loader
from utils.attacks.precision import search_objective
from utils.attacks.triggers.evaluation import clean_side, evaluate_trigger
from utils.attacks.triggers.inputs import TriggerExample, trigger_examples
from utils.attacks.triggers.search import TriggerSettings, optimise_trigger


def trigger_sections(
    context: AttackContext,
    load: Loader,
    model_keys: Sequence[str],
    optimise_on: Sequence[Example],
    evaluate_on: Sequence[Example],
    settings: TriggerSettings,
    *,
    cache_dir: Path,
    shard: tuple[int, int] = (0, 1),
    gradient_free_types: Sequence[str] = (),
) -> Sections:
    """Search and evaluation records of every (model, type) of the shard; one model in memory at a time.

    Sections: `search/TYPE/SOURCE` (one record, what optimise_trigger returned), `attack/TYPE/SOURCE/TARGET`,
    `random/TYPE/MODEL` (the best random trigger), `halfway/TYPE/MODEL` (what half of the iterations had found, where
    that is another trigger), and for `gradient_free_types` also `free_search/TYPE/MODEL`,
    `free/TYPE/MODEL` (the gradient-free search of equal cost).
    """
    train = trigger_examples(context, optimise_on, settings.length)
    test = trigger_examples(context, evaluate_on, settings.length)
    units = [(key, kind) for key in model_keys for kind in settings.types]
    mine = units[shard[0] :: shard[1]]
    sections: Sections = {}
    for key in model_keys:
        kinds = [kind for owner, kind in mine if owner == key]
        if not kinds:
            continue
        victim = load(key)
        objective = search_objective(context, victim, context.encode(optimise_on[:64]))
        searches = [("search", kind, settings) for kind in kinds]
        searches += [("free_search", k, replace(settings, method="random")) for k in kinds if k in gradient_free_types]
        items = train
        if settings.loss == "own_output":
            items = with_own_output(context, victim, train, done_file=cache_dir / key / "own_output.jsonl")
        for name, kind, how in searches:
            state = cache_dir / key / f"{name}_{kind}.json"
            found = optimise_trigger(context, victim, objective, items, kind, how, state_file=state)
            sections[f"{name}/{kind}/{key}"] = [found]
        del victim, objective
    for target in model_keys:
        victim = load(target)
        clean = clean_side(context, victim, test, cache_dir=cache_dir / target)
        for source, kind in mine:
            found = sections[f"search/{kind}/{source}"][0]
            cells = [(f"attack/{kind}/{source}/{target}", "attack", found.trigger_ids)]
            if source == target:
                cells.append((f"random/{kind}/{target}", "random", found.random_control.trigger_ids))
            if source == target and found.halfway_trigger_ids not in ([], found.trigger_ids):
                cells.append((f"halfway/{kind}/{target}", "halfway", found.halfway_trigger_ids))
            if source == target and kind in gradient_free_types:
                free = sections[f"free_search/{kind}/{source}"][0]
                cells.append((f"free/{kind}/{target}", "free", free.trigger_ids))
            for section, name, trigger in cells:
                sections[section] = evaluate_trigger(
                    context,
                    victim,
                    test,
                    clean,
                    trigger_type=kind,
                    trigger=trigger,
                    source=source,
                    threshold=settings.success_threshold,
                    min_clean_rouge=settings.min_clean_rouge,
                    seed=settings.seed,
                    cache_dir=cache_dir / target,
                    name=name,
                )
        del victim
    return sections


def with_own_output(
    context: AttackContext, victim: Victim, items: Sequence[TriggerExample], *, done_file: Path
) -> list[TriggerExample]:
    """`items` with the model's own clean summary in the place of the reference."""
    live = [n for n, item in enumerate(items) if item.problem is None]
    texts = summaries(context, victim, [items[n].clean for n in live], done_file=done_file, what=f"{victim.key}: own")
    own = dict(zip(live, context.labels(texts), strict=True)) if live else {}
    return [replace(item, labels=tuple(own[n])) if n in own else item for n, item in enumerate(items)]

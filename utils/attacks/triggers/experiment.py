"""Stage 5 as a whole: triggers of every type against every model, their transfer and controls, and the results."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from utils.analysis.attack_warnings import doubling_matters, trigger_flags
from utils.analysis.trigger_summary import compare, correct_family, gained_since, summarise, worst_types
from utils.attacks.context import AttackContext, Victim, summaries
from utils.attacks.encoding import Example
from utils.attacks.hotflip.experiment import Loader, Sections
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
            cells = [(f"attack/{kind}/{source}/{target}", "attack", found["trigger_ids"])]
            if source == target:
                cells.append((f"random/{kind}/{target}", "random", found["random_control"]["trigger_ids"]))
            if source == target and found["halfway_trigger_ids"] not in ([], found["trigger_ids"]):
                cells.append((f"halfway/{kind}/{target}", "halfway", found["halfway_trigger_ids"]))
            if source == target and kind in gradient_free_types:
                free = sections[f"free_search/{kind}/{source}"][0]
                cells.append((f"free/{kind}/{target}", "free", free["trigger_ids"]))
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


def trigger_results(
    sections: Mapping[str, Sequence[Mapping[str, Any]]],
    model_keys: Sequence[str],
    settings: TriggerSettings,
    *,
    samples: int,
    seed: int,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """The `results` of uat_results.json, from the records alone.

    `results[model][type]`: the trigger, clean and attacked ROUGE, changes with intervals, search figures,
    `random_control`, `gradient_free_control`, `halfway` (what the second half of the iterations added; None where it
    found nothing better), `converged`; `results[model]["worst"]`: worst type, and worst over types example by
    example; `transfer_matrix[type][source][target]`; `comparisons[type]` baseline against monotonic; `flags`.
    """
    ci = {"samples": samples, "seed": seed, "confidence": confidence}
    threshold = settings.success_threshold

    def summary(name: str) -> dict[str, Any]:
        return summarise(sections[name], threshold=threshold, **ci)

    results: dict[str, Any] = {key: {} for key in model_keys}
    for key in model_keys:
        for kind in settings.types:
            search = sections[f"search/{kind}/{key}"][0]
            cell = dict(search) | summary(f"attack/{kind}/{key}/{key}")
            cell["random_control"] = dict(search["random_control"]) | summary(f"random/{kind}/{key}")
            if f"free/{kind}/{key}" in sections:
                free = sections[f"free_search/{kind}/{key}"][0]
                kept = ("trigger_ids", "trigger_text", "dev_gain", "forward_rows")
                cell["gradient_free_control"] = {n: free[n] for n in kept} | summary(f"free/{kind}/{key}")
            cell["control_comparison"] = compare(
                sections[f"random/{kind}/{key}"], sections[f"attack/{kind}/{key}/{key}"], threshold=threshold, **ci
            )
            half = sections.get(f"halfway/{kind}/{key}")
            cell["halfway"] = gained_since(half, sections[f"attack/{kind}/{key}/{key}"], threshold) if half else None
            cell["converged"] = search["converged"] and not (half and doubling_matters(cell["halfway"]))
            results[key][kind] = cell
        results[key]["worst"] = worst_types(
            {kind: sections[f"attack/{kind}/{key}/{key}"] for kind in settings.types}, threshold=threshold
        )
    kept = ("num_attackable", "success_rate", "success_rate_ci", "delta_rougeL", "delta_rougeL_ci", "nll_increase",
            "mean_degradation")  # fmt: skip
    results["transfer_matrix"] = {
        kind: {
            source: {
                target: {n: v for n, v in summary(f"attack/{kind}/{source}/{target}").items() if n in kept}
                for target in model_keys
            }
            for source in model_keys
        }
        for kind in settings.types
    }
    comparisons: dict[str, Any] = {}
    if {"baseline", "monotonic"} <= set(model_keys):
        comparisons = {
            kind: compare(
                sections[f"attack/{kind}/baseline/baseline"],
                sections[f"attack/{kind}/monotonic/monotonic"],
                threshold=threshold,
                **ci,
            )
            for kind in settings.types
        }
        correct_family(comparisons)
    results["comparisons"] = comparisons
    results["flags"] = trigger_flags(results, model_keys)
    return results


def learned_triggers_csv(results: Mapping[str, Any], model_keys: Sequence[str], types: Sequence[str]) -> str:
    """The text of learned_triggers.csv: model, trigger_type, trigger_text, trigger_ids (ids separated by spaces)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "trigger_type", "trigger_text", "trigger_ids"])
    for key in model_keys:
        for kind in types:
            cell = results[key][kind]
            writer.writerow([key, kind, cell["trigger_text"], " ".join(map(str, cell["trigger_ids"]))])
    return out.getvalue()

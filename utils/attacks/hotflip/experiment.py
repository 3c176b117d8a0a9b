"""Stage 6 as a whole: the attack on every model, its controls, and transfer.

Every record is returned under the name of its section; utils/analysis/hotflip_summary.py makes the results of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils.analysis.records import Sections
from utils.attacks.cache import blocks_of, shard_of
from utils.attacks.context import AttackContext, Victim
from utils.attacks.encoding import EncodedText, Example
from utils.attacks.hotflip.attack import HotFlipSettings, attack_examples
from utils.attacks.hotflip.controls import all_replaced, one_shot, strongest_random
from utils.attacks.hotflip.long_budget import attack_without_limit
from utils.attacks.objective import Objective
from utils.attacks.seeding import generator
from utils.attacks.transfer import attacked_inputs, replay

Loader = Callable[[str], Victim]


@dataclass(frozen=True)
class ControlSettings:
    """How large the controls beside the attack are; 0 leaves one out.

    `random_draws`: random attacks of equal budget per example, of which the strongest by loss counts.
    `convergence_examples`: on so many examples, but at most a tenth of all, the attack is run with twice the
    candidates. `long_examples`: on so many, it continues beyond its budget until every token may change.
    """

    random_draws: int = 10
    convergence_examples: int = 200
    long_examples: int = 200


def hotflip_sections(
    context: AttackContext,
    load: Loader,
    model_keys: Sequence[str],
    examples: Sequence[Example],
    settings: HotFlipSettings,
    controls: ControlSettings | None,
    *,
    cache_dir: Path,
    shard: tuple[int, int] = (0, 1),
) -> Sections:
    """Attack, control and transfer records of every model on the shard's examples; one model in memory at a time."""
    chosen = [examples[i] for i in shard_of([e.id for e in examples], shard)]
    home = cache_dir if shard[1] == 1 else cache_dir / f"shard_{shard[0]}_of_{shard[1]}"
    # Samples are the first of all examples in the order of the blocks: the same ones whatever the shards.
    order = [examples[i].id for block in blocks_of([e.id for e in examples]) for i in block]
    double = set(order[: min(controls.convergence_examples, -(-len(order) // 10))]) if controls else set()
    long = set(order[: controls.long_examples]) if controls else set()
    longest = max((len(item.attackable) for item in context.encode(examples)), default=0) if long else 0
    sections: Sections = {}
    for key in model_keys:
        victim = load(key)
        sections |= _attacks_on(context, victim, chosen, settings, controls, home / key)
        some = [e for e in chosen if e.id in double]
        if some:
            sections[f"double/{key}"] = attack_examples(
                context,
                victim,
                some,
                replace(settings, candidates=2 * settings.candidates),
                cache_dir=home / key / "double",
                every_budget=False,
            )
        own = [r for r in sections[f"attack/{key}"] if r.id in long]
        if own:
            sections[f"long/{key}"] = attack_without_limit(
                context,
                victim,
                own,
                context.encode([e for e in chosen if e.id in long]),
                num_flips=settings.num_flips,
                longest=longest,
                threshold=settings.success_threshold,
                seed=settings.seed,
                cache_dir=home / key,
            )
        del victim
    for target in model_keys:
        victim = load(target)
        for source in model_keys:
            if source != target:
                sections[f"transfer/{source}/{target}"] = replay(
                    context,
                    victim,
                    attacked_inputs(sections[f"attack/{source}"]),
                    sections[f"attack/{target}"],
                    name=f"flips of {source}",
                    threshold=settings.success_threshold,
                    cache_dir=home / "transfer",
                )
        del victim
    return sections


def _attacks_on(
    context: AttackContext,
    victim: Victim,
    examples: Sequence[Example],
    settings: HotFlipSettings,
    controls: ControlSettings | None,
    home: Path,
) -> Sections:
    key, clean_file = victim.key, home / "clean.jsonl"
    main = attack_examples(context, victim, examples, settings, cache_dir=home / "attack", clean_file=clean_file)
    sections: Sections = {f"attack/{key}": main}
    if not controls:
        return sections
    sections[f"greedy/{key}"] = attack_examples(
        context,
        victim,
        examples,
        replace(settings, method="greedy"),
        cache_dir=home / "greedy",
        clean_file=clean_file,
        every_budget=False,
    )
    live = {record.id for record in main if record.skipped is None}
    objective = Objective(victim.model, batch_tokens=context.batch_tokens)
    drawn: dict[str, dict[str, Sequence[int]]] = {}
    # Block by block, so that batches, and with them the last bits of a loss, do not depend on the shard.
    for block in blocks_of([e.id for e in examples]):
        items = [item for item in context.encode([examples[i] for i in block]) if item.id in live]
        for name, attacks in _controls_on(context, objective, items, settings, controls).items():
            drawn.setdefault(name, {}).update(attacks)
    for name, attacks in drawn.items():
        sections[f"{name}/{key}"] = replay(
            context,
            victim,
            attacks,
            main,
            name=name,
            threshold=settings.success_threshold,
            cache_dir=home,
        )
    return sections


def _controls_on(
    context: AttackContext,
    objective: Objective,
    items: Sequence[EncodedText],
    settings: HotFlipSettings,
    controls: ControlSettings,
) -> dict[str, dict[str, Sequence[int]]]:
    """Attacked ids of the attacks that need no search, by control and example id."""
    drawn: dict[str, dict[str, Sequence[int]]] = {}
    if not items:
        return drawn
    if controls.random_draws:
        sets = strongest_random(
            objective,
            context.legal,
            items,
            num_flips=settings.num_flips,
            draws=controls.random_draws,
            rngs=[generator(settings.seed, "random control", item.id) for item in items],
        )
        drawn["random"] = {}
        for item, flips in zip(items, sets, strict=True):
            ids = np.asarray(item.ids, dtype=np.int64).copy()
            ids[[f.position for f in flips]] = [f.new for f in flips]
            drawn["random"][item.id] = ids.tolist()
    shots = one_shot(objective, context.legal, items, num_flips=settings.num_flips)
    drawn["one_shot"] = {item.id: ids.tolist() for item, ids in zip(items, shots, strict=True)}
    drawn["all_replaced"] = {
        # "floor" was the control's name: it stays in the key, so that draws stay what they were.
        item.id: all_replaced(context.legal, item, generator(settings.seed, "floor", item.id)).tolist()
        for item in items
    }
    return drawn

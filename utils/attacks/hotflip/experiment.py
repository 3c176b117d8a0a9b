"""The parts of stage 6: the attack on a model with its controls, and flips of other models replayed on it.

Every record is returned under the key of its section; utils/analysis/hotflip_summary.py makes the results of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils.analysis.sections import SectionKey, Sections
from utils.attacks.cache import blocks_of, shard_of
from utils.attacks.context import AttackContext, Victim
from utils.attacks.encoding import EncodedText, Example
from utils.attacks.hotflip.attack import HotFlipSettings, attack_examples
from utils.attacks.hotflip.controls import all_replaced, one_shot, strongest_random
from utils.attacks.hotflip.long_budget import attack_without_limit
from utils.attacks.objective import Objective
from utils.attacks.seeding import generator
from utils.attacks.transfer import attacked_inputs, replay


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


@dataclass(frozen=True)
class HotFlipPlan:
    """Which examples a task of a job array attacks, and on which of them it does more.

    `examples`: the task's own; `doubled`, `unlimited`: ids that are attacked with twice the candidates, and beyond the
    budget; `longest`: the most attackable tokens of any example of all tasks, which decides the long budgets.
    """

    examples: list[Example]
    doubled: frozenset[str]
    unlimited: frozenset[str]
    longest: int

    @classmethod
    def of(
        cls,
        context: AttackContext,
        examples: Sequence[Example],
        controls: ControlSettings | None,
        shard: tuple[int, int] = (0, 1),
    ) -> HotFlipPlan:
        """The plan for shard (index, count) of all `examples`."""
        ids = [example.id for example in examples]
        mine = [examples[i] for i in shard_of(ids, shard)]
        if controls is None:
            return cls(mine, frozenset(), frozenset(), 0)
        # Samples are the first of all examples in the order of the blocks: the same ones whatever the shards.
        order = [ids[i] for block in blocks_of(ids) for i in block]
        tenth = -(-len(order) // 10)
        unlimited = frozenset(order[: controls.long_examples])
        longest = max((len(item.attackable) for item in context.encode(examples)), default=0) if unlimited else 0
        return cls(mine, frozenset(order[: min(controls.convergence_examples, tenth)]), unlimited, longest)


def attack_with_controls(
    context: AttackContext,
    victim: Victim,
    plan: HotFlipPlan,
    settings: HotFlipSettings,
    controls: ControlSettings | None,
    *,
    cache_dir: Path,
) -> Sections:
    """HotFlip on one model, and with `controls` beside it what it must beat and whether more effort would find more."""
    key, clean_file = victim.key, cache_dir / "clean.jsonl"
    records = attack_examples(
        context, victim, plan.examples, settings, cache_dir=cache_dir / "attack", clean_file=clean_file
    )
    sections: Sections = {SectionKey("attack", key): records}
    if controls is None:
        return sections
    sections[SectionKey("greedy", key)] = attack_examples(
        context,
        victim,
        plan.examples,
        replace(settings, method="greedy"),
        cache_dir=cache_dir / "greedy",
        clean_file=clean_file,
        every_budget=False,
    )
    attacked = {record.id for record in records if record.skipped is None}
    for name, inputs in _searchless(context, victim, plan.examples, attacked, settings, controls).items():
        sections[SectionKey(name, key)] = replay(
            context, victim, inputs, records, name=name, threshold=settings.success_threshold, cache_dir=cache_dir
        )
    doubled = [example for example in plan.examples if example.id in plan.doubled]
    if doubled:
        sections[SectionKey("double", key)] = attack_examples(
            context,
            victim,
            doubled,
            replace(settings, candidates=2 * settings.candidates),
            cache_dir=cache_dir / "double",
            every_budget=False,
        )
    unlimited = [record for record in records if record.id in plan.unlimited]
    if unlimited:
        sections[SectionKey("long", key)] = attack_without_limit(
            context,
            victim,
            unlimited,
            context.encode([example for example in plan.examples if example.id in plan.unlimited]),
            num_flips=settings.num_flips,
            longest=plan.longest,
            threshold=settings.success_threshold,
            seed=settings.seed,
            cache_dir=cache_dir,
        )
    return sections


def flips_of_others(
    context: AttackContext, victim: Victim, sections: Sections, settings: HotFlipSettings, *, cache_dir: Path
) -> Sections:
    """What the flips that `sections` has of every other model do to `victim`."""
    return {
        SectionKey("transfer", victim.key, source=key.model): replay(
            context,
            victim,
            attacked_inputs(records),
            sections[SectionKey("attack", victim.key)],
            name=f"flips of {key.model}",
            threshold=settings.success_threshold,
            cache_dir=cache_dir,
        )
        for key, records in sections.items()
        if key.part == "attack" and key.model != victim.key
    }


def _searchless(
    context: AttackContext,
    victim: Victim,
    examples: Sequence[Example],
    attacked: set[str],
    settings: HotFlipSettings,
    controls: ControlSettings,
) -> dict[str, dict[str, Sequence[int]]]:
    """Attacked ids of the controls that need no search, by control and example id, of the examples `attacked`."""
    objective = Objective(victim.model, batch_tokens=context.batch_tokens)
    inputs: dict[str, dict[str, Sequence[int]]] = {}
    # Block by block, so that batches, and with them the last bits of a loss, do not depend on the shard.
    for block in blocks_of([example.id for example in examples]):
        items = [item for item in context.encode([examples[i] for i in block]) if item.id in attacked]
        for name, of_block in _controls_on(context, objective, items, settings, controls).items():
            inputs.setdefault(name, {}).update(of_block)
    return inputs


def _controls_on(
    context: AttackContext,
    objective: Objective,
    items: Sequence[EncodedText],
    settings: HotFlipSettings,
    controls: ControlSettings,
) -> dict[str, dict[str, Sequence[int]]]:
    inputs: dict[str, dict[str, Sequence[int]]] = {}
    if not items:
        return inputs
    if controls.random_draws:
        sets = strongest_random(
            objective,
            context.legal,
            items,
            num_flips=settings.num_flips,
            draws=controls.random_draws,
            rngs=[generator(settings.seed, "random control", item.id) for item in items],
        )
        inputs["random"] = {}
        for item, flips in zip(items, sets, strict=True):
            ids = np.array(item.ids, dtype=np.int64)
            ids[[flip.position for flip in flips]] = [flip.new for flip in flips]
            inputs["random"][item.id] = ids.tolist()
    shots = one_shot(objective, context.legal, items, num_flips=settings.num_flips)
    inputs["one_shot"] = {item.id: ids.tolist() for item, ids in zip(items, shots, strict=True)}
    inputs["all_replaced"] = {
        # "floor" was the control's name: it stays in the key, so that draws stay what they were.
        item.id: all_replaced(context.legal, item, generator(settings.seed, "floor", item.id)).tolist()
        for item in items
    }
    return inputs

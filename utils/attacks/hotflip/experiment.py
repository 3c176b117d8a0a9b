"""The parts of stage 6: the attack on a model with its controls, and flips of other models replayed on it.

Every record is returned under the key of its section; utils/analysis/hotflip_summary.py makes the results of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from utils.analysis.measures import GRADIENT_COST, SUMMARY_COST
from utils.analysis.records import HotFlipRecord, SearchTrace, attackable, given
from utils.analysis.sections import SectionKey, Sections
from utils.attacks.cache import blocks_of, load_cached, save_cached, shard_of
from utils.attacks.context import AttackContext, Victim
from utils.attacks.encoding import EncodedText, Example, attacked_document, reads_as
from utils.attacks.hotflip.attack import METRIC_METHODS, HotFlipSettings, attack_examples, target_labels
from utils.attacks.hotflip.ceiling import ceilings
from utils.attacks.hotflip.controls import (
    all_replaced,
    one_shot,
    random_at_reference,
    strongest_random,
    strongest_random_by_metric,
)
from utils.attacks.hotflip.long_budget import attack_without_limit
from utils.attacks.hotflip.metric_search import TRIED_TOGETHER, metric_search
from utils.attacks.hotflip.typos import TypedState, TypoProposer
from utils.attacks.legal_tokens import TokenIds
from utils.attacks.objective import Objective, Targets
from utils.attacks.seeding import generator
from utils.attacks.transfer import attacked_inputs, replay, typable_by_id


@dataclass(frozen=True)
class ControlSettings:
    """How large the controls beside the attack are; 0 leaves one out.

    `random_draws`: random attacks per example, of which the strongest by loss counts; None: as many as the attack makes
    forward passes. `metric_examples`: on so many examples the other attacks of the suite and its arms are made, and
    with them the worst case; 0: on all. `convergence_examples`: on so many examples, but at most a tenth of all, the
    attack is run with twice the candidates. `long_examples`: on so many, it continues beyond its budget until every
    token may change. `ceiling_examples`: on so many (of those attacked by metric), `ceiling_moves` single flips are
    tried by loss and `ceiling_summaries` by generated ROUGE-L: what is there to be found.
    """

    random_draws: int | None = None
    metric_examples: int = 0
    ceiling_examples: int = 20
    ceiling_moves: int = 20_000
    ceiling_summaries: int = 500
    convergence_examples: int = 200
    long_examples: int = 200


@dataclass(frozen=True)
class HotFlipPlan:
    """Which examples a task of a job array attacks, and on which of them it does more.

    `examples`: the task's own; `doubled`, `unlimited`, `metric`, `ceiling`: ids that are attacked with twice the
    candidates, beyond the budget, by generated summaries, and by every single flip; `longest`: the most attackable
    tokens of any example of all tasks, which decides the long budgets.
    """

    examples: list[Example]
    doubled: frozenset[str]
    unlimited: frozenset[str]
    longest: int
    metric: frozenset[str] = frozenset()
    ceiling: frozenset[str] = frozenset()

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
        doubled = frozenset(order[: min(controls.convergence_examples, tenth)])
        return cls(mine, doubled, unlimited, longest, *_firsts(order, controls))


def _firsts(order: Sequence[str], controls: ControlSettings) -> tuple[frozenset[str], frozenset[str]]:
    """The ids that are attacked by metric, and those of them where every single flip is tried."""
    metric = order[: controls.metric_examples or None]
    return frozenset(metric), frozenset(metric[: controls.ceiling_examples])


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
    chosen = [example for example in plan.examples if example.id in plan.metric]
    other_loss = "own_output" if settings.loss == "reference" else "reference"
    members = {
        "greedy": (plan.examples, replace(settings, method="greedy")),
        other_loss: (chosen, replace(settings, loss=other_loss)),
        "protected": (chosen, replace(settings, protect=True)),
        "metric": (chosen, replace(settings, method="metric")),
        "word_importance": (chosen, replace(settings, method="word_importance")),
    }
    for name, (examples, variant) in members.items():
        sections[SectionKey(name, key)] = attack_examples(
            context,
            victim,
            examples,
            variant,
            cache_dir=cache_dir / name,
            clean_file=clean_file if len(examples) == len(plan.examples) else None,
            every_budget=name in METRIC_METHODS,
        )
    for name, inputs in _other_inputs(
        context, victim, plan, records, sections, settings, controls, cache_dir=cache_dir
    ).items():
        sections[SectionKey(name, key)] = replay(
            context,
            # Stage 4 knows the summaries of clean texts; what a batch of attacks makes of them is the question here.
            replace(victim, known={}) if name == "unchanged" else victim,
            inputs,
            [record for record in records if name not in ("random_metric", "typo") or record.id in plan.metric],
            name=name,
            threshold=settings.success_threshold,
            cache_dir=cache_dir,
            typable=dict.fromkeys(inputs, True) if name == "typo" else _typable(context, plan.examples, inputs),
        )
    ceiling = [example for example in plan.examples if example.id in plan.ceiling]
    if ceiling:
        sections[SectionKey("ceiling", key)] = ceilings(
            context,
            victim,
            context.encode(ceiling),
            records,
            sections[SectionKey("metric", key)],
            settings,
            moves=controls.ceiling_moves,
            summaries_each=controls.ceiling_summaries,
            seed=settings.seed,
            cache_dir=cache_dir,
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
            typable=typable_by_id(records),
        )
        for key, records in sections.items()
        if key.part == "attack" and key.model != victim.key
    }


def _typable(context: AttackContext, examples: Sequence[Example], inputs: Mapping[str, TokenIds]) -> dict[str, bool]:
    """Whether a text gives the attacked ids, by example id."""
    items = [item for item in context.encode(examples) if item.id in inputs]
    texts = [attacked_document(context.view, item, inputs[item.id]) for item in items]
    wanted = [inputs[item.id] for item in items]
    length = context.max_input_length
    found = reads_as(context.view, texts, wanted, prefix=context.prefix, max_input_length=length)
    return {item.id: bool(fine) for item, fine in zip(items, found, strict=True)}


def _other_inputs(
    context: AttackContext,
    victim: Victim,
    plan: HotFlipPlan,
    records: Sequence[HotFlipRecord],
    sections: Sections,
    settings: HotFlipSettings,
    controls: ControlSettings,
    *,
    cache_dir: Path,
) -> dict[str, dict[str, TokenIds]]:
    """Attacked ids of the attacks that are no HotFlip, by name and example id, of the examples in `records`."""
    objective = Objective(victim.model, batch_tokens=context.batch_tokens)
    own = {record.id: record for record in attackable(records)}
    generated = {
        record.id: _in_summaries(given(record.search))
        for record in attackable(sections[SectionKey("metric", victim.key)])
    }
    inputs: dict[str, dict[str, TokenIds]] = {}
    # Block by block, so that batches, and with them the last bits of a loss, do not depend on the shard.
    for b, block in enumerate(blocks_of([example.id for example in plan.examples])):
        items = [item for item in context.encode([plan.examples[i] for i in block]) if item.id in own]
        drawn = [item for item in items if item.id in generated]
        of_block = _controls_on(context, victim, objective, items, own, settings, controls)
        # Those that generate summaries take as long as a search: finished blocks are kept.
        draws = [generated[item.id] for item in drawn]
        clean = [given(own[item.id].clean_rougeL) for item in drawn]
        for name, make in (
            ("random_metric", partial(_random_by_metric, draws=draws)), ("typo", partial(_typos, clean=clean)),
        ):  # fmt: skip
            content = [(item.id, item.ids, item.summary, own[item.id].clean_rougeL, generated[item.id])
                       for item in drawn]  # fmt: skip
            key = context.fingerprint(victim.fingerprint, name, settings.metric, TRIED_TOGETHER, settings.seed, content)
            path = cache_dir / f"{name}_{b:04d}.json"
            found = load_cached(path, key)
            if found is None:
                found = _by_id(drawn, make(context, victim, drawn, settings))
                save_cached(path, key, found)
                context.check_stop()
            of_block[name] = found
        for name, more in of_block.items():
            inputs.setdefault(name, {}).update(more)
    return inputs


def _in_summaries(search: SearchTrace) -> int:
    """What a search cost, in generated summaries."""
    passes = search.queries + GRADIENT_COST * search.gradients
    return search.generations + round(passes / SUMMARY_COST)


def _random_by_metric(
    context: AttackContext,
    victim: Victim,
    items: Sequence[EncodedText],
    settings: HotFlipSettings,
    *,
    draws: Sequence[int],
) -> list[TokenIds]:
    """The floor under attacks by metric: as many draws as the search was worth summaries, chosen as it chooses."""
    rngs = [generator(settings.seed, "random by metric", item.id) for item in items]
    return strongest_random_by_metric(context, victim, items, num_flips=settings.num_flips, draws=draws, rngs=rngs)


def _typos(
    context: AttackContext,
    victim: Victim,
    items: Sequence[EncodedText],
    settings: HotFlipSettings,
    *,
    clean: Sequence[float],
) -> list[TokenIds]:
    """What the search by the metric makes of the texts with typing errors."""
    starts = [TypedState.of(context, item) for item in items]
    proposer = TypoProposer(settings.metric)
    found = metric_search(context, victim, items, starts, clean, proposer, settings.metric, seed=settings.seed)
    return [search.state.ids for search in found]


def _controls_on(
    context: AttackContext,
    victim: Victim,
    objective: Objective,
    items: Sequence[EncodedText],
    own: Mapping[str, HotFlipRecord],
    settings: HotFlipSettings,
    controls: ControlSettings,
) -> dict[str, dict[str, TokenIds]]:
    """The controls of one block of examples, all of them attackable."""
    if not items:
        return {}
    draws = settings.passes if controls.random_draws is None else controls.random_draws
    flips, seed = settings.num_flips, settings.seed
    targets = Targets(target_labels(context, settings, items, [given(own[i.id].clean_prediction) for i in items]),
                      objective.device)  # fmt: skip
    rngs = [generator(seed, "random control", item.id) for item in items]
    drawn = strongest_random(objective, context.legal, items, targets, num_flips=flips, draws=draws, rngs=rngs)
    vandalised = [
        random_at_reference(context, item, num_flips=flips, rng=generator(seed, "reference words", item.id))
        for item in items
    ]
    # "floor" was the control's name: it stays in the key, so that draws stay what they were.
    replaced = [all_replaced(context.legal, item, generator(seed, "floor", item.id)) for item in items]
    return {
        "random": _by_id(items, drawn),
        "one_shot": _by_id(items, one_shot(objective, context.legal, items, num_flips=flips)),
        "reference_words": _by_id(items, vandalised),
        "all_replaced": _by_id(items, replaced),
        "unchanged": _by_id(items, [item.ids for item in items]),
    }


def _by_id(items: Sequence[EncodedText], inputs: Sequence[TokenIds]) -> dict[str, TokenIds]:
    return {item.id: [int(token) for token in ids] for item, ids in zip(items, inputs, strict=True)}

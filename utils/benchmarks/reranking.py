"""Summaries that attacks choose by, beside stage 4's: does generation in pieces keep the rate of generation in bulk?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np
from torch.profiler import ProfilerActivity, profile

from utils.attacks import context as attack_context
from utils.attacks.context import AttackContext, Victim
from utils.attacks.encoding import EncodedText
from utils.attacks.hotflip.metric_search import FlipProposer, MetricSettings, metric_search
from utils.attacks.hotflip.proposals import State
from utils.attacks.objective import Objective, Targets
from utils.attacks.triggers.candidates import random_triggers
from utils.attacks.triggers.inputs import TriggerExample
from utils.attacks.triggers.objective import TriggerObjective
from utils.attacks.triggers.search import rouge_changes
from utils.benchmarks.measure import Comparison, Way, alternate, check, now
from utils.evaluation.generation import generate

LENGTH = 5  # tokens of a trigger
NEVER = 2.0  # a relative drop that no summary has: every search spends its whole budget
SEARCH = MetricSettings(num_flips=5, positions=8, replacements=16, rounds=12, summaries=24, threshold=NEVER)


def stage_6(context: AttackContext, victim: Victim, items: Sequence[EncodedText]) -> Callable[[], object]:
    """The search by the metric on `items`, as stage 6 makes it."""
    objective = Objective(victim.model, batch_tokens=context.batch_tokens)
    targets = Targets([item.labels for item in items], objective.device)

    def attack() -> object:
        clean = [State(np.asarray(item.ids, dtype=np.int64), 0.0) for item in items]
        proposer = FlipProposer(context, objective, items, targets, SEARCH)
        return metric_search(context, victim, items, clean, [1.0] * len(items), proposer, SEARCH, seed=0)

    return attack


def stage_5(
    context: AttackContext, victim: Victim, items: Sequence[TriggerExample], triggers: int
) -> Callable[[], object]:
    """The choice among random triggers on `items`, as stage 5 makes it."""
    drawn = random_triggers(context.legal, "lead", LENGTH, triggers, np.random.default_rng(0))
    dev = TriggerObjective(Objective(victim.model, batch_tokens=context.batch_tokens), items, "lead", 0)
    return lambda: rouge_changes(context, victim, dev, drawn)


def beside_stage_4(
    title: str, context: AttackContext, victim: Victim, attack: Callable[[], object], *, rounds: int
) -> Comparison:
    """The summaries that `attack` asks for, in its calls, beside one call for all of them, which is what stage 4 makes.

    On a CPU seconds are the processor's, of all threads: other work on the machine counts less.
    """
    clock = time.process_time if victim.model.device.type == "cpu" else now
    made: list[tuple[tuple[int, ...], str]] = []
    seconds = 0.0

    def timed(*arguments: Any, **more: Any) -> Any:
        nonlocal seconds
        began = clock()
        found = generate(*arguments, **more)
        seconds += clock() - began
        made.extend(zip(arguments[2], found.texts, strict=True))
        return found

    def in_pieces() -> float:
        nonlocal seconds
        seconds = 0.0
        made.clear()
        with mock.patch.object(attack_context, "generate", timed):
            attack()
        return seconds

    def at_once() -> float:
        began = clock()
        texts[:] = generate(
            victim.model,
            context.tokenizer,
            [ids for ids, _ in made],
            context.decoding,
            batch_tokens=context.generation_tokens,
            precision=context.precision,
            label="",
        ).texts
        return clock() - began

    texts: list[str] = []
    ways = [Way("in the attack's calls", in_pieces, 0), Way("stage 4, all at once", at_once, 0)]
    comparison = Comparison(title, "summaries", ways)
    head = [victim.model.config.d_model, victim.model.lm_head.weight.shape[0]]
    for way in ways:
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
            way.run()
        way.items = len(made)
        shapes = [event.input_shapes for event in recorded.events() if event.name == "aten::mm"]
        rows = [a[0] for a, b in shapes if b == head]
        comparison.notes.append(f"{way.name}: {len(rows)} steps of {np.mean(rows):.0f} beams on average (profiler)")
    same = sum(text == other for (_, text), other in zip(made, texts, strict=True))
    comparison.checks.append(check(same >= 0.9 * len(made), f"{same} of {len(made)} summaries word by word"))
    return alternate(comparison, rounds=rounds)

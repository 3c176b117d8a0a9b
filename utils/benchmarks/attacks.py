"""Attacks: the passes of one search step, ours in large batches beside transformers, one input at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5ForConditionalGeneration

from utils.attacks.context import AttackContext, Victim
from utils.attacks.hotflip.coordinates import CoordinateProposer
from utils.attacks.hotflip.proposals import SearchTrajectory
from utils.attacks.hotflip.search import search
from utils.attacks.legal_tokens import LegalTokens, TokenizerView
from utils.attacks.objective import Objective, Targets
from utils.attacks.triggers.candidates import random_triggers
from utils.attacks.triggers.inputs import trigger_examples
from utils.attacks.triggers.objective import TriggerObjective
from utils.benchmarks import reranking
from utils.benchmarks.measure import Comparison, Way, alternate, check
from utils.benchmarks.synthetic import PREFIX, Size, examples, new_model, tokenizer
from utils.evaluation.decoding import DecodingSettings
from utils.modeling.precision import bf16_autocast, product_dtype, resolve_precision

CANDIDATES = 32
TRIGGERS = 4
GRADIENT_PASSES = 3  # a gradient costs about three forward passes
SINGLY = 4  # inputs that transformers passes through the model one at a time: its rate is what counts
BATCH_TOKENS = {"cpu": 8192, "cuda": 128 * 640}
Attacked = Sequence[tuple[ArrayLike, ArrayLike, float]]  # input ids, labels, loss by ours


def case(size: Size, device: str) -> list[Comparison]:
    """Forward passes and gradients of HotFlip and of a trigger search."""
    model, words = new_model(size, device), tokenizer(size.vocabulary)
    context = AttackContext(
        tokenizer=words,
        legal=LegalTokens(TokenizerView(words), embedding_size=model.config.vocab_size),
        prefix=PREFIX,
        max_input_length=size.max_input,
        max_target_length=size.max_target,
        decoding=DecodingSettings(min_new_tokens=min(10, size.max_new_tokens), max_new_tokens=size.max_new_tokens),
        batch_tokens=BATCH_TOKENS[device],
        generation_tokens=BATCH_TOKENS[device],
        precision=resolve_precision("auto", device),
    )
    objective = Objective(model, batch_tokens=context.batch_tokens, precision=context.precision)
    comparisons = [_hotflip(context, objective, model, size), _triggers(context, objective, model, size)]
    dtype = product_dtype(context.precision)
    comparisons = [alternate(one, rounds=size.rounds, peak_dtype=dtype) for one in comparisons]
    return [*comparisons, *_summaries(context, Victim("made up", model), size)]


def _hotflip(context: AttackContext, objective: Objective, model: T5ForConditionalGeneration, size: Size) -> Comparison:
    """One verified flip of some documents: gradient, proposals, and the exact loss of every candidate."""
    encoded = context.encode(examples(size.attacked, size, 3))
    targets = Targets([item.labels for item in encoded], objective.device)
    clean = objective.losses([np.asarray(item.ids) for item in encoded], targets, np.arange(len(encoded))).tolist()
    trajectories: list[SearchTrajectory] = []

    def ours() -> None:
        setup = (objective, context.legal, encoded, targets)
        proposer = CoordinateProposer(*setup, random_candidates=4)
        trajectories[:] = search(*setup, clean, proposer, scores=[CANDIDATES])

    ours()
    flipped = [one.best[-1] for one in trajectories]
    attacked: Attacked = [(state.ids, item.labels, state.loss) for state, item in zip(flipped, encoded, strict=True)]
    passes = sum(one.queries for one in trajectories) + GRADIENT_PASSES * len(encoded)
    title = f"HotFlip, {CANDIDATES} candidates for each of {len(encoded)} texts"
    return _comparison(title, Way("ours", ours, passes), context, model, attacked)


def _triggers(
    context: AttackContext, objective: Objective, model: T5ForConditionalGeneration, size: Size
) -> Comparison:
    """Some triggers scored on the same texts, and the gradient at the slots of one."""
    items = trigger_examples(context, examples(2 * size.attacked, size, 4), reranking.LENGTH)
    scored, rows = TriggerObjective(objective, items, "lead", 0), range(len(items))
    triggers = random_triggers(context.legal, "lead", reranking.LENGTH, TRIGGERS, np.random.default_rng(0))

    def ours() -> None:
        scored.losses(triggers, rows, "benchmark")
        scored.slot_gradients(triggers[:1], rows, "benchmark")

    losses = scored.losses(triggers[:1], rows, "benchmark")[0].tolist()
    attacked: Attacked = [
        (item.with_trigger("lead", triggers[0]), item.labels, loss) for item, loss in zip(items, losses, strict=True)
    ]
    way = Way("ours", ours, len(items) * (TRIGGERS + GRADIENT_PASSES))
    return _comparison(f"triggers, {TRIGGERS} on {len(items)} texts", way, context, model, attacked)


def _summaries(context: AttackContext, victim: Victim, size: Size) -> list[Comparison]:
    """Summaries that choose: flips of stage 6, on twice as many texts as are attacked by loss; triggers of stage 5."""
    texts = examples(2 * size.attacked, size, 5)
    triggers = trigger_examples(context, texts, reranking.LENGTH)
    attacks = {
        f"stage 6: flips of {len(texts)} texts by metric": reranking.stage_6(context, victim, context.encode(texts)),
        f"stage 5: {TRIGGERS} triggers on {len(texts)} texts": reranking.stage_5(context, victim, triggers, TRIGGERS),
    }
    return [reranking.beside_stage_4(title, context, victim, attack, rounds=size.rounds)
            for title, attack in attacks.items()]  # fmt: skip


def _comparison(
    title: str, ours: Way, context: AttackContext, model: T5ForConditionalGeneration, attacked: Attacked
) -> Comparison:
    """`ours` beside transformers on some of the `attacked` inputs, whose losses must be transformers' too."""
    few = attacked[:SINGLY]

    def singly() -> None:
        with bf16_autocast(model.device, context.precision == "bf16"):
            for ids, labels, _ in few:
                _loss(model, ids, labels, gradient=True)
                _loss(model, ids, labels)

    # What the passes need at least: those that transformers' forward pass has, counted without computing anything.
    shadow = copy.deepcopy(model)
    torch.nn.Module.to(shadow, "meta")
    with FlopCounterMode(display=False) as counter:
        for ids, labels, _ in few:
            _loss(shadow, ids, labels)
    ours.flops = ours.items * counter.get_total_flops() / len(few)
    expected = [_loss(model, ids, labels) for ids, labels, _ in few]
    tolerance = 1e-4 if context.precision == "fp32" else 2e-2
    same = np.allclose([loss for _, _, loss in few], expected, rtol=tolerance)
    text = "losses of attacked texts, ours and transformers': " + " ".join(f"{loss:.5f}" for loss in expected)
    reference = Way("transformers, one at a time", singly, len(few) * (GRADIENT_PASSES + 1))
    return Comparison(title, "passes", [ours, reference], [check(same, text)])


def _loss(model: T5ForConditionalGeneration, ids: ArrayLike, labels: ArrayLike, *, gradient: bool = False) -> float:
    """transformers' loss of one input in float32; with `gradient` that is computed as well, of all weights.

    On the device "meta" nothing is computed, and the loss is 0.
    """
    inputs, targets = (torch.as_tensor(np.asarray(row)[None]).long().to(model.device) for row in (ids, labels))
    model.requires_grad_(gradient)
    with torch.set_grad_enabled(gradient):
        loss: torch.Tensor = model(input_ids=inputs, labels=targets).loss
    if gradient:
        loss.backward()
        model.zero_grad()
        model.requires_grad_(False)
    return 0.0 if loss.is_meta else float(loss.detach())

"""HotFlip: the passes of one search step, ours in large batches against one input at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import T5ForConditionalGeneration

from utils.attacks.context import AttackContext
from utils.attacks.hotflip.search import GradientProposer, SearchTrajectory, search
from utils.attacks.legal_tokens import LegalTokens, TokenizerView
from utils.attacks.objective import Objective, Targets
from utils.benchmarks.measure import Comparison, Way, alternate, check, count_flops, relative_difference
from utils.benchmarks.synthetic import PREFIX, Size, examples, new_model, precision, product_dtype, tokenizer
from utils.evaluation.decoding import DecodingSettings

CANDIDATES, RANDOM_CANDIDATES, PER_POSITION, FLIPS = 32, 4, 4, 1
SINGLY = 8  # candidates that the reference scores: its rate is what counts
BATCH_TOKENS = {"cpu": 8192, "cuda": 128 * 640}


def case(size: Size, device: str) -> list[Comparison]:
    """One verified flip of some documents: gradient, proposals and 32 exact losses each."""
    model = new_model(size).to(device)
    setup = attack_setup(size, model, device)
    encoded = setup.encode(examples(size.attacked, size, seed=3))
    objective = Objective(model, batch_tokens=setup.batch_tokens, precision=precision(device))
    targets = Targets([item.labels for item in encoded], objective.device)
    clean = objective.losses([np.asarray(item.ids) for item in encoded], targets, np.arange(len(encoded))).tolist()
    walks: list[SearchTrajectory] = []

    def ours() -> None:
        proposer = GradientProposer(
            objective,
            setup.legal,
            encoded,
            targets,
            candidates=CANDIDATES,
            random_candidates=RANDOM_CANDIDATES,
            per_position=PER_POSITION,
        )
        walks[:] = search(objective, setup.legal, encoded, targets, clean, proposer, num_flips=FLIPS)

    flops = count_flops(ours)
    attacked = [walk.best[-1] for walk in walks]
    queries = sum(walk.queries for walk in walks)
    subset = max(SINGLY // len(encoded), 1)

    def singly() -> None:
        for item in encoded:
            gradient_of_everything(model, item.ids, item.labels, size)
            for _ in range(subset):
                padded_loss(model, item.ids, item.labels, size)

    # A gradient costs about three forward passes; a rate in passes lets the reference score fewer candidates.
    ways = [
        Way("ours, one verified flip", ours, queries + 3 * len(encoded), flops),
        Way("one input at a time, padded", singly, (subset + 3) * len(encoded)),
    ]
    title = f"HotFlip, {CANDIDATES} candidates of {len(encoded)} texts scored exactly"
    found = Comparison(title, "passes", ways, share_target=0.65)
    alone = [padded_loss(model, state.ids, item.labels, size) for state, item in zip(attacked, encoded, strict=True)]
    tolerance = 1e-4 if device == "cpu" else 2e-2
    found.checks.append(
        check(
            relative_difference([state.loss for state in attacked], alone) < tolerance,
            "losses of the accepted flips, each computed again alone and padded: "
            + " ".join(f"{loss:.5f}" for loss in alone),
        )
    )
    gains = [walk.best[-1].loss - start for walk, start in zip(walks, clean, strict=True)]
    found.notes.append(f"{queries} candidates scored, loss raised by {np.mean(gains):.4f} nats with {FLIPS} flip")
    return [alternate(found, rounds=size.rounds, device=device, dtype=product_dtype(device))]


def attack_setup(size: Size, model: T5ForConditionalGeneration, device: str) -> AttackContext:
    """What the attacks share, for this size; the tokenizer's own words are the legal tokens."""
    words = tokenizer(size.vocabulary)
    return AttackContext(
        tokenizer=words,
        legal=LegalTokens(TokenizerView(words), embedding_size=model.config.vocab_size),
        prefix=PREFIX,
        max_input_length=size.max_input,
        max_target_length=size.max_target,
        decoding=DecodingSettings(2, 1.2, 2, 8, 3),
        batch_tokens=BATCH_TOKENS[device],
        generation_tokens=8192,
        precision=precision(device),
    )


def _padded(
    model: T5ForConditionalGeneration, ids: Sequence[int], labels: Sequence[int], size: Size
) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.zeros(1, size.max_input, dtype=torch.long)
    target = torch.full((1, size.max_target), -100)
    inputs[0, : len(ids)], target[0, : len(labels)] = torch.as_tensor(np.asarray(ids)), torch.as_tensor(labels)
    return inputs.to(model.device), target.to(model.device)


@torch.no_grad()
def padded_loss(model: T5ForConditionalGeneration, ids: Sequence[int], labels: Sequence[int], size: Size) -> float:
    """The plain recipe's loss of one input, padded to the limits."""
    inputs, target = _padded(model, ids, labels, size)
    return float(model(input_ids=inputs, attention_mask=(inputs != 0).long(), labels=target).loss)


def gradient_of_everything(
    model: T5ForConditionalGeneration, ids: Sequence[int], labels: Sequence[int], size: Size
) -> None:
    """The plain recipe's gradient: of all weights, though only that of the embeddings is wanted."""
    inputs, target = _padded(model, ids, labels, size)
    model.requires_grad_(True)
    model(input_ids=inputs, attention_mask=(inputs != 0).long(), labels=target).loss.backward()
    model.zero_grad()
    model.requires_grad_(False)

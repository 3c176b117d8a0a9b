"""The loss and gradient that attacks follow: exact, independent of the batch, alive after running out of memory."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from tests import attack_world as world
from utils.attacks.context import Victim
from utils.attacks.objective import Objective, Smoothing, Targets
from utils.attacks.precision import rank_agreement, search_objective
from utils.core.errors import StageError

pytestmark = pytest.mark.slow

TOKENIZER = world.tokenizer()
CONTEXT = world.attack_context(TOKENIZER)
ITEMS = CONTEXT.encode([*world.examples(6, words=8), *world.examples(3, words=30)])


def _objective(**values: object) -> Objective:
    return Objective(world.model(len(TOKENIZER) + 8), **({"batch_tokens": 10_000} | values))


def _targets(objective: Objective) -> Targets:
    return Targets([item.labels for item in ITEMS], objective.device)


def _gradients(objective: Objective) -> tuple[np.ndarray, list[np.ndarray]]:
    found: list[np.ndarray] = [np.zeros(0)] * len(ITEMS)

    def use(rows: np.ndarray, ids: torch.Tensor, gradient: torch.Tensor) -> None:
        for k, i in enumerate(rows):
            assert ids[k, : len(ITEMS[i].ids)].tolist() == list(ITEMS[i].ids)
            found[i] = gradient[k, : len(ITEMS[i].ids)].numpy().copy()

    losses = objective.gradients([i.ids for i in ITEMS], _targets(objective), np.arange(len(ITEMS)), use)
    return losses, found


def test_losses_are_those_of_the_model() -> None:
    objective = _objective()
    losses = objective.losses([i.ids for i in ITEMS], _targets(objective), np.arange(len(ITEMS)))
    for item, loss in zip(ITEMS, losses, strict=True):
        with torch.no_grad():
            expected = objective.model(input_ids=torch.tensor([item.ids]), labels=torch.tensor([item.labels])).loss
        assert loss == pytest.approx(float(expected), abs=2e-5)
    assert objective.forward_rows == len(ITEMS)


def test_batched_gradients_equal_single_ones() -> None:
    losses, together = _gradients(_objective())
    alone_losses, alone = _gradients(_objective(batch_tokens=1))
    assert losses == pytest.approx(alone_losses, rel=1e-5)
    for a, b in zip(together, alone, strict=True):
        assert np.abs(a - b).max() <= 1e-3 * np.abs(b).max()


def test_noise_is_the_same_in_every_batch_and_none_is_the_plain_gradient() -> None:
    places = [np.array(item.attackable) for item in ITEMS]
    model = world.model(len(TOKENIZER) + 8, scale=1.0)  # a smooth one, where rounding stays small

    def smoothed(batch_tokens: int, sigma: float) -> tuple[list[np.ndarray], np.ndarray]:
        objective, found = Objective(model, batch_tokens=batch_tokens), [np.zeros(0)] * len(ITEMS)

        def use(rows: np.ndarray, ids: torch.Tensor, gradient: torch.Tensor) -> None:
            for k, i in enumerate(rows):
                found[i] = gradient[k, : len(ITEMS[i].ids)].numpy().copy()

        smoothing = Smoothing(sigma, [None, list(range(len(ITEMS)))], places)
        owner = np.arange(len(ITEMS))
        objective.gradients([i.ids for i in ITEMS], _targets(objective), owner, use, smoothing=smoothing)
        assert objective.gradient_rows == 2 * len(ITEMS)
        return found, smoothing.norms

    plain = _gradients(Objective(model, batch_tokens=10_000))[1]
    for a, b in zip(plain, smoothed(10_000, 0.0)[0], strict=True):
        assert np.abs(a - b).max() <= 1e-4 * np.abs(a).max()
    together, norms = smoothed(10_000, 1.0)
    alone, again = smoothed(1, 1.0)
    expected = [np.linalg.norm(a[where]) for a, where in zip(plain, places, strict=True)]
    assert norms == pytest.approx(expected, rel=1e-3) and again == pytest.approx(expected, rel=1e-3)
    for a, b, c in zip(together, alone, plain, strict=True):
        assert np.abs(a - b).max() <= 1e-3 * np.abs(b).max()
        assert np.abs(a - c).max() > 1e-2 * np.abs(c).max()


def test_gradient_predicts_a_small_step() -> None:
    objective = _objective()
    objective.model.double()
    objective.embedding = objective.model.get_input_embeddings().weight
    found = {}

    def use(rows: np.ndarray, ids: torch.Tensor, gradient: torch.Tensor) -> None:
        found["gradient"] = gradient.double()

    targets = _targets(objective)
    objective.gradients([ITEMS[0].ids], targets, [0], use)
    step = 1e-7 * found["gradient"] / found["gradient"].norm()
    embeds = objective.embedding[torch.tensor([ITEMS[0].ids])]

    def loss(shift: torch.Tensor) -> float:
        with torch.no_grad():
            return float(objective.model(inputs_embeds=embeds + shift, labels=torch.tensor([ITEMS[0].labels])).loss)

    assert loss(step) - loss(-step) == pytest.approx(2e-7 * float(found["gradient"].norm()), rel=0.02)


def test_no_weight_gets_a_gradient_and_nothing_is_random() -> None:
    objective = _objective()
    first, _ = _gradients(objective)
    second, _ = _gradients(objective)
    assert np.array_equal(first, second)
    assert not objective.model.training
    assert all(not p.requires_grad and p.grad is None for p in objective.model.parameters())


def test_owner_chooses_the_target() -> None:
    objective = _objective()
    targets = _targets(objective)
    inputs = [ITEMS[0].ids] * 3
    losses = objective.losses(inputs, targets, [0, 1, 0])
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)
    assert abs(losses[0] - losses[1]) > 1e-3


def test_out_of_memory_halves_the_batch_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    objective = _objective()
    expected = objective.losses([i.ids for i in ITEMS], _targets(objective), np.arange(len(ITEMS)))

    def refuse(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        if len(kwargs["inputs_embeds"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    honest = objective.engine.mean_nll

    def small(inputs: list, labels: list) -> torch.Tensor:
        refuse(objective.model, (), {"inputs_embeds": inputs})
        return honest(inputs, labels)

    objective.engine.mean_nll = small  # type: ignore[method-assign]
    objective.model.register_forward_pre_hook(refuse, with_kwargs=True)
    with caplog.at_level(logging.WARNING):
        losses = objective.losses([i.ids for i in ITEMS], _targets(objective), np.arange(len(ITEMS)))
    assert losses == pytest.approx(expected, rel=1e-5)
    assert "Out of memory" in caplog.text
    assert objective.limit.value < 10_000
    gradients = _gradients(objective)[1]
    assert all(len(g) == len(item.ids) for g, item in zip(gradients, ITEMS, strict=True))


def test_out_of_memory_with_one_input_is_an_error_for_people() -> None:
    objective = _objective()

    def refuse(inputs: list, labels: list) -> torch.Tensor:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    objective.engine.mean_nll = refuse  # type: ignore[method-assign]
    with pytest.raises(StageError, match="single input"):
        objective.losses([ITEMS[0].ids], _targets(objective), [0])


def test_other_errors_are_not_taken_for_memory() -> None:
    objective = _objective()
    with pytest.raises((IndexError, RuntimeError), match="index"):
        objective.losses([(0, 10_000, 1)], _targets(objective), [0])


def test_bf16_is_used_only_where_it_ranks_as_fp32_does(caplog: pytest.LogCaptureFixture) -> None:
    model = world.planted_model()
    items = CONTEXT.encode(world.planted_examples(8))
    exact, quick = Objective(model, batch_tokens=5000), Objective(model, batch_tokens=5000, precision="bf16")
    agreement = rank_agreement(CONTEXT, exact, quick, items)
    assert 0.5 < agreement <= 1.0
    context = world.attack_context(TOKENIZER, precision="bf16")
    chosen = search_objective(context, Victim("standard", model), items)
    assert chosen.precision == ("bf16" if agreement >= 0.98 else "fp32")
    noisy = world.model(len(TOKENIZER) + 8, scale=8.0)  # a rough landscape: bf16 ranks badly
    with caplog.at_level(logging.WARNING):
        assert search_objective(context, Victim("standard", noisy), ITEMS).precision == "fp32"
    assert "searching in fp32" in caplog.text

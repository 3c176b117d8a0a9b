"""A training step: transformers' arithmetic by fewer operations, in pieces, without memory, activations made again."""

import copy
import dataclasses
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import utils.training.forward
import utils.training.train
import utils.training.trainer
from configs.arms import ARMS
from tests.operations import operations
from tests.tiny import untie, write_model
from tests.training_world import SETTINGS, STEPS, rows, run
from utils.analysis.final import StepPath
from utils.core.errors import Interrupted, StageError
from utils.core.hashes import weights_sha256
from utils.modeling.models import load_model
from utils.modeling.monotonic import constrain, parameter_groups
from utils.training.batches import Padding, TokenRows
from utils.training.step import gradients, module_nll, summed_nll

NO_MEMORY = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def grads(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("arm", ["baseline", "monotonic"])
def test_a_step_is_t5s_own_loss_torchs_clip_and_adamw_to_rounding(pretrained, arm):
    """Written out once more, with dropout on: loss of the model's own, backward, clip_grad_norm_, AdamW."""
    data, ours = TokenRows(rows(pretrained, 12, 3)), constrain(load_model(pretrained), arm=arm).train()
    theirs = copy.deepcopy(ours)
    optimizers = [torch.optim.AdamW(parameter_groups(model, 0.01), lr=1e-2, fused=True) for model in (ours, theirs)]
    for step in range(3):
        batch = data.share([4 * step + number for number in range(4)], 0, 1)
        torch.manual_seed(step)
        with parametrize.cached():
            expected = theirs(**{k: batch[k] for k in ("input_ids", "attention_mask", "labels")}, use_cache=False).loss
        expected.backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        state = torch.get_rng_state()
        torch.manual_seed(step)
        found = gradients(ours, batch, autocast=False, clip=0.5, micro_batch=4)
        assert torch.equal(state, torch.get_rng_state()), "dropout draws other numbers"
        assert found[1] > 0.5, "nothing is clipped in this test"
        torch.testing.assert_close(found, (expected.detach(), norm), rtol=1e-5, atol=0)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert (a.grad - b.grad).norm() <= 1e-5 * 0.5
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():  # Adam divides by the size of gradients: rounding of the smallest ones would add up
            for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                a.copy_(b)


def all_gradients(model, batch, nll, *, autocast) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(2)
    gradients(model, batch, autocast=autocast, clip=0.0, micro_batch=6, nll=nll)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def distance(some: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    apart = nn.utils.get_total_norm([some[name] - exact[name] for name in exact])
    return float(apart / nn.utils.get_total_norm(list(exact.values())))


@pytest.fixture(params=["cpu", "as a GPU"])
def kernels(request, monkeypatch):
    """A CPU has the attention and the norm that a GPU takes, too: only how fast they are needs one."""
    if request.param != "cpu":
        monkeypatch.setattr(utils.training.forward, "FUSED", ("cpu",))


@pytest.mark.parametrize(("arm", "gated"), [*((arm, False) for arm in ARMS), ("baseline", True), ("monotonic", True)])
def test_every_arm_has_the_gradients_of_transformers_module(tmp_path_factory, kernels, arm, gated):
    folder = tmp_path_factory.getbasetemp() / f"arms_{gated}"
    if not folder.exists():
        write_model(folder, layers=2, gated=gated)
        if gated:
            untie(folder)
    model = constrain(load_model(folder), arm=arm).train()
    batch = TokenRows(rows(folder, 4, 3), padding=Padding(64, 32, rows=6)).share(range(4), 0, 1)
    exact, ours = (all_gradients(model, batch, nll, autocast=False) for nll in (module_nll, summed_nll))
    assert ours.keys() == exact.keys() and distance(ours, exact) <= 1e-5


@pytest.mark.parametrize(("arm", "gated"), [("baseline", False), ("monotonic", False), ("monotonic", True)])
def test_bfloat16_is_as_near_to_float32_as_transformers_module(tmp_path, kernels, arm, gated):
    model = constrain(
        load_model(write_model(tmp_path, d_model=32, layers=2, gated=gated, dropout=0.0)), arm=arm
    ).train()
    data, found = TokenRows(rows(tmp_path, 40, 3)), []
    for start in range(0, 40, 5):
        batch = data.share(range(start, start + 5), 0, 1)
        exact = all_gradients(model, batch, module_nll, autocast=False)
        ways = (summed_nll, module_nll)
        found.append([distance(all_gradients(model, batch, nll, autocast=True), exact) for nll in ways])
    ours, theirs = torch.tensor(found).mean(0).tolist()
    assert 1e-3 < ours <= 1.5 * theirs


@pytest.mark.parametrize("arm", ["baseline", "monotonic"])
def test_a_step_of_t5_small_is_at_most_1600_operations(arm):
    assert operations(arm, module_nll, "cpu").total() > 2300, "the count no longer sees what there is"
    assert operations(arm, summed_nll, "cpu").total() <= 1600


@pytest.mark.parametrize("gated", [False, True])
def test_four_times_one_is_a_batch_of_four(tmp_path, gated):
    model = constrain(load_model(write_model(tmp_path, gated=gated))).eval()
    batch = TokenRows(rows(tmp_path, 4, 3)).share(range(4), 0, 1)
    found = []
    for pieces in (4, 1, 3):
        model.zero_grad()
        loss, norm = gradients(model, batch, autocast=False, clip=0.0, micro_batch=pieces)
        found.append((loss, norm, grads(model)))
    for loss, norm, parts in found[1:]:
        torch.testing.assert_close(loss, found[0][0], rtol=1e-6, atol=0)
        for ours, theirs in zip(parts, found[0][2], strict=True):
            assert (ours - theirs).norm() <= 1e-6 * norm


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_the_same_when_activations_are_computed_again(pretrained, autocast):
    kept = constrain(load_model(pretrained)).train()
    again = copy.deepcopy(kept)
    again.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch = TokenRows(rows(pretrained, 4, 3)).share(range(4), 0, 1)
    saved = []
    for model in (kept, again):
        saved.append(0)

        def count(tensor: torch.Tensor) -> torch.Tensor:
            saved[-1] += tensor.numel()
            return tensor

        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            gradients(model, batch, autocast=autocast, clip=0.0, micro_batch=4)
    assert saved[1] < 0.7 * saved[0]
    assert all(torch.equal(a, b) for a, b in zip(grads(kept), grads(again), strict=True))


@pytest.mark.slow
def test_out_of_memory_halves_what_goes_through_at_once_and_nothing_else(pretrained, tmp_path, monkeypatch, caplog):
    honest, asked = utils.training.trainer.gradients, []

    def short(model, batch, *, micro_batch, **settings):
        asked.append(micro_batch)
        found = honest(model, batch, micro_batch=micro_batch, **settings)  # draws random numbers, leaves gradients
        if micro_batch > 1 and len(asked) >= STEPS:
            raise NO_MEMORY
        return found

    settings = dataclasses.replace(SETTINGS, epochs=2)
    monkeypatch.setattr(utils.training.trainer, "gradients", short)
    stops = iter([False] * STEPS + [True])  # within epoch 2, after memory ran out
    with pytest.raises(Interrupted):
        run(pretrained, tmp_path / "short", settings=settings, stop_requested=lambda: next(stops))
    assert asked[: STEPS + 2] == [4] * (STEPS - 1) + [2, 1, 1]  # the last batch has two rows
    lines = [record.getMessage() for record in caplog.records if "Out of memory" in record.getMessage()]
    assert lines == [
        "Out of memory with a batch of 2 inputs. Limit is now 1 examples at once, whose gradients add up to those of a "
        "batch of 4."
    ]
    asked.clear()
    history = run(pretrained, tmp_path / "short", settings=settings)
    assert set(asked) == {1} and history["micro_batch_size"] == 1, "what did not fit is not tried again after a resume"

    def planned(model, batch, *, micro_batch, **settings):
        taken.append(1)
        return honest(model, batch, micro_batch=micro_batch if len(taken) < STEPS else 1, **settings)

    taken: list[int] = []
    monkeypatch.setattr(utils.training.trainer, "gradients", planned)
    run(pretrained, tmp_path / "planned", settings=settings)
    assert weights_sha256(tmp_path / "short/best") == weights_sha256(tmp_path / "planned/best")


def test_graphs_and_their_memory_go_when_memory_runs_out_and_the_history_says_so(pretrained, tmp_path, monkeypatch):
    class Graphs:  # as GraphedGradients: called with a whole batch, holds memory
        def __call__(self, batch):
            if len(alive) < STEPS - 1:
                alive.append(True)
                return honest(trainers[0].model, batch, autocast=False, clip=1.0, micro_batch=4)
            raise RuntimeError(*NO_MEMORY.args)  # a new one: what is raised holds its frames

    def choose_path(trainer):
        trainers.append(trainer)
        trainer.fast = Graphs()
        graphs.append(weakref.ref(trainer.fast))
        trainer.path = StepPath(path="graphs", reason="", eager_ms=2.0, graph_ms=1.0)

    def eager(*args, **kwargs):
        alive.append(graphs[0]() is not None)
        return honest(*args, **kwargs)

    honest, trainers, graphs, alive = gradients, [], [], []
    monkeypatch.setattr(utils.training.train, "obstacle", lambda *_, **__: None)
    monkeypatch.setattr(utils.training.trainer.ArmTrainer, "_choose_path", choose_path)
    monkeypatch.setattr(utils.training.trainer, "gradients", eager)
    history = run(pretrained, tmp_path, settings=dataclasses.replace(SETTINGS, epochs=1))
    assert alive == [True] * (STEPS - 1) + [False], "the retry has the memory that the graphs held"
    assert history["step_path"] == {
        "path": "eager", "reason": "out of memory with a whole batch", "eager_ms": 2.0, "graph_ms": 1.0
    }  # fmt: skip


@pytest.mark.slow
def test_the_pieces_of_a_batch_give_the_training_of_whole_batches(tmp_path, monkeypatch):
    pretrained, settings = write_model(tmp_path / "model", dropout=0.0), dataclasses.replace(SETTINGS, epochs=1)
    whole = run(pretrained, tmp_path / "whole", settings=settings)
    pieces = run(pretrained, tmp_path / "one", settings=dataclasses.replace(settings, micro_batch_size=1))
    assert pieces["epochs"][0]["train_loss"] == pytest.approx(whole["epochs"][0]["train_loss"], rel=1e-5)
    assert (whole["micro_batch_size"], pieces["micro_batch_size"]) == (4, 1)

    def hopeless(*_, **__):
        raise NO_MEMORY

    monkeypatch.setattr(utils.training.trainer, "gradients", hopeless)
    with pytest.raises(StageError, match=r"single example at once\. Set MONO_S2S_GRADIENT_CHECKPOINTING=true"):
        run(pretrained, tmp_path / "none", settings=settings)

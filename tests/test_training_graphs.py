"""The check that decides about CUDA graphs, with ways that are right, wrong, slow and broken; graphs where a GPU is."""

import dataclasses
import time
from pathlib import Path

import pytest
import torch

from tests.tiny import write_model
from tests.training_world import SETTINGS, rows, run
from utils.modeling.models import load_model
from utils.modeling.monotonic import constrain
from utils.training.batches import GRAPH_WIDTHS, Padding, TokenRows
from utils.training.graphs import GraphedGradients, choose, obstacle
from utils.training.step import gradients
from utils.training.trainer import to_device

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: CUDA graphs cannot be captured here")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


class World:
    """A model, its batches, and the way that is today's; `pause` makes that slow."""

    def __init__(self, pretrained: Path, device: str = "cpu", arm: str = "monotonic", pause: float = 0.0) -> None:
        self.model = constrain(load_model(pretrained, device=device), arm=arm).train()
        data = TokenRows(rows(pretrained, 14, 3), padding=Padding(*GRAPH_WIDTHS, rows=4))
        whole = [data.share(range(n, min(n + 4, 14)), 0, 1) for n in range(0, 14, 4)]
        self.batches = [to_device(batch, torch.device(device)) for batch in whole]
        self.pause = pause

    def eager(self, batch):
        time.sleep(self.pause)
        return gradients(self.model, batch, autocast=False, clip=1.0, micro_batch=4)

    def other(self, batch):
        return gradients(self.model, batch, autocast=False, clip=1.0, micro_batch=4)

    def chosen(self, fast):
        return choose(
            self.model, self.eager, lambda: fast, self.batches, precision="fp32", generators=torch.random, wait=int
        )


def test_the_faster_of_two_equal_ways_is_taken_and_nothing_is_changed(pretrained):
    world = World(pretrained, pause=0.05)
    weights = [parameter.detach().clone() for parameter in world.model.parameters()]
    torch.manual_seed(3)
    way, path = world.chosen(world.other)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(3))), "random state moved"
    assert way == world.other and path.path == "graphs" and path.eager_ms > path.graph_ms > 0
    for parameter, before in zip(world.model.parameters(), weights, strict=True):
        assert torch.equal(parameter, before) and parameter.grad is None


def broken(world: World, kind: str):
    def way(batch):
        if kind == "fails":
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        if kind == "other batch":
            return world.other(world.batches[0])
        if kind == "draws more":
            torch.rand(1)
        if kind == "slow":
            time.sleep(0.05)
        loss, norm = world.other(batch)
        if kind == "one gradient":
            world.model.shared.weight.grad[5] *= 1.5
        return (loss * float("nan"), norm) if kind == "nan" else (loss, norm)

    return way


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("fails", "they failed: operation not permitted when stream is capturing"),
        ("other batch", "differs by"),
        ("draws more", "they draw other random numbers"),
        ("one gradient", "their gradients differs by"),
        ("nan", "their loss differs by nan"),
        ("slow", "they are not faster"),
    ],
)
def test_a_way_that_is_wrong_slow_or_broken_steps_aside_with_one_line(pretrained, caplog, kind, says):
    world = World(pretrained)
    way, path = world.chosen(broken(world, kind))
    assert way == world.eager and path.path == "eager" and says in path.reason
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"Training without CUDA graphs: {path.reason}."


def test_why_graphs_are_not_tried():
    fine = {"device": "cuda", "processes": 1, "whole_batch": True, "checkpointing": False}
    assert obstacle("auto", **fine) is None and obstacle("off", **fine) == "TRAINING_GRAPHS is off"
    for name, value in (("device", "cpu"), ("processes", 2), ("whole_batch", False), ("checkpointing", True)):
        assert obstacle("auto", **fine | {name: value})


@pytest.mark.slow
def test_the_history_says_how_gradients_were_computed(pretrained, tmp_path):
    settings = dataclasses.replace(SETTINGS, epochs=1)
    history = run(pretrained, tmp_path, settings=settings)
    assert history["step_path"] == {"path": "eager", "reason": "no GPU"}
    assert (
        run(pretrained, tmp_path, settings=dataclasses.replace(SETTINGS, epochs=1))["step_path"]["reason"] == "no GPU"
    )


@gpu
@pytest.mark.parametrize("arm", ["baseline", "monotonic"])
def test_graphs_have_the_gradients_and_the_random_numbers_of_eager_steps(pretrained, arm):
    world = World(pretrained, "cuda", arm)
    graphed = GraphedGradients(world.model, world.eager)
    found = []
    for way in (world.eager, graphed):
        torch.cuda.manual_seed(0)
        for batch in world.batches * 5:
            world.model.zero_grad()
            loss, norm = way(batch)
            found.append((float(loss), float(norm), [p.grad.clone() for p in world.model.parameters()]))
        found.append(torch.cuda.get_rng_state())
    half = len(found) // 2
    assert torch.equal(found[half - 1], found[-1])
    for ours, theirs in zip(found[: half - 1], found[half:-1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@gpu
def test_training_on_a_gpu_is_the_same_with_graphs_and_after_a_stop(pretrained, tmp_path):
    settings = dataclasses.replace(SETTINGS, device="cuda", precision="fp32")
    graphed = run(pretrained, tmp_path / "graphs", settings=settings)
    eager = run(pretrained, tmp_path / "eager", settings=dataclasses.replace(settings, graphs="off"))
    assert graphed["step_path"]["path"] == "graphs", graphed["step_path"]["reason"]
    print(graphed["step_path"])
    # Other padding draws other dropout: equal in kind, not in bits.
    for ours, theirs in zip(graphed["epochs"], eager["epochs"], strict=True):
        assert ours["validation_loss"] == pytest.approx(theirs["validation_loss"], rel=0.02)

"""The check that decides about CUDA graphs, with ways that are right, wrong, slow and broken; graphs where a GPU is."""

import dataclasses
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tiny import write_model
from tests.training_world import SETTINGS, rows, run
from utils.analysis.final import StepPath
from utils.core.errors import Interrupted
from utils.core.hashes import weights_sha256
from utils.modeling.models import load_model
from utils.modeling.monotonic import constrain
from utils.training.batches import GRAPH_WIDTHS, Padding, TokenRows
from utils.training.graphs import GraphedGradients, choose, obstacle
from utils.training.step import gradients
from utils.training.trainer import ArmTrainer, to_device

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
        self.pause, self.device = pause, device

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


class RecordedGraph(TorchDispatchMode):
    """A CUDA graph on a CPU: the operations of a capture with the very tensors that they read and wrote.

    A replay repeats them on that memory, whatever is in it now, and draws new random numbers; numbers that Python saw
    are those of the capture. What a graph gets wrong on a GPU (an input that is not copied, a result in memory that
    another one uses) it gets wrong here.
    """

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, out in self.operations:
            if func.is_view:
                continue  # of memory that is written over
            again = func(*args, **kwargs)
            for old, new in zip(*(value if isinstance(value, (tuple, list)) else [value] for value in (out, again)),
                                strict=True):  # fmt: skip
                if isinstance(old, torch.Tensor) and old is not new:
                    old.copy_(new)


class FakeCuda:
    """torch.cuda as far as graphs need it; the generator is in a capture that failed until it gets another state."""

    def __init__(self, monkeypatch, refuse=None):
        self.poisoned, self.refuse, self.captures = False, refuse, 0
        generator = SimpleNamespace(clone_state=lambda: "unharmed", graphsafe_set_state=self.heal)
        for name, value in {
            "graph_pool_handle": lambda: None, "Stream": lambda: SimpleNamespace(wait_stream=lambda other: None),
            "current_stream": lambda: SimpleNamespace(wait_stream=lambda other: None), "stream": nullcontext,
            "CUDAGraph": RecordedGraph, "graph": self.capture, "get_rng_state": torch.get_rng_state,
            "set_rng_state": torch.set_rng_state, "default_generators": (generator,), "current_device": lambda: 0,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)

    def capture(self, graph, pool):
        self.captures += 1
        if self.captures == self.refuse:
            self.poisoned = True
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return graph

    def heal(self, state):
        assert state == "unharmed"
        self.poisoned = False


@pytest.mark.parametrize("arm", ["baseline", "monotonic"])
def test_recorded_graphs_have_the_gradients_and_the_random_numbers_of_eager_steps(pretrained, arm, monkeypatch):
    FakeCuda(monkeypatch)
    same_as_eager(World(pretrained, arm=arm))


@pytest.mark.parametrize("refused", [1, 2])
def test_a_capture_that_fails_leaves_the_generator_as_it_was(pretrained, monkeypatch, refused):
    """The first is of the check at the start; a later one is of a shape that comes in the middle of the training."""
    cuda, world = FakeCuda(monkeypatch, refuse=refused), World(pretrained, pause=0.02)
    short = {**world.batches[1], "labels": world.batches[1]["labels"][:, :16]}
    world.batches = [world.batches[0], short]

    def eager(batch):
        assert not cuda.poisoned, "Offset increment outside graph capture encountered unexpectedly"
        return world.other(batch)

    def fast():
        return GraphedGradients(world.model, eager)

    way, path = choose(world.model, eager, fast, world.batches, precision="fp32", generators=torch.random, wait=int)
    assert way == eager and path.reason == "they failed: operation not permitted when stream is capturing"
    loss, _ = way(world.batches[0])
    assert torch.isfinite(loss) and cuda.captures == refused


def test_a_shape_that_cannot_be_captured_in_the_middle_ends_graphs_and_not_the_training(
    pretrained, tmp_path, monkeypatch, caplog
):
    cuda, found = FakeCuda(monkeypatch, refuse=2), []

    def choose_path(trainer):
        def eager(batch):
            assert not cuda.poisoned
            return trainer._gradients(batch, len(batch["labels"]))

        found.append(trainer)
        trainer.fast = GraphedGradients(trainer.model, eager)
        trainer.path = StepPath(path="graphs", reason="", eager_ms=2.0, graph_ms=1.0)

    monkeypatch.setattr("utils.training.train.obstacle", lambda *_, **__: None)
    monkeypatch.setattr("utils.training.train.GRAPH_WIDTHS", (16, 8))  # several shapes
    monkeypatch.setattr(ArmTrainer, "_choose_path", choose_path)
    settings = dataclasses.replace(SETTINGS, epochs=2)
    history = run(pretrained, tmp_path / "graphs", settings=settings)
    assert cuda.captures == 2 and history["step_path"]["path"] == "eager"
    assert history["step_path"]["reason"] == "they failed: operation not permitted when stream is capturing"
    assert "continues without CUDA graphs" in caplog.text
    monkeypatch.setattr(
        ArmTrainer, "_choose_path", lambda trainer: setattr(trainer, "path", StepPath(path="eager", reason="no"))
    )
    eager = run(pretrained, tmp_path / "eager", settings=settings)
    assert [row["train_loss"] for row in history["epochs"]] == [row["train_loss"] for row in eager["epochs"]]
    assert weights_sha256(tmp_path / "graphs/best") == weights_sha256(tmp_path / "eager/best")


def same_as_eager(world):
    graphed = GraphedGradients(world.model, world.eager)
    found = []
    generators = torch.cuda if world.device == "cuda" else torch.random
    for way in (world.eager, graphed):
        generators.manual_seed(0)
        for batch in world.batches * 3:
            world.model.zero_grad()
            loss, norm = way(batch)
            found.append((loss, norm, [p.grad.clone() for p in world.model.parameters()]))
        found.append(generators.get_rng_state())
    half = len(found) // 2
    assert torch.equal(found[half - 1], found[-1])
    for ours, theirs in zip(found[: half - 1], found[half:-1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@gpu
@pytest.mark.parametrize("arm", ["baseline", "monotonic"])
def test_graphs_have_the_gradients_and_the_random_numbers_of_eager_steps(pretrained, arm):
    same_as_eager(World(pretrained, "cuda", arm))


@gpu
def test_a_capture_that_cuda_refuses_leaves_dropout_working(pretrained):
    world = World(pretrained, "cuda")

    def reads(batch):
        loss, norm = world.other(batch)
        float(loss)  # waits for the device, which no capture allows
        return loss, norm

    def fast():
        return GraphedGradients(world.model, reads)

    way, path = choose(world.model, world.eager, fast, world.batches, precision="fp32", generators=torch.cuda,
                       wait=torch.cuda.synchronize)  # fmt: skip
    assert way == world.eager and path.reason.startswith("they failed: "), path
    assert torch.isfinite(way(world.batches[0])[0])


@gpu
def test_training_on_a_gpu_is_the_same_with_graphs_and_after_a_stop(pretrained, tmp_path):
    settings = dataclasses.replace(SETTINGS, device="cuda", precision="fp32")
    graphed = run(pretrained, tmp_path / "graphs", settings=settings)
    assert graphed["step_path"]["path"] == "graphs", graphed["step_path"]["reason"]
    print(graphed["step_path"])
    asked = iter([False, False, True])
    with pytest.raises(Interrupted):
        run(pretrained, tmp_path / "stopped", settings=settings, stop_requested=lambda: next(asked, False))
    resumed = run(pretrained, tmp_path / "stopped", settings=settings)
    assert resumed["resumes"] == 1
    eager = run(pretrained, tmp_path / "eager", settings=dataclasses.replace(settings, graphs="off"))
    # After a stop the same steps but for rounding; without graphs other padding, which draws other dropout.
    for other, allowed in ((resumed, 1e-4), (eager, 0.02)):
        for ours, theirs in zip(graphed["epochs"], other["epochs"], strict=True):
            assert ours["validation_loss"] == pytest.approx(theirs["validation_loss"], rel=allowed)

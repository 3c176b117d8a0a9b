"""Our loss of a T5 is held against transformers' before it trains; where it differs, transformers' own trains."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import utils.training.proof
import utils.training.trainer
from tests.tiny import untie, write_model
from tests.training_world import SETTINGS, rows, run
from utils.modeling.models import load_model
from utils.modeling.monotonic import constrain
from utils.training.batches import Padding, TokenRows
from utils.training.forward import summed_nll
from utils.training.proof import difference


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), layers=2)


def padded(folder: Path) -> dict:
    return TokenRows(rows(folder, 4, 3), padding=Padding(64, 32, rows=6)).share(range(4), 0, 1)


@pytest.mark.parametrize("arm", ["baseline", "monotonic"])
@pytest.mark.parametrize("gated", [False, True])
def test_a_model_that_it_knows_is_trained_by_it_and_nothing_is_left_behind(tmp_path, arm, gated):
    folder = write_model(tmp_path, layers=2, gated=gated)
    model = constrain(load_model(untie(folder) if gated else folder), arm=arm).train()
    before, state = [p.detach().clone() for p in model.parameters()], torch.get_rng_state()
    for autocast in (False, True):
        assert difference(model, padded(folder), autocast=autocast) == ""
    assert torch.equal(state, torch.get_rng_state()) and model.training
    assert all(p.grad is None and torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def wrong_loss(model, batch, *, autocast):
    return summed_nll(model, batch, autocast=autocast) + 0.01


def wrong_gradient(model, batch, *, autocast):
    """Of the smallest table of all: its loss is right."""
    table = model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    return summed_nll(model, batch, autocast=autocast) + 0.1 * (table.sum() - table.sum().detach())


def wrong_in_bfloat16(model, batch, *, autocast):
    return (wrong_gradient if autocast else summed_nll)(model, batch, autocast=autocast)


def no_gradient(model, batch, *, autocast):
    """Of one norm: as if another value had been read."""
    weight = model.encoder.block[1].layer[0].layer_norm.weight
    weight.requires_grad_(False)
    loss = summed_nll(model, batch, autocast=autocast)
    weight.requires_grad_(True)
    return loss


def other_layers(model, batch, *, autocast):
    return model.encoder.block[0].layer[0].another_name


def too_large(model, batch, *, autocast):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


@pytest.mark.parametrize(
    ("mutant", "reason"),
    [
        (wrong_loss, r"^[0-9.]+ nats instead of [0-9.]+$"),
        (wrong_gradient, r"^the gradient of decoder\.block\.0\S+relative_attention_bias\.weight differs by .*% of"),
        (wrong_in_bfloat16, r"^the gradient of decoder\.block\.0\S+relative_attention_bias\.weight differs by .*% of"),
        (no_gradient, r"^the gradient of encoder\.block\.1\.layer\.0\.layer_norm\.weight differs by 100\.0% of"),
        (other_layers, "^it fails: .*another_name"),
        (too_large, "^no memory to compare"),
    ],
)
def test_what_is_wrong_is_named(pretrained, monkeypatch, mutant, reason):
    model = load_model(pretrained).train()
    monkeypatch.setattr(utils.training.proof, "summed_nll", mutant)
    assert re.search(reason, difference(model, padded(pretrained), autocast=True))
    assert all(p.grad is None for p in model.parameters())


def test_a_model_that_it_does_not_know_is_left_to_transformers(pretrained):
    class Another(type(load_model(pretrained))):
        pass

    model = load_model(pretrained)
    model.decoder.block[1].layer[2].dropout.p = 0.3
    assert difference(model, padded(pretrained), autocast=False).startswith("dropout is 0.3 in a layer, 0.1 in")
    model = load_model(pretrained)
    model.encoder.block[1].layer[1].DenseReluDense.wo.bias = nn.Parameter(torch.ones(16))
    assert " nats instead of " in difference(model, padded(pretrained), autocast=False)
    model.__class__ = Another
    assert difference(model, padded(pretrained), autocast=False).endswith("this is Another")


def test_transformers_module_trains_where_ours_is_wrong(pretrained, tmp_path, monkeypatch, caplog):
    def unused(*_, **__):
        raise AssertionError("the loss that is wrong was used")

    monkeypatch.setattr(utils.training.proof, "summed_nll", wrong_loss)
    monkeypatch.setattr(utils.training.trainer, "summed_nll", unused)
    history = run(pretrained, tmp_path, settings=dataclasses.replace(SETTINGS, epochs=1))
    (line,) = [record.getMessage() for record in caplog.records if "transformers' own loss" in record.getMessage()]
    reason = history["step_path"]["module_reason"]
    assert line.endswith(f", {reason}.") and " nats instead of " in reason

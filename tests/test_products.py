"""Products by oneDNN: the same numbers and gradients as PyTorch's own, in and around them nothing else changes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.attack_world import model
from utils.evaluation.beam_search import DecodingSettings, beam_search
from utils.modeling import onednn as products
from utils.modeling import t5_inference

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """oneDNN is used whatever the processor; the shapes of what it multiplied."""
    shapes: list[tuple[int, ...]] = []
    honest = products.fast_linear

    def counting(x: torch.Tensor, weight: torch.Tensor, **more: str) -> torch.Tensor:
        shapes.append(tuple(x.shape))
        return honest(x, weight, **more)

    for module in (products, t5_inference):
        monkeypatch.setattr(module, "fast_linear", counting)
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "WORTH_IT", 1)
    monkeypatch.setattr(products, "NARROWEST", 1)
    return shapes


@pytest.mark.parametrize("shape", [(7, 48), (3, 5, 48), (2, 3, 4, 48)])
def test_linear_and_both_gradients_are_pytorchs(shape: tuple[int, ...], taken: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(33, 48, requires_grad=True)
    outside = torch.randn(*shape[:-1], 33).transpose(0, 1).contiguous().transpose(0, 1)  # a gradient that is no block
    expected = functional.linear(x, weight)
    wanted = torch.autograd.grad(expected, (x, weight), outside)
    with products.fast_products("cpu", 24):
        got = functional.linear(x, weight)
        found = torch.autograd.grad(got, (x, weight), outside)
    assert len(taken) == 3
    torch.testing.assert_close(got, expected)
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b)


def test_a_training_step_of_t5_has_the_same_loss_and_gradients(taken: list[tuple[int, ...]]) -> None:
    plain = model(60, scale=1.0).eval()
    fast = copy.deepcopy(plain)
    torch.manual_seed(1)
    ids, labels = torch.randint(3, 60, (4, 11)), torch.randint(3, 60, (4, 6))
    expected = plain(input_ids=ids, labels=labels).loss
    expected.backward()
    with products.fast_products("cpu", 24):
        loss = fast(input_ids=ids, labels=labels).loss
    loss.backward()
    assert len(taken) > 60  # 29 layers, three products each
    torch.testing.assert_close(loss, expected)
    for (name, a), (_, b) in zip(fast.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda text, name=name: f"{name}: {text}", rtol=1e-4, atol=1e-6)


def test_frozen_weights_get_no_gradient_and_no_product_for_it(taken: list[tuple[int, ...]]) -> None:
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(5, 8)
    with products.fast_products("cpu", 24):
        functional.linear(x, weight).sum().backward()
    assert len(taken) == 2
    torch.testing.assert_close(x.grad, weight.sum(0).expand(4, 8))


def test_generation_gives_the_same_ids(taken: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    net = model(60)
    rows = [np.arange(3, 3 + n) for n in (20, 20, 9)]
    decoding = DecodingSettings(3, 1.2, 2, 10, 3)
    fast = beam_search(t5_inference.T5Inference(net), rows, decoding)
    assert taken
    taken.clear()
    monkeypatch.setattr(products, "NARROWEST", 1000)
    assert beam_search(t5_inference.T5Inference(net), rows, decoding) == fast
    assert not taken


def test_what_does_not_fit_is_left_to_pytorch(taken: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = torch.randn(4, 8), torch.randn(5, 8), torch.randn(5)
    with products.fast_products("cpu", 24):
        assert torch.equal(functional.linear(x, weight, bias), torch.addmm(bias, x, weight.t()))
        assert functional.linear(x.double(), weight.double()).dtype == torch.float64
        with torch.autocast("cpu", torch.bfloat16):
            assert functional.linear(x, weight).dtype == torch.bfloat16
        monkeypatch.setattr(products, "WORTH_IT", 4 * 8 * 5 + 1)
        functional.linear(x, weight)
    assert not taken
    monkeypatch.setattr(products, "WORTH_IT", 1)
    assert not products.gains("cpu", 0)
    assert not products.gains("cuda", 512)
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    with products.fast_products("cpu", 24):
        functional.linear(x, weight)
    assert not taken

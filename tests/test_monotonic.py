"""The constraint: inverse, initial state, the three traps (decay, folding, audit), for ReLU and gated T5."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import parametrize
from transformers import T5Config, T5ForConditionalGeneration

from utils.core.codec import to_json
from utils.modeling.monotonic import (
    constrain,
    effective_weight_decay,
    ffn_layers,
    fold,
    folded_state,
    free_parameters,
    is_constrained,
    min_ffn_weight,
    parameter_groups,
    softplus_inverse,
)
from utils.training.audit import audit

KINDS = ("relu", "gated-gelu")


def tiny(kind: str = "relu", seed: int = 0) -> T5ForConditionalGeneration:
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=60,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_decoder_layers=1,
        num_heads=2,
        feed_forward_proj=kind,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config).eval()


def logits(model: T5ForConditionalGeneration) -> torch.Tensor:
    ids = torch.arange(3, 17).view(2, 7)
    with torch.no_grad():
        return model(input_ids=ids, labels=ids[:, :4].contiguous()).logits


# ---- the inverse -----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=400)
@given(st.floats(-8, 2).map(lambda exponent: 10.0**exponent))
def test_softplus_inverse_is_exact_in_float32_over_ten_orders_of_magnitude(w):
    w32 = torch.tensor([w], dtype=torch.float32)
    back = F.softplus(softplus_inverse(w32))
    assert back.dtype == torch.float32
    # V near -18 is itself rounded to 1e-6: no float32 V can do better for the smallest weights.
    assert abs(float(back.double() / w32.double()) - 1) < 3e-6


def test_the_textbook_inverse_would_not_do():
    w = torch.tensor([1e-8, 100.0])
    assert not torch.isfinite(torch.log(torch.exp(w) - 1)).any()
    assert torch.allclose(F.softplus(softplus_inverse(w)), w, rtol=3e-6)


@pytest.mark.parametrize("bad", [0.0, -1e-3, float("nan"), float("inf")])
def test_softplus_inverse_refuses_what_has_no_inverse(bad):
    with pytest.raises(ValueError, match="above 0"):
        softplus_inverse(torch.tensor([0.5, bad]))


# ---- where training starts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_ffn_matrix_starts_at_the_pretrained_magnitude(kind):
    model = tiny(kind)
    before = {name: layer.weight.detach().clone() for name, layer in ffn_layers(model)}
    assert len(before) == 3 * (2 if kind == "relu" else 3)  # 2 encoder layers, 1 decoder layer
    rest = {n: p.detach().clone() for n, p in model.named_parameters() if "DenseReluDense" not in n}
    constrain(model)
    assert is_constrained(model) and min_ffn_weight(model) >= 0
    for name, layer in ffn_layers(model):
        torch.testing.assert_close(layer.weight, before[name].abs() + 1e-6, rtol=3e-6, atol=0)
    for name, value in rest.items():
        assert torch.equal(model.get_parameter(name), value), name


def test_control_arms_start_where_they_should():
    reference = {name: layer.weight.detach().clone() for name, layer in ffn_layers(tiny())}
    signs, free = constrain(tiny(), arm="sign_frozen"), constrain(tiny(), arm="abs_init_free")
    assert is_constrained(signs) and not is_constrained(free)
    for name, layer in ffn_layers(signs):
        torch.testing.assert_close(layer.weight, reference[name], rtol=1e-4, atol=2e-6)
    for name, layer in ffn_layers(free):
        torch.testing.assert_close(layer.weight, reference[name].abs() + 1e-6)
    untouched = constrain(tiny(), arm="baseline")
    assert all(torch.equal(layer.weight, reference[name]) for name, layer in ffn_layers(untouched))


def test_sign_frozen_never_changes_a_sign():
    model = constrain(tiny(), arm="sign_frozen")
    signs = {name: layer.weight.detach().sign() for name, layer in ffn_layers(model)}
    for parameter in free_parameters(model).values():
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter) * 5)
    assert all(torch.equal(layer.weight.sign(), signs[name]) for name, layer in ffn_layers(model))


def test_unknown_arm_and_second_constraint_are_refused():
    with pytest.raises(ValueError, match="monotone"):
        constrain(tiny(), arm="monotone")
    with pytest.raises(ValueError, match="already"):
        constrain(constrain(tiny()))
    with pytest.raises(ValueError, match="no T5 feed-forward"):
        constrain(torch.nn.Linear(2, 2))


def test_weights_stay_nonnegative_under_hard_training():
    model = constrain(tiny()).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=0.3)
    effective_weight_decay(optimizer)
    ids = torch.arange(3, 17).view(2, 7)
    for _ in range(30):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert min_ffn_weight(model) >= 0


def test_softplus_is_computed_once_per_step_inside_cached(monkeypatch):
    model = constrain(tiny())
    calls = 0
    original = F.softplus

    def counting(*args, **kwargs):
        nonlocal calls
        calls += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(F, "softplus", counting)
    with parametrize.cached():
        logits(model)
        logits(model)
    assert calls == len(ffn_layers(model))


# ---- trap one: weight decay ----------------------------------------------------------------------------------------


def decay(model, *, steps: int, lr: float, weight_decay: float) -> dict[str, torch.Tensor]:
    """Effective FFN weights after `steps` optimizer steps with zero gradients: what is left is the decay."""
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay), lr=lr, fused=True)
    effective_weight_decay(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(steps):
        optimizer.step()
    return {name: layer.weight.detach().clone() for name, layer in ffn_layers(model)}


@pytest.mark.parametrize("arm", ["monotonic", "sign_frozen"])
def test_decay_shrinks_the_effective_weights_as_the_baselines_do(arm):
    free = tiny()
    constrained = constrain(copy.deepcopy(free), arm=arm)
    start = fold(copy.deepcopy(constrained))
    before = {name: layer.weight.detach().clone() for name, layer in ffn_layers(start)}
    ours = decay(constrained, steps=1, lr=0.01, weight_decay=0.1)
    theirs = decay(start, steps=1, lr=0.01, weight_decay=0.1)  # the same weights as a free model: plain AdamW
    for name, weight in before.items():
        torch.testing.assert_close(theirs[name], weight * (1 - 0.001), rtol=1e-6, atol=0)
        torch.testing.assert_close(ours[name], theirs[name], rtol=3e-6, atol=1e-9)


@pytest.mark.parametrize("lr", [5e-5, 1e-5])
def test_decay_of_a_real_run_is_not_lost_in_rounding(lr):
    """At lr 5e-5 and decay 0.01 one step is worth 5e-7, the spacing of float32 around V = -5."""
    free = tiny()
    for _, layer in ffn_layers(free):
        with torch.no_grad():
            layer.weight.copy_(10.0 ** torch.empty_like(layer.weight).uniform_(-5, 0))
    constrained = constrain(copy.deepcopy(free), eps=0.0)
    ours = decay(constrained, steps=600, lr=lr, weight_decay=0.01)
    expected = (1 - lr * 0.01) ** 600
    for name, layer in ffn_layers(free):
        shrunk = ours[name].double() / layer.weight.detach().double()
        assert abs(float(shrunk.log().mean()) / torch.tensor(expected).log() - 1) < 0.03


def test_decay_groups_hold_the_same_parameters_in_every_arm():
    def decaying(model):
        groups = parameter_groups(model, 0.01)
        assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
        chosen = {id(p) for g in groups if g["weight_decay"] or g.get("effective_weight_decay") for p in g["params"]}
        names = {name for name, parameter in model.named_parameters() if id(parameter) in chosen}
        return {name.replace("parametrizations.weight.original", "weight") for name in names}

    baseline = decaying(tiny())
    assert baseline == decaying(constrain(tiny())) == decaying(constrain(tiny(), arm="abs_init_free"))
    assert "shared.weight" in baseline and any("relative_attention_bias" in name for name in baseline)
    assert not any("layer_norm" in name for name in baseline)


def test_decay_is_harmless_far_below_zero_and_survives_saving():
    model = constrain(tiny())
    for parameter in free_parameters(model).values():
        torch.nn.init.uniform_(parameter, -200, 90)
    after = decay(model, steps=1, lr=0.1, weight_decay=0.1)
    assert all(torch.isfinite(weight).all() for weight in after.values())
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=1e-4)
    effective_weight_decay(optimizer)
    optimizer.step()
    again = torch.optim.AdamW(parameter_groups(model, 0.01), lr=1e-4)
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[-1]["decay_due"] == optimizer.param_groups[-1]["decay_due"] == pytest.approx(1e-6)


# ---- trap two: folding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arm", ["monotonic", "sign_frozen"])
def test_folding_keeps_every_output_bit_and_leaves_ordinary_layers(kind, arm):
    model = constrain(tiny(kind), arm=arm)
    before, state = logits(model), folded_state(model)
    plain = tiny(kind, seed=1)
    plain.load_state_dict(state)
    assert torch.equal(logits(plain), before) and is_constrained(model)
    fold(model)
    assert not is_constrained(model)
    assert torch.equal(logits(model), before)
    assert set(model.state_dict()) == set(tiny(kind).state_dict())
    assert all(type(layer) is torch.nn.Linear for _, layer in ffn_layers(model))


# ---- trap three: the audit -----------------------------------------------------------------------------------------


def test_audit_passes_a_constrained_relu_model_and_is_json():
    result = audit(fold(constrain(tiny())))
    assert result.min_weight > 0 and result.negative_weight_share == 0
    assert result.monotone_ffn_blocks and result.violations == 0
    assert result.comparisons == 3 * 12 * (16 + 8) * 16
    assert "whole network is not monotone" in json.loads(json.dumps(to_json(result)))["scope"]


def test_audit_fails_a_free_model():
    result = audit(tiny())
    assert result.min_weight < 0 and 0.4 < result.negative_weight_share < 0.6
    assert not result.monotone_ffn_blocks and result.largest_relative_decrease > 0.01


def test_audit_sees_one_negative_weight():
    model = fold(constrain(tiny()))
    wi = next(layer for name, layer in ffn_layers(model) if name.endswith(".wi"))
    with torch.no_grad():
        wi.weight[3, 5] = -1.0
    result = audit(model)
    assert result.min_weight == -1.0 and result.violations > 0


def test_audit_does_not_call_gated_blocks_monotone_because_their_weights_are_positive():
    result = audit(constrain(tiny("gated-gelu")))
    assert result.min_weight > 0 and not result.monotone_ffn_blocks

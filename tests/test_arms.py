"""Arms as data: every entry of configs/arms.py trains, exports, and is told apart from all others by its audit."""

import dataclasses

import pytest
import torch
from transformers import T5ForConditionalGeneration

from configs.arms import ARMS, CONTROLS, MAPS, Arm, control_problem
from tests.test_monotonic import logits, tiny
from utils.core.errors import UsageError
from utils.modeling.models import check_arms, plain_copy
from utils.modeling.monotonic import (
    constrain,
    effective_weight_decay,
    ffn_layers,
    fold,
    free_parameters,
    parameter_groups,
)
from utils.training.audit import audit


def trained(arm, kind="relu", steps=3, lr=3e-3):
    """A tiny model after some real steps under `arm`."""
    model = constrain(tiny(kind), arm=arm).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=lr)
    effective_weight_decay(optimizer)
    ids = torch.arange(3, 17).view(2, 7)
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.isfinite(loss)
    return model.eval()


@pytest.fixture(scope="module")
def exported():
    """Every named arm, trained a little, as the ordinary model that it is exported as."""
    return {name: plain_copy(trained(name)) for name in ARMS}


def test_the_names_of_the_contract_are_there():
    names = "baseline monotonic sign_frozen abs_init_free wi_only wo_only encoder_only decoder_only two_sided no_ffn"
    assert {*names.split(), "rank1_ffn"} <= ARMS.keys()


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_learns_and_exports_to_plain_transformers_with_equal_outputs(name, tmp_path):
    before = {key: value.clone() for key, value in constrain(tiny(), arm=name).state_dict().items()}
    model = trained(name)
    moved = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    ffn_moved = any("DenseReluDense" in key for key in moved)
    assert moved and ffn_moved == (name != "no_ffn")
    plain_copy(model).save_pretrained(tmp_path)
    loaded = T5ForConditionalGeneration.from_pretrained(tmp_path)
    assert set(loaded.state_dict()) == set(tiny().state_dict())
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_passes_its_own_audit_and_fails_those_of_the_others(name, exported):
    passed = [arm for arm in ARMS if audit(exported[name], arm=arm, pretrained=tiny()).kept]
    assert passed == [name], {arm: audit(exported[name], arm=arm, pretrained=tiny()).promises for arm in passed}


def test_monotone_and_convex_are_told_apart(exported):
    """ReLU and W >= 0 is convex as well (Sartor et al. 2025); one sign per unit is monotone and is not."""
    positive, two_sided = (audit(exported[name], arm=name) for name in ("monotonic", "two_sided"))
    assert positive.monotone_ffn_blocks and positive.convex_ffn_blocks and "convex" in (positive.promises or {})
    assert two_sided.monotone_ffn_blocks and not two_sided.convex_ffn_blocks and two_sided.min_weight < 0
    wo_only = audit(exported["wo_only"], arm="wo_only")  # relu(wi x) weighted by wo >= 0: convex, not monotone
    assert wo_only.convex_ffn_blocks and not wo_only.monotone_ffn_blocks


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("wi_only", lambda layer: layer.endswith("wi")),
        ("wo_only", lambda layer: layer.endswith("wo")),
        ("encoder_only", lambda layer: layer.startswith("encoder")),
        ("decoder_only", lambda layer: layer.startswith("decoder")),
        (Arm(summary="", signs="positive", start="absolute", scope="encoder layers 1-1"), lambda n: ".block.1." in n),
        (Arm(summary="", signs="positive", start="absolute", scope="encoder wo layers 0-1"),
         lambda n: n.startswith("encoder") and n.endswith("wo")),
    ],
)  # fmt: skip
def test_a_scope_is_what_it_says(name, where):
    pretrained = {layer: linear.weight.detach().clone() for layer, linear in ffn_layers(tiny())}
    for layer, linear in ffn_layers(constrain(tiny(), arm=name)):
        start = pretrained[layer].abs() + 1e-6 if where(layer) else pretrained[layer]
        torch.testing.assert_close(linear.weight.detach(), start, rtol=3e-6, atol=0)


@pytest.mark.parametrize("map_name", MAPS)
@pytest.mark.parametrize("signs", ["positive", "frozen", "unit"])
def test_every_map_starts_exactly_decays_like_a_free_matrix_and_keeps_its_signs(map_name, signs):
    start = "pretrained" if signs == "frozen" else "absolute"
    arm = Arm(summary="", signs=signs, start=start, map=map_name)
    model = constrain(tiny(), arm=arm)
    for layer, linear in ffn_layers(tiny()):
        size = model.get_submodule(layer).weight.detach().abs()
        torch.testing.assert_close(size, linear.weight.detach().abs() + 1e-6, rtol=3e-6, atol=0)
    before = {layer: linear.weight.detach().clone() for layer, linear in ffn_layers(model)}
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=0.01)
    effective_weight_decay(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for layer, linear in ffn_layers(model):
        torch.testing.assert_close(linear.weight.detach(), before[layer] * (1 - 0.001), rtol=4e-6, atol=1e-9)
    signs_before = {layer: weight.sign() for layer, weight in before.items()}
    model = trained(arm, steps=4, lr=0.3)
    assert all(bool((linear.weight * signs_before[layer] >= 0).all()) for layer, linear in ffn_layers(model))
    assert audit(plain_copy(model), arm=dataclasses.replace(arm)).kept


def test_a_clamped_weight_comes_back_from_zero():
    model = constrain(tiny(), arm=Arm(summary="", signs="positive", start="absolute", map="clamp"))
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), lr=0.1)
    effective_weight_decay(optimizer)
    v = next(iter(free_parameters(model).values()))
    for direction in (1e3, -1e3):  # down to zero and beyond, then up again
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, direction)
        for _ in range(40):
            optimizer.step()
        assert bool((v == 0).all()) if direction > 0 else bool((v > 0).any())


def test_rank_one_starts_at_the_best_rank_one_matrix_and_decays_as_a_whole():
    model = constrain(tiny(), arm="rank1_ffn")
    for layer, linear in ffn_layers(tiny()):
        u, s, v = torch.linalg.svd(linear.weight.detach().abs() + 1e-6, full_matrices=False)
        best = s[0] * torch.outer(u[:, 0], v[0])
        torch.testing.assert_close(model.get_submodule(layer).weight.detach(), best, rtol=1e-4, atol=1e-6)
    before = {layer: linear.weight.detach().clone() for layer, linear in ffn_layers(model)}
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=0.01)
    effective_weight_decay(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for layer, linear in ffn_layers(fold(model)):
        torch.testing.assert_close(linear.weight.detach(), before[layer] * (1 - 0.001), rtol=1e-5, atol=1e-8)


def test_gated_models_take_every_arm():
    for name in ARMS:
        model = trained(name, kind="gated-gelu")
        plain = plain_copy(model)
        assert torch.equal(logits(plain), logits(model))
        promises = audit(plain, arm=name).promises or {}
        assert not {"monotone", "convex"} & promises.keys() and all(promises.values())


@pytest.mark.parametrize("typo", ["no_fnn", "sign_frosen", "wo-only", "Two_Sided", "encoder"])
def test_a_misspelt_arm_is_refused_with_the_list_and_the_nearest_name(typo):
    problem = control_problem(typo)
    assert problem and "Did you mean" in problem and all(name in problem for name in CONTROLS)
    assert control_problem("monotonic") and "always trained" in control_problem("monotonic")
    assert all(control_problem(name) is None for name in CONTROLS)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"signs": "plus"}, "free, positive"),
        ({"scope": "layers 3-1"}, "first layer comes after"),
        ({"scope": "wo encoder"}, "scope"),
        ({"scope": ""}, "scope"),
        ({"signs": "positive"}, "start absolute"),
        ({"ffn": "none", "signs": "positive", "start": "absolute"}, "signs 'free'"),
        ({"signs": "frozen", "start": "absolute"}, "pretrained"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        Arm(summary="", **change)


def test_a_scope_beyond_the_layers_is_refused_before_anything_is_trained(monkeypatch, tmp_path):
    tiny().config.save_pretrained(tmp_path)
    far = Arm(summary="", signs="positive", start="absolute", scope="decoder layers 0-1")  # the decoder has one layer
    with pytest.raises(UsageError, match="the decoder has layers 0-0"):
        constrain(tiny(), arm=far)
    monkeypatch.setitem(ARMS, "far", far)
    with pytest.raises(UsageError, match=r"arm far: scope 'decoder layers 0-1' goes to layer 1"):
        check_arms(tmp_path, ["monotonic", "far"])

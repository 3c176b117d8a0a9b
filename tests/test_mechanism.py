"""The mechanism panel: planted figures are found, the gain is that of a Jacobian written out, the doubt is right."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import T5Config, T5ForConditionalGeneration

from tests.test_monotonic import tiny
from utils.analysis.mechanism import Mechanism, doubts
from utils.core.codec import from_json, to_json
from utils.evaluation.mechanism import PanelSize, firing, gain, mean_loss, panel, premise, replaced
from utils.modeling.models import plain_copy
from utils.modeling.monotonic import constrain, ffn_blocks, ffn_layers

INPUTS = [[int(t) for t in np.random.default_rng(n).integers(3, 60, 9)] + [1] for n in range(6)]
LABELS = [[int(t) for t in np.random.default_rng(50 + n).integers(3, 60, 5)] + [1] for n in range(6)]
EXAMPLES = list(zip(INPUTS, LABELS, strict=True))
SMALL, TINY = (PanelSize(examples=6, changes=6, gains=1), PanelSize(examples=12, changes=1, gains=1))


def plant(model, values):
    """Give every FFN matrix the singular values `values`, between random orthonormal directions."""
    generator = torch.Generator().manual_seed(3)
    for _, linear in ffn_layers(model):
        rows, columns = linear.weight.shape
        left, _ = torch.linalg.qr(torch.randn(rows, len(values), generator=generator, dtype=torch.float64))
        right, _ = torch.linalg.qr(torch.randn(columns, len(values), generator=generator, dtype=torch.float64))
        linear.weight.data.copy_(left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T)
    return model


def test_planted_singular_values_are_recovered():
    found = panel(plant(tiny(), [3.0, 2.0, 1.0]), tiny(), None, INPUTS, LABELS, size=SMALL)
    assert found.spectral_norm == pytest.approx(3.0, rel=1e-6)
    assert found.stable_rank == pytest.approx(14 / 9, rel=1e-6)
    assert found.first_direction == pytest.approx(9 / 14, rel=1e-6)
    assert all(one.spectral_norm == pytest.approx(3.0, rel=1e-6) for one in found.matrices.values())


def test_the_reference_line_is_the_first_direction_of_an_absolute_random_matrix():
    from utils.analysis.mechanism import FIRST_DIRECTION_OF_ABSOLUTE

    weight = np.abs(np.random.default_rng(0).standard_normal((400, 900)))
    values = np.linalg.svd(weight, compute_uv=False)
    assert values[0] ** 2 / (values**2).sum() == pytest.approx(FIRST_DIRECTION_OF_ABSOLUTE, abs=0.005)


def test_planted_dead_and_always_on_units_are_counted():
    model = tiny()
    weights = {}
    for name, linear in ffn_layers(model):
        if name.endswith("wi"):
            weight = linear.weight.detach().clone()
            weight[:6] = 0  # 6 of 24 units never fire: relu(0) = 0
            weights[name] = weight
    with replaced(model, lambda name, weight: weights.get(name, weight)):
        assert all(one.dead_units >= 6 / 24 for one in firing(model, EXAMPLES).values())
        by_hand = {name: _fired_by_hand(model, name) for name, _ in ffn_blocks(model)}
        for name, one in firing(model, EXAMPLES).items():
            assert one.dead_units == pytest.approx((by_hand[name] == 0).mean(), abs=1e-12)
            assert one.always_on_units == pytest.approx((by_hand[name] == 1).mean(), abs=1e-12)


def _fired_by_hand(model, name):
    """Share of tokens at which each unit of a block is on: from the block's inputs and its matrix."""
    seen = []
    block = model.get_submodule(name)
    handle = block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()[0]))
    with torch.no_grad():
        for ids, labels in EXAMPLES:
            model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels]))
    handle.remove()
    states = torch.cat(seen)
    return ((states @ block.wi.weight.T) > 0).double().mean(0).numpy()


def test_a_planted_rank_one_ffn_loses_nothing_by_its_rank_one_part_and_raises_the_doubt():
    found = panel(plant(tiny(), [2.0]), tiny(), None, INPUTS, LABELS, size=SMALL)
    assert found.first_direction == pytest.approx(1.0, abs=1e-6) and found.stable_rank == pytest.approx(1.0, abs=1e-6)
    assert found.loss_rank_one == pytest.approx(found.loss, abs=1e-6)
    assert found.loss_without_rank_one == pytest.approx(found.loss_zeroed, abs=1e-5)
    (doubt,) = doubts({"monotonic": found})
    assert doubt.model == "monotonic" and "feed-forward layers hardly take part" in doubt.message


def test_losses_are_those_of_transformers():
    model = tiny()
    by_hand = [model(input_ids=torch.tensor([i]), labels=torch.tensor([t])).loss.item() for i, t in EXAMPLES]
    assert mean_loss(model, EXAMPLES) == pytest.approx(np.mean(by_hand), rel=1e-6)  # labels of equal length
    before = {name: linear.weight.detach().clone() for name, linear in ffn_layers(model)}
    with replaced(model, lambda _, weight: torch.zeros_like(weight)):
        assert not any(linear.weight.any() for _, linear in ffn_layers(model))
    assert all(torch.equal(linear.weight, before[name]) for name, linear in ffn_layers(model))


@pytest.mark.parametrize("kind", ["relu", "gated-gelu"])
def test_the_gain_is_that_of_the_whole_jacobian(kind):
    model = tiny(kind)
    ids, labels = EXAMPLES[0]
    embedded = model.get_input_embeddings()(torch.tensor([ids])).detach()

    def logits(x):
        return model(inputs_embeds=x, labels=torch.tensor([labels])).logits

    jacobian = torch.autograd.functional.jacobian(logits, embedded).reshape(len(labels) * 60, len(ids) * 16)
    assert gain(model, ids, labels) == pytest.approx(float(torch.linalg.svdvals(jacobian)[0]), rel=1e-4)
    assert model.config._attn_implementation == tiny(kind).config._attn_implementation


def test_changes_are_measured_from_the_arms_start_and_from_the_pretrained_weights():
    model = constrain(tiny(), arm="monotonic")
    with torch.no_grad():
        for _, linear in ffn_layers(model):
            v = linear.parametrizations.weight.original
            v.copy_(torch.log(torch.expm1(1.25 * F.softplus(v))))  # W grows by a quarter
    found = panel(plain_copy(model), tiny(), "monotonic", INPUTS, LABELS, size=SMALL)
    assert found.ffn_change == pytest.approx(0.25, abs=1e-4) and found.unmoved_share < 0.01
    pretrained = torch.cat([linear.weight.detach().ravel() for _, linear in ffn_layers(tiny())]).double()
    expected = float((1.25 * pretrained.abs() - pretrained).norm() / pretrained.norm())
    assert found.ffn_change_from_pretrained == pytest.approx(expected, rel=1e-3)
    assert found.other_change == 0.0
    still = panel(plain_copy(constrain(tiny())), tiny(), "monotonic", INPUTS, LABELS, size=SMALL)
    assert still.ffn_change < 1e-5 and still.unmoved_share == pytest.approx(1.0, abs=1e-3)


def test_the_premise_is_met_where_inputs_are_comparable_and_only_there():
    model = tiny()
    assert premise(model, EXAMPLES, seed=0).comparable == 0 and premise(model, EXAMPLES, seed=0).moved > 20
    with torch.no_grad():  # embeddings that differ in one coordinate alone, and no attention: inputs move in one
        shared = model.shared.weight
        shared.zero_()
        shared[:, 0] = torch.arange(60) / 60.0 + 1
        for block in (*model.encoder.block, *model.decoder.block):
            for layer in block.layer:
                for part in ("SelfAttention", "EncDecAttention"):
                    if hasattr(layer, part):
                        getattr(layer, part).o.weight.zero_()
        for _, linear in ffn_layers(model):
            linear.weight.zero_()
    found = premise(model, EXAMPLES, seed=0)
    assert found.comparable == found.moved


def test_the_panel_survives_json():
    found = panel(tiny(), tiny(), None, INPUTS, LABELS, size=SMALL)
    assert from_json(Mechanism, to_json(found)) == found
    assert found.ffn_change == found.other_change == 0.0


def a_trained_table(seed, arm="baseline", steps=80):
    """A small T5 that has learned a random table over pairs: key, key -> value, which needs its FFN."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=44,
        d_model=24,
        d_kv=8,
        d_ff=64,
        num_layers=1,
        num_heads=3,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    pretrained = T5ForConditionalGeneration(config)
    model = constrain(T5ForConditionalGeneration(config), arm=arm)
    table = torch.randint(24, 44, (10, 10), generator=torch.Generator().manual_seed(seed))
    pairs = torch.cartesian_prod(torch.arange(10), torch.arange(10))
    ids = torch.cat([pairs + torch.tensor([3, 13]), torch.ones(100, 1, dtype=torch.long)], dim=1)
    labels = torch.stack([table[pairs[:, 0], pairs[:, 1]], torch.ones(100, dtype=torch.long)], dim=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-2, fused=True)
    for _ in range(steps):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return panel(plain_copy(model.eval()), pretrained, arm, ids.tolist(), labels.tolist(), size=TINY), loss.item()


@pytest.mark.slow
def test_a_trained_baseline_never_raises_the_doubt(monkeypatch):
    monkeypatch.setattr("utils.evaluation.mechanism.gain", lambda *_: 1.0)  # the doubt is not about it, and it is dear
    found = [a_trained_table(seed) for seed in range(20)]
    assert [doubts({"baseline": one}) for one, _ in found] == [[]] * 20, [(f.loss, f.loss_rank_one) for f, _ in found]
    for arm in ("rank1_ffn", "no_ffn"):  # found in any other model, and no doubt about what is one by definition
        one = a_trained_table(0, arm)[0]
        assert doubts({"monotonic": one}) and not doubts({arm: one})

"""The fast beam search against transformers' own: the same ids, whatever the model, the lengths and the settings."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from utils.evaluation import beam_search as beams
from utils.evaluation.beam_search import beam_search
from utils.evaluation.decoding import DecodingSettings
from utils.evaluation.generation import transformers_beam_search
from utils.modeling import t5_inference
from utils.modeling.batching import pad_with_mask
from utils.modeling.t5_inference import T5Inference

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
# Sums that differ in the last float32 bit decide ties between beams, and after a tie two searches part for good.
# float64 leaves no such ties, so ids must be equal, every one.
DTYPE = torch.float64


def random_t5(
    seed: int, *, vocabulary: int = 300, gated: bool = False, tied: bool = True
) -> T5ForConditionalGeneration:
    """A random T5 in float64 whose summaries end early, late and never, and with real relative position biases."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=vocabulary,
        d_model=32,
        d_ff=48,
        d_kv=8,
        num_heads=3,
        num_layers=2,
        decoder_start_token_id=0,
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=tied,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
    )
    model = T5ForConditionalGeneration(config).to(DTYPE).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn_like(parameter)
            elif "relative_attention_bias" in name:
                parameter.normal_(std=1.0)
            else:
                parameter *= 1.4
        model.lm_head.weight[1] *= 3.0 + 2 * (seed % 3)
    return model


def random_rows(seed: int, count: int, *, longest: int = 40, vocabulary: int = 300) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = sorted(rng.integers(0, longest, size=count), reverse=True)
    return [np.append(rng.integers(3, vocabulary, size=n), 1).astype(np.int32) for n in lengths]


def reference(model: T5ForConditionalGeneration, rows: list[np.ndarray], decoding: DecodingSettings) -> list[list[int]]:
    with torch.inference_mode():
        return transformers_beam_search(model, *pad_with_mask(rows, 0, CPU), decoding)


SETTINGS = [
    DecodingSettings(max_new_tokens=40),
    DecodingSettings(num_beams=2, length_penalty=0.5, min_new_tokens=0, max_new_tokens=25, no_repeat_ngram_size=2),
    DecodingSettings(num_beams=5, length_penalty=2.0, min_new_tokens=3, max_new_tokens=25, no_repeat_ngram_size=0),
    DecodingSettings(num_beams=3, length_penalty=1.0, min_new_tokens=0, max_new_tokens=1),
    DecodingSettings(num_beams=1, max_new_tokens=25),
]


@pytest.mark.parametrize("decoding", SETTINGS, ids=lambda d: f"{d.num_beams}beams-{d.length_penalty}")
@pytest.mark.parametrize("seed", range(4))
def test_ids_are_those_of_transformers(seed: int, decoding: DecodingSettings) -> None:
    model = random_t5(seed, gated=seed == 1, tied=seed != 2)
    rows = random_rows(seed, 10)
    expected = reference(model, rows, decoding)
    assert beam_search(T5Inference(model, DTYPE), rows, decoding) == expected


@pytest.mark.parametrize("seed", range(4))
def test_the_shapes_of_a_gpu_are_few_and_give_the_same_ids(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents as wide as multiples of 8 and caches of 16 steps, which a CPU is made to use here."""
    monkeypatch.setitem(t5_inference.DOCUMENT_WIDTHS, "cpu", 8)
    monkeypatch.setitem(t5_inference.STEP_WIDTHS, "cpu", 16)
    model, rows = random_t5(seed, gated=seed == 1, tied=seed != 2), random_rows(seed, 10)
    engine = T5Inference(model, DTYPE)
    widths, attend = set(), engine._attend

    def watched(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        widths.add((query.shape[2] == SETTINGS[0].num_beams, keys.shape[2]))
        assert mask.stride(-2) % 8 == 0 or mask.shape[-2] == 1
        return attend(query, keys, values, mask)

    monkeypatch.setattr(engine, "_attend", watched)
    assert beam_search(engine, rows, SETTINGS[0]) == reference(model, rows, SETTINGS[0])
    of_beams = {width for generating, width in widths if generating}
    assert all(width % 8 == 0 for _, width in widths) and {64, 128} <= of_beams <= {8, 16, 24, 32, 40, 48, 64, 128, 160}


def test_lengths_vary_in_these_models() -> None:
    """Guards the test above: equality over outputs that all run to the limit would prove little."""
    outputs = [beam_search(T5Inference(random_t5(s), DTYPE), random_rows(s, 10), SETTINGS[0]) for s in range(4)]
    lengths = [len(row) for output in outputs for row in output]
    assert min(lengths) <= 12 and max(lengths) == 40
    assert len(set(lengths)) >= 6
    assert sum(row[-1] == 1 for output in outputs for row in output) >= 10


def test_the_experiments_settings_on_80_tokens() -> None:
    model, decoding = random_t5(0), DecodingSettings()
    rows = random_rows(5, 6, longest=120)
    assert beam_search(T5Inference(model, DTYPE), rows, decoding) == reference(model, rows, decoding)


def test_a_row_does_not_depend_on_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are done leave the batch; whether and when they do changes nothing for the others."""
    engine, rows = T5Inference(random_t5(1), DTYPE), random_rows(1, 12)
    together = beam_search(engine, rows, SETTINGS[0])
    assert together == [beam_search(engine, [row], SETTINGS[0])[0] for row in rows]
    monkeypatch.setattr(beams, "SHARE_DONE", 0.0)
    assert beam_search(engine, rows, SETTINGS[0]) == together
    monkeypatch.setattr(beams, "SHARE_DONE", 1.1)
    monkeypatch.setattr(beams, "STEPS_BETWEEN_CHECKS", {"cpu": 7})
    assert beam_search(engine, rows, SETTINGS[0]) == together


def test_equal_lengths_and_a_big_vocabulary() -> None:
    """No padding, so no mask; and a vocabulary that takes the chunked search for the largest logits."""
    model = random_t5(3, vocabulary=1500)
    rows = [row[-9:] for row in random_rows(3, 12, vocabulary=1500) if len(row) >= 9]
    decoding = dataclasses.replace(SETTINGS[0], max_new_tokens=20)
    assert len(rows) > 3
    assert beam_search(T5Inference(model, DTYPE), rows, decoding) == reference(model, rows, decoding)


def test_logits_are_those_of_the_model_with_reordered_beams() -> None:
    """Caches that are never moved, only masked, give what a decoder without any cache computes."""
    model, rows = random_t5(2), random_rows(2, 3)
    engine = T5Inference(model, DTYPE)
    lengths = [len(row) for row in rows]
    ids = torch.from_numpy(np.concatenate(rows).astype(np.int64))
    with torch.inference_mode():
        state = engine.start(engine.encode(ids, lengths), lengths, beams=2, steps=5)
        sequences = torch.zeros(3, 2, 1, dtype=torch.int64)
        torch.manual_seed(0)
        for step in range(5):
            logits = engine.step(sequences[:, :, -1], state, step)
            padded, mask = pad_with_mask(rows, 0, CPU)
            whole = model(
                input_ids=padded.repeat_interleave(2, dim=0),
                attention_mask=mask.repeat_interleave(2, dim=0),
                decoder_input_ids=sequences.view(6, -1),
            ).logits[:, -1]
            torch.testing.assert_close(logits, whole.float(), rtol=1e-5, atol=1e-5)
            parents = torch.randint(2, (3, 2))
            state.reorder(parents)
            sequences = sequences.gather(1, parents[:, :, None].expand_as(sequences))
            sequences = torch.cat([sequences, torch.randint(2, 300, (3, 2, 1))], dim=2)


def test_encoder_packs_without_padding_and_agrees_with_the_module() -> None:
    model, rows = random_t5(0), random_rows(8, 7)
    ids = torch.from_numpy(np.concatenate(rows).astype(np.int64))
    with torch.inference_mode():
        packed = T5Inference(model, DTYPE).encode(ids, [len(row) for row in rows])
        padded, mask = pad_with_mask(rows, 0, CPU)
        whole = model.encoder(input_ids=padded, attention_mask=mask).last_hidden_state
    # transformers takes the norms in float32, whatever the model's type.
    torch.testing.assert_close(packed, whole[mask.bool()], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_mean_nll_is_the_loss_of_the_module(seed: int) -> None:
    model = random_t5(seed, gated=seed == 1, tied=seed != 2)
    inputs, labels = random_rows(seed, 7), random_rows(seed + 10, 7, longest=12)
    inputs[3], labels[3] = inputs[2], labels[2][:1]  # neighbours of one length, and the shortest target there is
    found = T5Inference(model, DTYPE).mean_nll(inputs, labels)
    for row, target, nll in zip(inputs, labels, found, strict=True):
        with torch.no_grad():
            pair = {"input_ids": torch.from_numpy(row[None]).long(), "labels": torch.from_numpy(target[None]).long()}
            torch.testing.assert_close(nll, model(**pair).loss.float(), rtol=1e-5, atol=1e-5)


def test_bfloat16_is_autocasts_arithmetic() -> None:
    """Logits in bfloat16 are as far from float32 as those of the module under autocast, not farther."""
    model, rows = random_t5(4).float(), random_rows(4, 4, longest=30)
    lengths = [len(row) for row in rows]
    ids = torch.from_numpy(np.concatenate(rows).astype(np.int64))
    padded, mask = pad_with_mask(rows, 0, CPU)
    inputs = {"input_ids": padded, "attention_mask": mask, "decoder_input_ids": torch.zeros(4, 1, dtype=torch.int64)}
    with torch.inference_mode():
        exact = model(**inputs).logits[:, 0]
        with torch.autocast("cpu", torch.bfloat16):
            autocast = model(**inputs).logits[:, 0].float()
        engine = T5Inference(model, torch.bfloat16)
        state = engine.start(engine.encode(ids, lengths), lengths, beams=1, steps=2)
        ours = engine.step(torch.zeros(4, 1, dtype=torch.int64), state, 0)
    assert (ours - exact).square().mean() <= 2 * (autocast - exact).square().mean()
    assert (ours - exact).abs().max() > 0


@pytest.mark.parametrize("size", [1, 2, 3])
def test_banned_tokens_are_those_that_repeat_an_ngram(size: int) -> None:
    rng = np.random.default_rng(size)
    for length in range(1, 12):
        sequences = rng.integers(0, 4, size=(6, length))
        logits = torch.zeros(6, 5)
        beams._ban_repeated_ngrams(logits, torch.from_numpy(sequences), size)
        for row, values in zip(sequences.tolist(), logits.tolist(), strict=True):
            seen = {tuple(row[i : i + size]) for i in range(length - size + 1)}
            tail = tuple(row[length - size + 1 :]) if size > 1 else ()
            banned = {token for token in range(5) if length >= size and (*tail, token) in seen}
            assert {i for i, value in enumerate(values) if value == -np.inf} == banned


@pytest.mark.parametrize("size", [50, 1024, 1100, 5000])
def test_largest_is_topk(size: int) -> None:
    torch.manual_seed(size)
    logits = torch.randn(7, size)
    logits[:, ::3] = -torch.inf
    logits[3, 128:136] += 9  # all the largest in one chunk
    expected = logits.topk(8)
    values, tokens = beams._largest(logits, 8)
    assert torch.equal(values, expected.values) and torch.equal(tokens, expected.indices)

"""The estimate of a training's memory, against published numbers of parameters and what autograd keeps of real T5s."""

import json

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from utils.core.paths import Paths
from utils.core.settings import load_settings
from utils.operations.training_memory import card_gb, memory_check, parameters, training_gb
from utils.training.step import summed_nll

T5_3B = {"d_model": 1024, "d_ff": 16384, "d_kv": 128, "num_heads": 32, "num_layers": 24, "vocab_size": 32128}
T5_SMALL = {"d_model": 512, "d_ff": 2048, "d_kv": 64, "num_heads": 8, "num_layers": 6, "vocab_size": 32128}
V11_BASE = {"d_model": 768, "d_ff": 2048, "d_kv": 64, "num_heads": 12, "num_layers": 12, "vocab_size": 32128,
            "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "published"), [(T5_SMALL, 60_506_624), (T5_3B, 2_851_598_336), (V11_BASE, 247_577_856)]
)
def test_parameters_are_those_of_the_published_models(config, published):
    assert parameters(config) == published
    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(**config | {"num_layers": 2, "num_decoder_layers": 1}))
    assert parameters(config | {"num_layers": 2, "num_decoder_layers": 1}) == model.num_parameters() + (
        0 if config.get("tie_word_embeddings", True) else model.lm_head.weight.numel()
    )  # transformers 5 ties what it makes, and unties what it loads


@pytest.mark.parametrize("gated", [False, True])
def test_what_it_adds_for_tokens_is_what_autograd_keeps(gated):
    shape = {"d_model": 128, "d_ff": 768, "d_kv": 32, "num_heads": 4, "num_layers": 3, "vocab_size": 500}
    shape |= {"feed_forward_proj": "gated-gelu"} if gated else {}
    model = T5ForConditionalGeneration(T5Config(**shape, decoder_start_token_id=0)).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def kept(tokens: int) -> int:
        storages = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            square = tensor.ndim > 2 and tensor.shape[-1] in (
                tokens,
                tokens // 4,
            )  # no GPU keeps attention
            if tensor.untyped_storage().data_ptr() not in own and not square:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        batch = {"input_ids": torch.full((2, tokens), 7), "labels": torch.full((2, tokens // 4), 7)}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            summed_nll(model, batch | {"attention_mask": None}, autocast=True)
        return sum(storage.nbytes() for storage in storages.values())

    def said(tokens: int) -> float:
        settings = load_settings().replaced(MAX_INPUT_LENGTH=tokens, MAX_TARGET_LENGTH=tokens // 4)
        bias = 2 * 4 * tokens**2 * 6
        logits = 2 * (tokens // 4) * 500 * 12
        return training_gb(shape, settings, 2, False) * 1e9 - bias - logits

    assert said(240) - said(120) == pytest.approx(kept(240) - kept(120), rel=0.3)


def test_cards_are_known_by_their_gres():
    known = {"gpu:a100_80gb:1": (80,), "gpu:a100-40gb:2": (40,), "gpu:a100:1": (40, 80), "gpu:h200:1": (141,),
             "gpu:v100-32gb": (32,), "gpu:1": (), "gpu:nvidia_l40s:4": (48,), "gpu:mystery:1": (), "gpu": (), "": (),
             "gpu:rtx_pro_6000:1": (96,), "gpu:a100_3g.20gb:1": (20,), "gpu:1g.10gb:2": (10,),
             "gpu:a100_1g.5gb:1": (5,), "gpu:v100:1,lscratch:10": (16, 32), "x:1,gpu:h100:2": (80, 94)}  # fmt: skip
    assert {gres: card_gb(gres) for gres in known} == known


def test_what_does_not_fit_is_named_with_the_setting_that_makes_it_fit(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(T5_3B))
    settings = load_settings().replaced(MODEL_NAME=str(tmp_path), SCRATCH_DIR="/s", PROJECT_DIR="/p", DEVICE="cuda")
    paths = Paths.of(settings)

    def asked(**changes):
        check = memory_check(settings.replaced(**changes), paths)
        return check.state, check.text, check.fix

    small, words, fix = asked(SLURM_GRES="gpu:a100_80gb:1")
    assert small == "ok" and "at micro-batch 4 needs about 7" in words and not fix
    state, _, fix = asked(SLURM_GRES="gpu:h200:1|gpu:a100_80gb:1", BATCH_SIZE=8)
    assert state == "warning" and fix == "set MICRO_BATCH_SIZE=1"
    state, words, fix = asked(SLURM_GRES="gpu:a100:1")
    assert state == "warning" and "the GPU has 40 or 80" in words and "larger GPU" in fix and "with its size" in fix
    state, _, fix = asked(SLURM_GRES="gpu:a100-40gb:1")
    assert state == "PROBLEM" and "larger GPU" in fix and "with its size" not in fix
    assert memory_check(settings.replaced(DEVICE="cpu"), paths) is None


def test_the_gpus_of_a_job_share_its_batch(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(T5_3B))
    settings = load_settings().replaced(MODEL_NAME=str(tmp_path), SCRATCH_DIR="/s", PROJECT_DIR="/p", DEVICE="cuda")

    def asked(gres, batch, micro=0):
        changed = settings.replaced(SLURM_GRES=gres, BATCH_SIZE=batch, MICRO_BATCH_SIZE=micro)
        return memory_check(changed, Paths.of(changed))

    one = asked("gpu:a100_80gb:1", 16)
    assert one.state == "PROBLEM" and "micro-batch 16 " in one.text
    four = asked("gpu:a100_80gb:4,lscratch:10", 16)
    assert "micro-batch 4 " in four.text and "on each of 4 GPUs" in four.text
    assert "micro-batch 3 " in asked("gpu:a100_80gb:3", 7).text, "the largest share"
    assert "micro-batch 2 " in asked("gpu:a100_80gb:4", 16, micro=2).text, "the setting still bounds it"

"""T5 v1.1 and flan (gated feed-forward layers, a head of its own) go through the whole pipeline like T5 itself."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file
from transformers import T5ForConditionalGeneration

from tests.pipeline_world import SEED, Run, run_script
from tests.tiny import untie, write_model
from utils.modeling.models import load_model
from utils.pipeline.stages import STAGES

pytestmark = pytest.mark.slow
SMALLEST = {"NUM_EPOCHS": "1", "MONOTONIC_NUM_EPOCHS": "1", "TRIGGER_TYPES": "lead", "TRIGGER_ITERATIONS": "2",
            "TRIGGER_RESTARTS": "1", "HOTFLIP_NUM_FLIPS": "1", "TEST_DATASETS": "cnn_dm", "MICRO_BATCH_SIZE": "3",
            "GRADIENT_CHECKPOINTING": "true"}  # fmt: skip


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    folder = untie(write_model(tmp_path_factory.mktemp("flan"), gated=True))
    return folder, load_file(folder / "model.safetensors")


def test_a_head_of_its_own_is_loaded_trained_and_saved(untied, tmp_path_factory):
    folder, weights = untied
    model = load_model(folder)
    assert torch.equal(model.lm_head.weight, weights["lm_head.weight"]) and not model.config.scale_decoder_outputs
    assert torch.equal(model.shared.weight, weights["shared.weight"])
    root = tmp_path_factory.mktemp("run")
    run = Run(root)
    environment = run.environment | {f"MONO_S2S_{name}": value for name, value in SMALLEST.items()}
    environment["MONO_S2S_MODEL_NAME"] = str(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", os.environ.get("HF_HUB_OFFLINE", "0"))
        for stage in STAGES:
            assert run_script(patch, stage.script, environment) == 0, stage.key
    for arm in ("baseline", "monotonic"):
        best = run.work / f"seed_{SEED}" / f"{arm}_model" / "best"
        exported, plain = load_file(best / "model.safetensors"), T5ForConditionalGeneration.from_pretrained(best)
        assert not torch.equal(exported["lm_head.weight"], exported["shared.weight"])
        assert torch.equal(plain.lm_head.weight, exported["lm_head.weight"])
        for name in ("lm_head.weight", "shared.weight"):
            assert not torch.equal(exported[name], weights[name]), f"{name} was not trained"
        assert json.loads((best / "config.json").read_text())["scale_decoder_outputs"] is False
    audit = run.result("monotonic_training_history.json")["audit"]
    assert audit["ffn_class"] == "T5DenseGatedActDense" and audit["min_weight"] >= 0
    assert not audit["monotone_ffn_blocks"] and "gated" in audit["scope"]
    assert "are not monotone" in json.loads((run.results / "final_results.json").read_text())["results"]["limits"][0]

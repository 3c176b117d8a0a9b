"""A training that was stopped, cleaned by clean_checkpoints.sh and resumed ends as if nothing had happened."""

import dataclasses
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny import write_model
from tests.training_world import SETTINGS, STEPS, run
from utils.core.errors import Interrupted
from utils.core.hashes import weights_sha256

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
# A learning rate that rises until it is far too high: the first epoch stays the best one.
WORSE_AND_WORSE = dataclasses.replace(SETTINGS, epochs=4, learning_rate=3.0, warmup_ratio=0.9)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def clean(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SCRATCH": str(root / "scratch"), "PROJECT": str(root / "project")}
    command = [str(ROOT / "clean_checkpoints.sh"), "--force", *words]
    return subprocess.run(
        command, env=environment | {"MONO_S2S_PYTHON": sys.executable}, capture_output=True, text=True, cwd="/"
    )


@pytest.mark.parametrize("torn", [False, True])
def test_a_training_whose_best_epoch_is_not_its_newest_resumes_after_cleaning(tmp_path, torn):
    pretrained = write_model(tmp_path / "model")
    expected = run(pretrained, tmp_path / "undisturbed", "baseline", WORSE_AND_WORSE)
    assert expected["best_epoch"] == 1

    output = tmp_path / "scratch" / "mono_s2s_work" / "seed_5" / "baseline_model"
    questions = itertools.count(1)  # it is asked once a step, whether to stop
    with pytest.raises(Interrupted):
        run(pretrained, output, "baseline", WORSE_AND_WORSE, stop_requested=lambda: next(questions) > 2 * STEPS + 1)
    assert {path.name for path in output.glob("*_*")} >= {"epoch_1", "epoch_2"}
    if torn:
        newest = max(output.glob("step_*"), default=output / "epoch_2")
        with (newest / "model.safetensors").open("r+b") as handle:
            handle.truncate(100)

    result = clean(tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (output / "epoch_1").exists(), "the best epoch so far is needed for the export"
    history = run(pretrained, output, "baseline", WORSE_AND_WORSE)
    assert history["resumes"] == 1 and history["sessions"][-1]["from_step"] >= STEPS
    assert history["best_epoch"] == 1 and len(history["epochs"]) == WORSE_AND_WORSE.epochs
    for directory in ("best", f"epoch_{WORSE_AND_WORSE.epochs}"):
        assert weights_sha256(output / directory) == weights_sha256(tmp_path / "undisturbed" / directory)

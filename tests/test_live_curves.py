"""REPORT_TO: TensorBoard reads what the history says, no result changes, and what cannot be reported to is one line."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.tiny import write_model
from tests.training_world import EPOCHS, SETTINGS, run
from utils.core.errors import InputError, UsageError
from utils.core.settings import load_settings
from utils.training.train import TrainingSettings

pytestmark = pytest.mark.slow


def test_tensorboard_shows_the_history_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "curves"))
    pretrained = write_model(tmp_path / "model")
    plain = run(pretrained, tmp_path / "plain" / "baseline_model", "baseline")
    assert not (tmp_path / "curves").exists() and not list(tmp_path.rglob("events.*"))
    shown = dataclasses.replace(SETTINGS, report_to="tensorboard")
    history = run(pretrained, tmp_path / "shown" / "baseline_model", "baseline", shown)
    assert history["weights_sha256"] == plain["weights_sha256"] and history["settings"] == plain["settings"]
    events = EventAccumulator(str(tmp_path / "curves")).Reload()
    for name, key in (("eval/loss", "validation_loss"), ("train/epoch_loss", "train_loss")):
        curve = [event.value for event in events.Scalars(name)]
        assert curve == pytest.approx([epoch[key] for epoch in history["epochs"]], rel=1e-6) and len(curve) == EPOCHS
    assert len(events.Scalars("train/loss")) >= EPOCHS and len(events.Scalars("train/learning_rate")) >= EPOCHS


def settings_with(monkeypatch: pytest.MonkeyPatch, reporter: str) -> TrainingSettings:
    monkeypatch.setenv("MONO_S2S_REPORT_TO", reporter)
    monkeypatch.setenv("MONO_S2S_DEVICE", "cpu")
    monkeypatch.delitem(sys.modules, "configs.experiment_config", raising=False)  # it reads the environment once
    return TrainingSettings.of(load_settings(), seed=1, epochs=1, warmup_ratio=0.1)


def test_what_cannot_be_reported_to_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_with(monkeypatch, "none").report_to == "none"
    assert settings_with(monkeypatch, "tensorboard").report_to == "tensorboard"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="REPORT_TO=wandb needs a package that is missing: pip install wandb, or"):
        settings_with(monkeypatch, "wandb")
    with pytest.raises(UsageError, match="REPORT_TO: 'comet' is not one of none, tensorboard, wandb, mlflow"):
        settings_with(monkeypatch, "comet")

"""The whole experiment on local files with a tiny T5: the settings, the paths, and the command that runs it."""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.tiny import write_data, write_model

ROOT = Path(__file__).resolve().parents[1]
SEED = 3
SMALL = {
    "DEVICE": "cpu",
    "MAX_INPUT_LENGTH": "64",
    "MAX_TARGET_LENGTH": "24",
    "MIN_NEW_TOKENS": "3",
    "MAX_NEW_TOKENS": "12",
    "NUM_EPOCHS": "2",
    "MONOTONIC_NUM_EPOCHS": "2",
    "LEARNING_RATE": "1e-2",
    "BATCH_SIZE": "8",
    "TRIGGER_OPTIMIZE_SIZE_FULL": "8",
    "TRIGGER_EVAL_SIZE_FULL": "8",
    "TRIGGER_TYPES": "lead,natural",
    "TRIGGER_ITERATIONS": "3",
    "TRIGGER_RESTARTS": "2",
    "TRIGGER_CANDIDATES": "4",
    "TRIGGER_GRADIENT_FREE_TYPES": "lead",
    "TRIGGER_RANDOM_CONTROLS": "2",
    "HOTFLIP_CANDIDATES": "4",
    "HOTFLIP_NUM_FLIPS": "2",
    "HOTFLIP_METRIC_SUMMARIES": "8",
    "CEILING_EXAMPLES": "2",
    "ORDER_CHAINS": "40",
    "CEILING_MOVES": "20",
    "CEILING_SUMMARIES": "5",
    "HOTFLIP_METRIC_REPLACEMENTS": "3",
    "BOOTSTRAP_SAMPLES": "100",
    "ATTACK_MIN_CLEAN_ROUGE": "0.0",
}


class Run:
    """One experiment directory and the command that fills it."""

    def __init__(self, root: Path) -> None:
        self.scratch, self.project = root / "scratch", root / "project"
        own = {name: value for name, value in os.environ.items() if not name.startswith("MONO_S2S_")}
        self.environment = own | {
            "SCRATCH": str(self.scratch),
            "PROJECT": str(self.project),
            "HF_HUB_OFFLINE": "1",
            "MONO_S2S_PYTHON": sys.executable,
            "MONO_S2S_MODEL_NAME": str(write_model(root / "my model")),
            "MONO_S2S_DATASETS_FILE": str(write_data(root / "my data")),
            **{f"MONO_S2S_{name}": value for name, value in SMALL.items()},
        }
        self.results = self.scratch / "mono_s2s_results" / f"seed_{SEED}"
        self.final = self.project / "mono_s2s_final_results" / f"seed_{SEED}"
        self.work = self.scratch / "mono_s2s_work"

    def __call__(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=self.environment | environment, capture_output=True, text=True, timeout=600, cwd="/"
        )

    def all(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self(str(ROOT / "run_all.sh"), str(SEED), "--local", *options, **environment)

    def result(self, name: str) -> dict:
        return json.loads((self.results / name).read_text())["results"]


def in_process(
    monkeypatch: pytest.MonkeyPatch, script: str, *words: str, environment: Mapping[str, str] = os.environ
) -> int:
    """Exit code of scripts/SCRIPT.py with these words and MONO_S2S_ settings, without the seconds of a new Python."""
    for name in [name for name in os.environ if name.startswith("MONO_S2S_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        if name.startswith("MONO_S2S_") or name in ("SCRATCH", "PROJECT"):
            monkeypatch.setenv(name, value)
    monkeypatch.delitem(sys.modules, "configs.experiment_config", raising=False)  # it reads the environment once
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *words])
    try:
        code: int = importlib.import_module(f"scripts.{script}").main()
    except SystemExit as left:
        code = int(left.code or 0)
    finally:
        sys.modules.pop("configs.experiment_config", None)  # no later test shall get these settings
    return code


def run_script(patch: pytest.MonkeyPatch, script: str, environment: dict[str, str], seed: int = SEED) -> int:
    """Exit code of a stage script, run in this process with these settings."""
    for name in [name for name in os.environ if name.startswith("MONO_S2S_")]:
        patch.delenv(name)
    for name, value in environment.items():
        if name.startswith("MONO_S2S_") or name in ("SCRATCH", "PROJECT"):
            patch.setenv(name, value)
    sys.modules.pop("configs.experiment_config", None)  # it reads the environment once
    patch.setattr(sys, "argv", [script, "--seed", str(seed)])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)}
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.modules.pop("configs.experiment_config", None)  # no later test shall get these settings
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0

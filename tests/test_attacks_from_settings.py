"""Settings become an attack in one place: show_attack.py attacks exactly as stage 6 does."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline_world import SEED, Run
from utils.attacks.context import AttackContext
from utils.attacks.from_settings import attack_context, hotflip_settings, trigger_settings
from utils.attacks.hotflip.attack import HotFlipSettings
from utils.core.errors import StageError
from utils.core.paths import Paths
from utils.core.settings import load_settings
from utils.modeling.tokenizer import load_tokenizer
from utils.pipeline.runner import StageContext
from utils.pipeline.stages import STAGES

pytestmark = pytest.mark.slow

UNUSUAL = {"MONO_S2S_ATTACK_LOSS": "own_output", "MONO_S2S_PRECISION": "bf16", "MONO_S2S_HOTFLIP_BEAM": "2"}


@pytest.fixture
def stage(done: Run, monkeypatch: pytest.MonkeyPatch) -> StageContext:
    """Stage 6 of a tiny experiment in this process, with settings of attacks that are not the default."""
    for name, value in (done.environment | UNUSUAL).items():
        if name.startswith("MONO_S2S_") or name in ("SCRATCH", "PROJECT"):
            monkeypatch.setenv(name, value)
    monkeypatch.delitem(sys.modules, "configs.experiment_config", raising=False)  # it reads the environment once
    settings = load_settings()
    return StageContext(STAGES[6], SEED, settings, Paths.of(settings), logging.getLogger("test"), 0.0)


class _Seen(Exception):
    """Ends a command as soon as it has said how it attacks."""


def _attack_of(monkeypatch: pytest.MonkeyPatch, module: str, command: Any, *arguments: Any) -> dict[str, Any]:
    """All that decides the attack which a command makes by `module.attack_examples`."""
    seen: list[tuple[AttackContext, HotFlipSettings]] = []

    def attack_examples(context: AttackContext, victim: Any, examples: Any, how: HotFlipSettings, **_: Any) -> None:
        seen.append((context, how))
        raise _Seen

    monkeypatch.setattr(f"{module}.attack_examples", attack_examples)
    with pytest.raises(_Seen):
        command(*arguments)
    ((context, settings),) = seen
    fields = {field.name: getattr(context, field.name) for field in dataclasses.fields(context)}
    legal = fields.pop("legal")
    del fields["tokenizer"], fields["stop_requested"]  # objects of their own in every process
    return fields | {"token_set": legal.token_set, "legal": legal.ids.tolist(), **dataclasses.asdict(settings)}


def test_show_attack_attacks_as_stage_6(stage: StageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    work = importlib.import_module("scripts.stage_6_hotflip_attacks").work
    show = importlib.import_module("scripts.show_attack").main
    of_stage = _attack_of(monkeypatch, "utils.attacks.hotflip.experiment", work, stage)
    words = ["--seed", str(SEED), "--example", "0"]
    shown = _attack_of(monkeypatch, "utils.attacks.show", show, words)
    # One text is attacked whatever its clean score is (0.0 in this experiment's settings, too).
    assert shown == of_stage
    assert of_stage["loss"] == "own_output" and of_stage["precision"] == "bf16" and of_stage["beam"] == 2
    assert of_stage["decoding"].num_beams == stage.settings.NUM_BEAMS and of_stage["seed"] == SEED


def test_options_of_show_attack_change_what_they_name(stage: StageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    show = importlib.import_module("scripts.show_attack").main
    words = ["--seed", str(SEED), "--example", "0"]
    plain = _attack_of(monkeypatch, "utils.attacks.show", show, words)
    options = ["--flips", "1", "--candidates", "40", "--restarts", "3", "--attack-seed", "9", "--token-set", "raw"]
    changed = _attack_of(monkeypatch, "utils.attacks.show", show, [*words, *options])
    expected = {"num_flips": 1, "candidates": 40, "random_candidates": 4, "restarts": 3, "seed": 9, "token_set": "raw"}
    different = {name: value for name, value in changed.items() if value != plain[name] and name != "legal"}
    assert different == {name: value for name, value in expected.items() if plain[name] != value} == expected


def test_show_attack_takes_control_arms(stage: StageContext, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    show = importlib.import_module("scripts.show_attack").main
    words = ["--seed", str(SEED), "--example", "0", "--model", "no_ffn"]
    assert show(words) == 3  # not trained here: said with the setting that trains it
    assert f"MONO_S2S_CONTROL_ARMS=no_ffn ./run_all.sh {SEED}" in capsys.readouterr().err
    paths = stage.paths
    shutil.copytree(paths.model(SEED, "baseline"), paths.model(SEED, "no_ffn"))
    try:
        assert _attack_of(monkeypatch, "utils.attacks.show", show, words)
    finally:
        shutil.rmtree(paths.model(SEED, "no_ffn").parent)


def test_overrides_that_are_none_keep_the_setting(stage: StageContext) -> None:
    assert hotflip_settings(stage.settings, 1, beam=None) == hotflip_settings(stage.settings, 1)
    assert trigger_settings(stage.settings, 1, iterations=80).dev_every == 10
    assert trigger_settings(stage.settings, 1, iterations=3).dev_every == 1


def test_a_model_smaller_than_its_tokenizer_is_refused(stage: StageContext, tmp_path: Path) -> None:
    good = stage.paths.model(SEED, "standard")
    shutil.copytree(good, tmp_path / "small")
    config = json.loads((good / "config.json").read_text())
    (tmp_path / "small" / "config.json").write_text(json.dumps(config | {"vocab_size": 50}))
    tokenizer = load_tokenizer(stage.paths.pretrained)
    attack_context(stage.settings, tokenizer, good)
    with pytest.raises(StageError, match="do not belong together"):
        attack_context(stage.settings, tokenizer, good, tmp_path / "small")

"""Settings: typed overrides, unfair comparisons refused, profiles that cannot be mistaken, frozen files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.core.settings import Settings, freeze

ROOT = Path(__file__).resolve().parents[1]
KNOWN = (
    "SCRATCH_DIR PROJECT_DIR SLURM_PARTITION SLURM_ACCOUNT NUM_EPOCHS MONOTONIC_NUM_EPOCHS LEARNING_RATE BATCH_SIZE "
    "GRADIENT_CLIP WEIGHT_DECAY WARMUP_RATIO MONOTONIC_WARMUP_RATIO USE_FULL_TEST_SETS BOOTSTRAP_SAMPLES "
    "EVAL_BATCH_SIZE TRIGGER_EVAL_SIZE_FULL TRACK_TRAINING_TIME TRACK_INFERENCE_TIME COMPUTE_GRADIENT_NORMS"
).split()


def read(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MONO_S2S_")}
    command = [sys.executable, "-c", f"from configs.experiment_config import *\n{code}"]
    return subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True)


def value(name: str, **environment: str) -> str:
    result = read(f"print(repr({name}))", **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_line_of_the_guide_works():
    assert read("print('Config OK')").stdout == "Config OK\n"


def test_names_and_values_that_users_know():
    names = json.loads(read("import json; print(json.dumps([n for n in dir() if n.isupper()]))").stdout)
    assert set(KNOWN) <= set(names)
    expected = {
        "NUM_EPOCHS": "7",
        "MONOTONIC_NUM_EPOCHS": "7",
        "LEARNING_RATE": "5e-05",
        "BATCH_SIZE": "4",
        "GRADIENT_CLIP": "1.0",
        "WEIGHT_DECAY": "0.01",
        "WARMUP_RATIO": "0.1",
        "MONOTONIC_WARMUP_RATIO": "0.15",
        "USE_FULL_TEST_SETS": "True",
        "BOOTSTRAP_SAMPLES": "1000",
        "TRIGGER_EVAL_SIZE_FULL": "1500",
    }
    for name, text in expected.items():
        assert value(name) == text


def test_configs_import_the_standard_library_alone():
    code = "import sys; print([m for m in sys.modules if m.split('.')[0] in ('torch', 'numpy', 'transformers')])"
    assert read(code).stdout == "[]\n"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("LEARNING_RATE", "1e-4", "0.0001"),
        ("BATCH_SIZE", "8", "8"),
        ("USE_FULL_TEST_SETS", "false", "False"),
        ("TRAIN_DATASETS", "dialogsum, arxiv", "('dialogsum', 'arxiv')"),
        ("TASK_PREFIX", "tldr:", "'tldr:'"),
    ],
)
def test_the_environment_sets_a_constant_with_its_type(name, text, expected):
    assert value(name, **{f"MONO_S2S_{name}": text}) == expected


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"MONO_S2S_LERNING_RATE": "1"}, "Did you mean MONO_S2S_LEARNING_RATE"),
        ({"MONO_S2S_BATCH_SIZE": "four"}, "expected a whole number"),
        ({"MONO_S2S_BATCH_SIZE": "2.5"}, "expected a whole number"),
        ({"MONO_S2S_BATCH_SIZE": "0"}, "greater than 0"),
        ({"MONO_S2S_LEARNING_RATE": "nan"}, "finite"),
        ({"MONO_S2S_USE_FULL_TEST_SETS": "perhaps"}, "true or false"),
        ({"MONO_S2S_NUM_EPOCHS": "5"}, "fair"),
        ({"MONO_S2S_MONOTONIC_NUM_EPOCHS": "5"}, "fair"),
        ({"MONO_S2S_MONOTONIC_LEARNING_RATE": "1e-4"}, "both models share LEARNING_RATE"),
        ({"MONO_S2S_MONOTONIC_BATCH_SIZE": "8"}, "both models share BATCH_SIZE"),
        ({"MONO_S2S_PROFILE": "tiny"}, "not one of"),
        ({"MONO_S2S_DEVICE": "tpu"}, "not one of"),
        ({"MONO_S2S_TEST_DATASETS": "xsum"}, "cnn_dm must be among them"),
        ({"MONO_S2S_WARMUP_RATIO": "1.5"}, "share"),
    ],
)
def test_what_is_wrong_is_named(environment, words):
    result = read("print('went on')", **environment)
    assert result.returncode != 0 and "went on" not in result.stdout
    assert words in result.stderr.splitlines()[-1]


def test_equal_epochs_may_change_together():
    assert value("NUM_EPOCHS", MONO_S2S_NUM_EPOCHS="2", MONO_S2S_MONOTONIC_NUM_EPOCHS="2") == "2"


def test_a_profile_sets_values_and_the_environment_beats_it():
    assert value("MAX_TRAIN_EXAMPLES", MONO_S2S_PROFILE="quick") == "200"
    assert value("MAX_TRAIN_EXAMPLES", MONO_S2S_PROFILE="quick", MONO_S2S_MAX_TRAIN_EXAMPLES="50") == "50"
    assert value("SCRATCH_DIR", MONO_S2S_PROFILE="demo", MONO_S2S_DEMO_DIR="/somewhere") == "'/somewhere/scratch'"


def test_every_profile_makes_only_known_fair_settings():
    from configs.profiles import PROFILES

    names = set(json.loads(read("import json; print(json.dumps([n for n in dir() if n.isupper()]))").stdout))
    for profile, changes in PROFILES.items():
        assert set(changes) <= names
        assert value("PROFILE", MONO_S2S_PROFILE=profile) == repr(profile)


def test_a_frozen_file_beats_the_environment_and_later_edits(tmp_path):
    frozen = tmp_path / "settings.json"
    command = (
        f"from utils.core.settings import *; from pathlib import Path; freeze(load_settings(), Path({str(frozen)!r}))"
    )
    assert read(command, MONO_S2S_LEARNING_RATE="2e-4").returncode == 0
    stray = {"MONO_S2S_SETTINGS_FILE": str(frozen), "MONO_S2S_LEARNING_RATE": "9", "MONO_S2S_NOT_A_SETTING": "1"}
    assert value("LEARNING_RATE", **stray) == "0.0002"
    assert value("TRAIN_DATASETS", **stray) == "('dialogsum', 'highlightsum', 'arxiv')"


@pytest.mark.parametrize("content", ["", "{}", '{"settings": {"LEARNING_RATE": 1}}'])
def test_a_bad_frozen_file_is_refused(tmp_path, content):
    frozen = tmp_path / "settings.json"
    frozen.write_text(content)
    result = read("", MONO_S2S_SETTINGS_FILE=str(frozen))
    assert result.returncode != 0 and "Submit the run again" in result.stderr


def test_freeze_writes_every_setting(tmp_path):
    freeze(Settings(A=1, B=("x",)), tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text()) == {"settings": {"A": 1, "B": ["x"]}}

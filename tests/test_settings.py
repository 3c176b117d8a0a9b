"""Settings: typed overrides, unfair comparisons refused, profiles that cannot be mistaken, frozen files."""

import copy
import json
import os
import pickle
import re
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
        ({"MONO_S2S_CONTROL_ARMS": "sign_frozen,no_fnn"}, "there is no arm 'no_fnn'. Did you mean no_ffn?"),
        ({"MONO_S2S_CONTROL_ARMS": "monotonic"}, "monotonic is always trained"),
        ({"MONO_S2S_CONTROL_ARMS": "no_ffn,no_ffn"}, "each arm once"),
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


def test_settings_are_read_only():
    settings = Settings(A=1, B=("x",))
    with pytest.raises(AttributeError, match="read-only"):
        settings.A = 2
    with pytest.raises(AttributeError, match="read-only"):
        settings.NEW = 2
    with pytest.raises(AttributeError, match="read-only"):
        del settings.A
    with pytest.raises(TypeError):
        settings._values["A"] = 2
    with pytest.raises(AttributeError, match="no setting C"):
        _ = settings.C
    other = settings.replaced(A=2)
    assert (settings.A, other.A, other.B) == (1, 2, ("x",)) and settings != other == Settings(A=2, B=("x",))
    assert pickle.loads(pickle.dumps(other)) == copy.deepcopy(other) == other


def test_one_constant_is_one_line_with_its_comment():
    for line in (ROOT / "configs" / "experiment_config.py").read_text().splitlines():
        assert not re.fullmatch(r"[A-Z_]+ = [(\[{]", line), line


def value_in(directory: Path, name: str, **environment: str) -> str:
    """The setting as a process in `directory` has it."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from configs.experiment_config import *; print({name})"
    clean = {key: text for key, text in os.environ.items() if not key.startswith("MONO_S2S_")}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=directory, env=clean | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


PATH_SETTINGS = ("SCRATCH_DIR", "PROJECT_DIR", "DEMO_DIR", "DATASETS_FILE", "HF_CACHE_DIR", "MODEL_NAME")


@pytest.mark.parametrize("name", PATH_SETTINGS)
@pytest.mark.parametrize("text", ["~/a b", "../up", "./here", "./x/../here/", "/abs/./x//", "//abs//x"])
def test_a_path_means_one_place_to_every_process(tmp_path, name, text):
    """Settings are loaded in one directory and used in others: a job starts in the checkout, status anywhere."""
    inside, home = tmp_path / "inside", tmp_path / "home"
    inside.mkdir()
    elsewhere = {
        "~/a b": home / "a b",
        "../up": tmp_path / "up",
        "/abs/./x//": Path("/abs/x"),
        "//abs//x": Path("/abs/x"),
    }
    found = value_in(inside, name, HOME=str(home), **{f"MONO_S2S_{name}": text})
    assert found == str(elsewhere.get(text, inside / "here"))


@pytest.mark.parametrize("variable", ["SCRATCH", "PROJECT"])
def test_the_variables_of_the_cluster_may_be_relative_too(tmp_path, variable):
    assert value_in(tmp_path, f"{variable}_DIR", **{variable: "s"}) == str(tmp_path / "s")


def test_an_id_on_the_hub_is_no_path_and_a_directory_of_the_model_is(tmp_path):
    (tmp_path / "my" / "t5").mkdir(parents=True)
    assert value_in(tmp_path, "MODEL_NAME", MONO_S2S_MODEL_NAME="my/t5") == str(tmp_path / "my" / "t5")
    assert value_in(tmp_path, "MODEL_NAME", MONO_S2S_MODEL_NAME="google-t5/t5-base") == "google-t5/t5-base"


def test_a_relative_path_in_the_file_starts_at_the_checkout():
    from configs.overrides import CHECKOUT, _with_absolute_paths

    constants = dict.fromkeys(PATH_SETTINGS, "") | {"HF_CACHE_DIR": "cache", "PROFILE": "full", "MODEL_NAME": "a/b"}
    assert _with_absolute_paths(constants, {})["HF_CACHE_DIR"] == str(CHECKOUT / "cache")
    assert _with_absolute_paths(constants, {"HF_CACHE_DIR": "cache"})["HF_CACHE_DIR"] == str(Path.cwd() / "cache")


def test_variables_in_a_path_are_expanded_and_what_nobody_means_is_refused(tmp_path, monkeypatch):
    from configs.overrides import SettingsError, absolute

    monkeypatch.setenv("GROUP", "nlp")
    assert absolute("/scratch/$GROUP/${GROUP}_x", tmp_path) == "/scratch/nlp/nlp_x"
    assert absolute("/a$/b c", tmp_path) == "/a$/b c"
    for text, said in ((" /scratch", "a space"), ("x ", "a space"), (" ", "a space"), ("/a/$NO_SUCH", "NO_SUCH")):
        with pytest.raises(SettingsError, match=said):
            absolute(text, tmp_path)


def test_behind_a_link_dot_dot_is_what_the_file_system_says(tmp_path):
    from configs.overrides import absolute

    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "near").symlink_to(tmp_path / "far" / "away")
    assert absolute("near/../x", tmp_path) == str(tmp_path / "far" / "x")
    assert absolute("near/x", tmp_path) == str(tmp_path / "near" / "x")  # automounted homes keep their usual name


def test_a_home_that_nobody_has_is_named():
    result = read("", MONO_S2S_SCRATCH_DIR="~nobody-of-that-name/x")
    assert result.returncode and "home directory" in result.stderr.splitlines()[-1]


def test_every_setting_that_code_reads_exists_and_every_one_is_read():
    """mypy cannot see the names: `Settings` makes attributes of the constants."""
    names = set(json.loads(read("import json; print(json.dumps([n for n in dir() if n.isupper()]))").stdout))
    files = [path for room in ("utils", "scripts") for path in (ROOT / room).rglob("*.py")]
    used = {name for path in files for name in re.findall(r"\bsettings\.([A-Z][A-Z_]+)\b", path.read_text())}
    assert used <= names
    text = "".join(path.read_text() for path in files)
    assert [name for name in sorted(names) if not re.search(rf"\b{name}\b", text)] == ["DEMO_DIR"]  # configs/ reads it

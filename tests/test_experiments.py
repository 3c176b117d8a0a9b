"""Named experiments: directories of their own, one preparation of the same data, no model replaced by accident."""

import os
import shlex
from pathlib import Path

import pytest

from tests.pipeline_world import Run, run_script
from tests.tiny import write_model
from utils.core.paths import Paths
from utils.core.settings import command_prefix, load_settings, run_command, settings_with


def test_a_named_experiment_has_directories_of_its_own_as_a_profile_has(tmp_path, monkeypatch):
    monkeypatch.setenv("MONO_S2S_SCRATCH_DIR", str(tmp_path))
    monkeypatch.setenv("MONO_S2S_PROJECT_DIR", "/p")
    with settings_with({"MONO_S2S_EXPERIMENT": "t5-base", "MONO_S2S_BATCH_SIZE": "8"}):
        settings = load_settings()
        paths = Paths.of(settings)
        assert settings.BATCH_SIZE == 8 and run_command(settings) == "MONO_S2S_EXPERIMENT=t5-base ./run_all.sh"
    assert [path.name for path in (paths.work, paths.results_root, paths.final_root, paths.multi_seed)] == [
        f"mono_s2s_{name}_t5-base" for name in ("work", "results", "final_results", "multi_seed_results")
    ]
    with settings_with({}):
        plain = load_settings()
        assert plain.BATCH_SIZE == 4 and command_prefix(plain) == "" and Paths.of(plain).work.name == "mono_s2s_work"
        assert Paths.of(plain).cache == paths.cache, "downloads are shared"
    with settings_with({"MONO_S2S_EXPERIMENT": "b", "MONO_S2S_PROFILE": "quick"}):
        assert Paths.of(load_settings()).results_root.name == "mono_s2s_results_quick_b"


@pytest.mark.parametrize("name", ["a/b", "..", "quick", "quick_b", "-x", "a b", "x" * 61])
def test_a_name_that_is_no_directory_or_anothers_is_refused(name):
    from utils.core.errors import UsageError

    with settings_with({"MONO_S2S_EXPERIMENT": name}), pytest.raises(UsageError, match="EXPERIMENT="):
        load_settings()


def test_another_model_of_a_variable_has_no_commit_of_the_first_one():
    with settings_with({"MONO_S2S_MODEL_NAME": "google-t5/t5-base"}):
        assert load_settings().MODEL_REVISION == ""
    with settings_with({"MONO_S2S_MODEL_NAME": "google-t5/t5-base", "MONO_S2S_MODEL_REVISION": "abc"}):
        assert load_settings().MODEL_REVISION == "abc"
    with settings_with({}):
        assert load_settings().MODEL_REVISION


@pytest.mark.slow
def test_another_model_over_a_finished_seed_is_refused_with_the_line_that_keeps_both(tmp_path, monkeypatch):
    run = Run(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for stage in ("scripts/stage_0_setup.py", "scripts/stage_1_prepare_data.py", "scripts/stage_2_train_baseline.py"):
        assert run_script(monkeypatch, stage, run.environment) == 0
    other = write_model(tmp_path / "other t5", d_model=32)
    refused = run.all("--dry-run", MONO_S2S_MODEL_NAME=str(other))
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "seed 3 has finished stages with MODEL_NAME=" in line and "my model" in line
    typed = line.rpartition("Side by side: ")[2]
    words = dict(word.split("=", 1) for word in shlex.split(typed)[:2])
    assert words == {"MONO_S2S_MODEL_NAME": str(other), "MONO_S2S_EXPERIMENT": "other-t5"}
    assert run.all("--dry-run", **words).returncode == 0
    # The variant prepares no data anew where its own would be the same.
    environment = run.environment | words
    before = {path: path.stat().st_ino for path in (run.work / "prepared_data").rglob("*.arrow")}
    for stage in ("scripts/stage_0_setup.py", "scripts/stage_1_prepare_data.py"):
        assert run_script(monkeypatch, stage, environment) == 0
    theirs = Path(f"{run.work}_other-t5") / "prepared_data"
    linked = {path: path.stat().st_ino for path in theirs.rglob("*.arrow")}
    assert linked and set(linked.values()) == set(before.values())
    # What was damaged after it was flagged is no other experiment's good output.
    damaged = next((run.work / "prepared_data").rglob("*.arrow"))
    content = damaged.read_bytes()
    damaged.unlink()  # the file that the other experiment linked stays as it is
    damaged.write_bytes(content[:-1])
    (Path(f"{run.work}_other-t5") / "stage_1_prepare_data.flag").unlink()  # the only other place
    third = environment | {"MONO_S2S_EXPERIMENT": "third"}
    for stage in ("scripts/stage_0_setup.py", "scripts/stage_1_prepare_data.py"):
        assert run_script(monkeypatch, stage, third) == 0
    assert (Path(f"{run.work}_third") / damaged.relative_to(run.work)).read_bytes() == content
    # Other lengths are other data.
    long = environment | {"MONO_S2S_EXPERIMENT": "short", "MONO_S2S_MAX_INPUT_LENGTH": "40"}
    for stage in ("scripts/stage_0_setup.py", "scripts/stage_1_prepare_data.py"):
        assert run_script(monkeypatch, stage, long) == 0
    anew = {path.stat().st_ino for path in Path(f"{run.work}_short").rglob("prepared_data/**/*.arrow")}
    assert anew and not anew & set(before.values())
    assert os.environ["HF_HUB_OFFLINE"] == "1"

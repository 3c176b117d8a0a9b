"""Named experiments: directories of their own, one preparation of the same data, no model replaced by accident."""

import os
import re
import shlex
from pathlib import Path

import pytest

from tests.pipeline_world import Run, run_script
from tests.shell_world import World
from tests.tiny import write_model
from utils.core.paths import Paths
from utils.core.settings import as_typed, load_settings, run_command, settings_with
from utils.operations.causes import CAUSES
from utils.operations.check import Check
from utils.operations.pending_reasons import REASONS


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
        assert (
            plain.BATCH_SIZE == 4
            and run_command(plain) == "./run_all.sh"
            and Paths.of(plain).work.name == "mono_s2s_work"
        )
        assert Paths.of(plain).cache == paths.cache, "downloads are shared"
    with settings_with({"MONO_S2S_EXPERIMENT": "b", "MONO_S2S_PROFILE": "quick"}):
        assert Paths.of(load_settings()).results_root.name == "mono_s2s_results_quick_b"


COMMAND = re.compile(r"((?:MONO_S2S_\w+=\S+ )*)\./\w+\.sh[^\n&]*")


def foreign(text: str, variables: dict[str, str], option: str = "") -> list[str]:
    """The commands in a text that are not about the experiment that these variables name."""
    commands = list(COMMAND.finditer(text))
    wanted = {f"{name}={value}" for name, value in variables.items()}
    return [c[0] for c in commands if not wanted <= set(c[1].split()) or (option and c[0].count(option) != 1)]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "End: ./run_all.sh --cancel 4   Or (./clean_all.sh), ./x.sh, /a/run_all.sh && A=1 ./run_all.sh --demo"),
        ({"EXPERIMENT": "b"}, "End: MONO_S2S_EXPERIMENT=b ./run_all.sh --cancel 4   Or (MONO_S2S_EXPERIMENT=b "
         "./clean_all.sh), ./x.sh, /a/run_all.sh && A=1 MONO_S2S_EXPERIMENT=b ./run_all.sh --demo"),
        ({"PROFILE": "demo"}, "End: ./run_all.sh --demo --cancel 4   Or (./clean_all.sh --demo), ./x.sh, "
         "/a/run_all.sh && A=1 ./run_all.sh --demo"),
        ({"PROFILE": "quick", "EXPERIMENT": "b"}, "End: MONO_S2S_PROFILE=quick MONO_S2S_EXPERIMENT=b ./run_all.sh "
         "--cancel 4   Or (MONO_S2S_PROFILE=quick MONO_S2S_EXPERIMENT=b ./clean_all.sh), ./x.sh, /a/run_all.sh && "
         "A=1 MONO_S2S_PROFILE=quick MONO_S2S_EXPERIMENT=b ./run_all.sh --demo"),
    ],
)  # fmt: skip
def test_a_command_in_a_message_is_about_the_experiment_it_speaks_of(variables, expected):
    text = "End: ./run_all.sh --cancel 4   Or (./clean_all.sh), ./x.sh, /a/run_all.sh && A=1 ./run_all.sh --demo"
    with settings_with({f"MONO_S2S_{name}": value for name, value in variables.items()}):
        assert as_typed(text) == expected and as_typed(expected) == expected
    with settings_with({"MONO_S2S_BATCH_SIZE": "many"}):
        assert as_typed(text) == text, "wrong settings are told by others"


def test_every_remedy_that_is_printed_is_about_the_named_experiment(capsys):
    remedies = [cause.remedy for cause in CAUSES]
    remedies += [reason.remedy_for("7", "./run_all.sh --cancel 4", "./run_all.sh 4") for reason in REASONS]
    assert sum("./" in remedy for remedy in remedies) > 15
    for variables, option in (({"MONO_S2S_EXPERIMENT": "b"}, ""), ({"MONO_S2S_PROFILE": "demo"}, "--demo")):
        with settings_with(variables):
            for remedy in remedies:
                Check("warning", "x", remedy, remedy).show()
        assert not foreign(capsys.readouterr().out, {} if option else variables, option)


@pytest.mark.slow
def test_every_command_that_a_run_of_a_named_experiment_suggests_is_about_it(tmp_path):
    world = World(tmp_path)
    named = {"MONO_S2S_EXPERIMENT": "b"}
    made_with = {"MONO_S2S_LEARNING_RATE": "0.001", "MONO_S2S_TRAIN_DATASETS": "dialogsum,arxiv"}
    world.behave(s4_evaluate={"fail": "cannot write /a: free space (./clean_checkpoints.sh)"})
    asked = [
        world.all("7", "--local", **named, **made_with),
        world.run("check_training_status.sh", **named),
        world.run("diagnose_and_recover.sh", "7", **named),
        world.run("run_multi_seed.sh", "7", "8", "--cancel", **named),
    ]
    said = [result.stdout + result.stderr for result in asked]
    assert asked[2].returncode == 1 and all(re.search(COMMAND, text) for text in said[:3]), said
    assert not [line for text in said for line in foreign(text, named)]
    # This shell has other settings than the experiment was made with: the command brings them along.
    typed = next(line for line in said[2].splitlines() if line.startswith("then: "))
    assert not foreign(typed, named | made_with), typed
    world.behave()
    words = shlex.split(typed.removeprefix("then: "))
    variables = dict(word.split("=", 1) for word in words if "=" in word)
    again = world.all(*words[len(variables) + 1 :], "--dry-run", **variables)
    assert re.search(r"3_train_monotonic +done", again.stdout) and re.search(r"4_evaluate +will run", again.stdout)


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

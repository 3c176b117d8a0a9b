"""Flags see the user's own files, hash each file once, and --force makes a stage anew once."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from utils.core import hashes
from utils.core.errors import Interrupted
from utils.core.files import append_jsonl, write_text
from utils.core.paths import Paths
from utils.core.results import write_result
from utils.core.settings import Settings
from utils.pipeline import runner
from utils.pipeline.flags import Flag, clear_flag, problem_of, read_flag
from utils.pipeline.stages import STAGES

SEED = 7


class Experiment:
    """Settings, paths and stages whose work writes small files."""

    def __init__(self, monkeypatch, root: Path, **settings) -> None:
        self.monkeypatch, self.root = monkeypatch, root
        self.use(SCRATCH_DIR=str(root / "scratch"), PROJECT_DIR=str(root / "project"), **settings)
        self.paths = Paths.of(self.settings)

    def use(self, **changes) -> None:
        self.settings: Settings = runner.load_settings().replaced(**changes)
        self.monkeypatch.setattr(runner, "load_settings", lambda: self.settings)

    def run(self, number: int, *options: str, work=None) -> int:
        return runner.run_stage(number, work or self.write_outputs, ["--seed", str(SEED), *options])

    @staticmethod
    def write_outputs(context: runner.StageContext) -> None:
        for path in context.stage.outputs(context.paths, context.seed):
            write_text(path if path.suffix else path / "file", context.stage.key)

    def problem(self, number: int) -> str | None:
        return problem_of(STAGES[number], SEED, self.paths, self.settings)


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("MONO_S2S_", "SLURM_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(hashes, "_hashed", {})
    model, data = tmp_path / "my t5", tmp_path / "data"
    write_text(model / "config.json", '{"dropout_rate": 0.1}')
    write_text(model / "model.safetensors", "all weights")
    for name in ("train", "validation"):
        write_text(data / f"{name}.jsonl", '{"dialogue": "a", "summary": "b"}\n' * 40)
    write_text(data / "more" / "en" / "part1.csv", "a,b\n")
    write_text(data / "more" / ".cache" / "junk", "x")
    files = {"train": "train.jsonl", "validation": ["validation.jsonl", "more"]}
    write_text(data / "sets.json", json.dumps({"dialogsum": {"files": files}}))
    return Experiment(monkeypatch, tmp_path, MODEL_NAME=str(model), DATASETS_FILE=str(data / "sets.json"))


def run_both(experiment) -> None:
    assert [experiment.run(0), experiment.run(1)] == [0, 0]
    assert [experiment.problem(0), experiment.problem(1)] == [None, None]


# ---- what counts ----------------------------------------------------------------------------------


def write_results(context: runner.StageContext) -> None:
    """Result files in their envelope, with times; beside them what has none."""
    for path in context.stage.outputs(context.paths, context.seed):
        if path.suffix == ".json":
            write_result(path, context.stage.key, {"unix_timestamp": time.time(), "checkpoints": {"monotonic": "a"}})
        else:
            write_text(path if path.suffix else path / "file", context.stage.key)


def test_a_result_that_is_written_again_makes_no_later_stage_stale_but_its_copies(experiment):
    for number in range(8):
        assert experiment.run(number, work=write_results) == 0
    history = experiment.paths.results(SEED) / "baseline_training_history.json"
    before = history.read_bytes()
    history.unlink()  # a purge of scratch
    assert "baseline_training_history.json is gone" in experiment.problem(2)
    assert experiment.run(2, work=write_results) == 0
    assert history.read_bytes() != before  # times
    assert [experiment.problem(number) for number in range(7)] == [None] * 7
    assert experiment.problem(7) == "stage 2_train_baseline has written its files again"
    assert experiment.run(7, work=write_results) == 0
    for changed in ({"results": "better"}, {"_metadata": {"checkpoints": {"monotonic": "b"}}}):
        write_text(history, json.dumps(json.loads(before) | changed))
        clear_flag(STAGES[2], SEED, experiment.paths)
        assert experiment.run(2, work=lambda context: None) == 0
        assert "has other outputs now" in experiment.problem(4)


# ---- what lies outside ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("my t5/config.json", 0),
        ("my t5/model.safetensors", 0),
        ("data/sets.json", 1),
        ("data/train.jsonl", 1),
        ("data/more/en/part1.csv", 1),
    ],
)
@pytest.mark.parametrize("change", ["edited", "replaced by a file of its size and date", "cut in half", "gone"])
def test_a_changed_file_of_the_user_makes_its_stage_stale(experiment, name, stage, change):
    run_both(experiment)
    path = experiment.root / name
    if change == "edited":
        path.write_text(path.read_text().replace("a", "e", 1))
    elif change.startswith("replaced"):  # as rsync -t and cp -p do
        stat = path.stat()
        write_text(path, path.read_text().replace("a", "e", 1))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    elif change == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert path.name in experiment.problem(stage)
    assert "input" in experiment.problem(stage)


@pytest.mark.parametrize("name", ["my t5/adapter.json", "data/more/part2.csv", "data/more/fr/part1.csv"])
def test_a_new_file_in_a_directory_of_the_user_is_seen(experiment, name):
    run_both(experiment)
    write_text(experiment.root / name, "x")
    assert Path(name).name in str(experiment.problem(0)) + str(experiment.problem(1))


def test_the_same_file_under_another_spelling_is_the_same(experiment, monkeypatch):
    run_both(experiment)
    monkeypatch.setenv("HOME", str(experiment.root / "data"))
    (experiment.root / "data" / "more" / ".cache" / "junk").write_text("hidden files are not read")
    (experiment.root / "link").symlink_to(experiment.root / "data")
    shutil.copytree(experiment.root / "my t5", experiment.root / "copied")
    experiment.use(
        DATASETS_FILE=str(experiment.root / "link" / "sets.json"), MODEL_NAME=str(experiment.root / "copied")
    )
    assert [experiment.problem(0), experiment.problem(1)] == [None, None]
    experiment.use(MODEL_NAME="google-t5/t5-small")
    assert "MODEL_NAME" in experiment.problem(0)


def test_a_file_that_changes_while_the_stage_reads_it_is_refused(experiment):
    assert experiment.run(0) == 0

    def work(context: runner.StageContext) -> None:
        experiment.write_outputs(context)
        write_text(experiment.root / "data" / "train.jsonl", "other")

    assert experiment.run(1, work=work) == 3
    assert experiment.problem(1) == "not done yet"


# ---- each file is hashed once ---------------------------------------------------------------------


def count_hashes(monkeypatch) -> list[Path]:
    counted: list[Path] = []
    real = hashes.sha256_of

    def sha256_of(path: Path) -> str:
        counted.append(path)
        return real(path)

    monkeypatch.setattr(hashes, "sha256_of", sha256_of)
    return counted


def test_after_touch_each_file_is_hashed_once_and_not_by_the_next_command(experiment, monkeypatch):
    for number in range(8):
        assert experiment.run(number) == 0
    for path in [*experiment.paths.work.rglob("*"), *experiment.paths.results_root.rglob("*")]:
        if path.suffix not in (".flag", ".log", ".lock"):
            os.utime(path, (time.time() + 5, time.time() + 5))
    counted = count_hashes(monkeypatch)
    monkeypatch.setattr(hashes, "_hashed", {})
    assert [experiment.problem(n) for n in range(8)] == [None] * 8
    assert len(counted) == len(set(counted)) > 10 and counted.count(experiment.paths.prepared) == 1
    counted.clear()
    monkeypatch.setattr(hashes, "_hashed", {})  # another process
    assert [experiment.problem(n) for n in range(8)] == [None] * 8
    assert counted == []


def test_a_remembered_hash_is_of_that_content_only(experiment):
    run_both(experiment)
    path = experiment.paths.prepared / "file"
    os.utime(path, (1, 1))
    assert experiment.problem(1) is None
    path.write_text(path.read_text()[::-1])
    os.utime(path, (2, 2))
    assert "was changed" in experiment.problem(1)


@pytest.mark.parametrize("content", ["", "[]", '{"x": 1}', b"\xff"])
def test_a_damaged_memory_of_hashes_is_made_anew(experiment, monkeypatch, content):
    run_both(experiment)
    known = experiment.paths.known_hashes
    known.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.utime(experiment.paths.prepared / "file", (1, 1))
    monkeypatch.setattr(hashes, "_hashed", {})
    assert experiment.problem(1) is None
    assert str(experiment.paths.prepared) in json.loads(known.read_text())


# ---- forced means made anew, once -----------------------------------------------------------------


def in_units(stop_after: int | None = None):
    """Work of four units, each appended to a file that a restarted stage continues."""

    def work(context: runner.StageContext) -> None:
        units = context.stage.progress(context.paths, context.seed)[0] / "units.jsonl"
        done = len(units.read_text().splitlines()) if units.exists() else 0
        for unit in range(done, 4):
            if unit == stop_after:
                raise Interrupted
            append_jsonl(units, [{"unit": unit, "made": time.time_ns()}])
        Experiment.write_outputs(context)

    return work


def units_of(experiment, number: int) -> list[int]:
    path = STAGES[number].progress(experiment.paths, SEED)[0] / "units.jsonl"
    return [json.loads(line)["made"] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("number", [stage.number for stage in STAGES if stage.resumable])
def test_force_makes_finished_work_anew_and_its_requeue_resumes(experiment, number):
    for before in range(number):
        assert experiment.run(before) == 0
    assert experiment.run(number, work=in_units()) == 0
    first = units_of(experiment, number)
    job = ("--force", "--forced-by", "job 12 of alpine")  # what a wrapper gives
    assert experiment.run(number, *job, work=in_units(stop_after=2)) == 1
    begun = units_of(experiment, number)
    assert len(begun) == 2 and not set(begun) & set(first)
    assert experiment.run(number, *job, work=in_units()) == 0  # SLURM starts the same job again
    assert units_of(experiment, number)[:2] == begun and len(units_of(experiment, number)) == 4
    made = units_of(experiment, number)
    assert experiment.run(number, *job, work=in_units()) == 0  # and once more: it is done
    assert units_of(experiment, number) == made
    assert experiment.run(number, "--force", "--forced-by", "job 13 of alpine", work=in_units()) == 0
    assert not set(units_of(experiment, number)) & set(made)


def test_a_submitted_run_is_one_forced_run_whatever_its_job(experiment, monkeypatch):
    for before in range(4):
        assert experiment.run(before) == 0
    settings = experiment.paths.runs / "20260101_000000_seed7" / "settings.json"
    write_text(settings, "{}")
    monkeypatch.delenv("MONO_S2S_SETTINGS_FILE", raising=False)
    options = ("--force", "--settings", str(settings))
    assert experiment.run(4, *options, work=in_units(stop_after=3)) == 1
    begun = units_of(experiment, 4)
    assert experiment.run(4, *options, "--forced-by", "job 99 of alpine", work=in_units()) == 0
    assert units_of(experiment, 4)[:3] == begun
    assert read_flag(STAGES[4], SEED, experiment.paths).forced == "run 20260101_000000_seed7"
    monkeypatch.setenv("MONO_S2S_SETTINGS_FILE", "")


def test_a_typed_force_starts_anew_each_time_and_says_how_to_resume(experiment, capsys):
    for before in range(4):
        assert experiment.run(before) == 0
    assert experiment.run(4, "--force", work=in_units(stop_after=2)) == 1
    assert "the same command (without --force, which starts from scratch) to resume" in capsys.readouterr().out
    begun = units_of(experiment, 4)
    assert experiment.run(4, work=in_units(stop_after=3)) == 1
    assert units_of(experiment, 4)[:2] == begun
    assert experiment.run(4, "--force", work=in_units()) == 0
    assert not set(units_of(experiment, 4)) & set(begun)


def test_the_tasks_of_a_forced_array_remove_earlier_work_once(experiment):
    for before in range(4):
        assert experiment.run(before) == 0
    assert experiment.run(4, work=in_units()) == 0
    for task in range(3):
        assert (
            experiment.run(
                4,
                "--force",
                "--forced-by",
                "job 50 of alpine",
                "--shard",
                f"{task}/3",
                work=in_units(stop_after=task + 1),
            )
            == 1
        )
        assert len(units_of(experiment, 4)) == task + 1


# ---- the record itself ----------------------------------------------------------------------------


def test_a_flag_is_read_as_it_was_written(experiment):
    run_both(experiment)
    path = experiment.paths.flag("1_prepare_data", None)
    flag = read_flag(STAGES[1], SEED, experiment.paths)
    assert Flag.from_json(json.loads(path.read_text())) == flag and flag.to_json() == json.loads(path.read_text())
    assert set(flag.inputs) == {
        "DATASETS_FILE",
        "DATASETS_FILE/dialogsum/train[0]/train.jsonl",
        "DATASETS_FILE/dialogsum/validation[0]/validation.jsonl",
        "DATASETS_FILE/dialogsum/validation[1]/en/part1.csv",
    }


@pytest.mark.parametrize("field", ["settings", "needs", "inputs", "outputs", "token", "stage", "finished", "code"])
def test_an_edit_anywhere_is_seen(experiment, field):
    run_both(experiment)
    path = experiment.paths.flag("1_prepare_data", None)
    content = json.loads(path.read_text())
    value = content[field]
    content[field] = {**value, "x": "y"} if isinstance(value, dict) else value + "x"
    path.write_text(json.dumps(content))
    assert "was changed after it was written" in experiment.problem(1)

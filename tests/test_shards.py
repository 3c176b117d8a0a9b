"""The tasks of a job array share a stage: each part counts once, and only if this run would have made it."""

import json
import os

import pytest

from utils.core.files import write_text
from utils.core.paths import Paths
from utils.core.settings import Settings
from utils.pipeline import runner as stage_runner
from utils.pipeline.flags import problem_of
from utils.pipeline.shards import join_shards
from utils.pipeline.stages import STAGES

pytestmark = pytest.mark.slow

SEED, COUNT = 7, 3


@pytest.fixture
def settings(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("MONO_S2S_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # stages set it for their process, which is this one
    return use(monkeypatch, SCRATCH_DIR=str(tmp_path / "scratch"), PROJECT_DIR=str(tmp_path / "project"))


def use(monkeypatch, **changes) -> Settings:
    """Let stages have these settings."""
    settings = stage_runner.load_settings().replaced(**changes)
    monkeypatch.setattr(stage_runner, "load_settings", lambda: settings)
    return settings


def prepare(word="first", *options) -> None:
    """Stages 0 to 3, whose outputs say `word`."""

    def work(context):
        for path in context.stage.outputs(context.paths, context.seed):
            write_text(path if path.suffix else path / "file", word)

    for number in range(4):
        assert stage_runner.run_stage(number, work, ["--seed", str(SEED), *options]) == 0


def evaluate(index: int, *options, count=COUNT) -> int:
    """One task of stage 4: its row says which beam width it was made with and what the model file holds."""

    def work(context):
        paths, settings = context.paths, context.settings
        row = {"task": context.shard[0], "beams": settings.NUM_BEAMS,
               "model": (paths.model(SEED, "baseline") / "file").read_text()}  # fmt: skip

        def finish(sections):
            for path in context.stage.outputs(paths, SEED):
                write_text(path, json.dumps(sections))

        join_shards(context, paths.units(SEED, "evaluate"), {"rows": [row]}, finish)

    return stage_runner.run_stage(4, work, ["--seed", str(SEED), "--shard", f"{index}/{count}", *options])


def merged(settings) -> list[dict]:
    return json.loads((Paths.of(settings).results(SEED) / "evaluation_results.json").read_text())["rows"]


def is_done(settings) -> bool:
    return problem_of(STAGES[4], SEED, Paths.of(settings), settings) is None


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_last_task_puts_all_parts_together_in_order(settings, order):
    prepare()
    for index in order:
        assert not is_done(settings)
        assert evaluate(index) == 0
    assert is_done(settings) and [row["task"] for row in merged(settings)] == [0, 1, 2]
    assert evaluate(1) == 0 and is_done(settings)


@pytest.mark.parametrize("change", ["setting", "input", "number of tasks"])
def test_shards_that_an_earlier_run_left_behind_do_not_count(settings, monkeypatch, change):
    prepare()
    assert evaluate(0) == evaluate(1) == 0  # and the third was killed
    count = COUNT
    if change == "setting":
        settings = use(monkeypatch, NUM_BEAMS=1)
    elif change == "input":
        prepare("second", "--force")
    else:
        count = 2
    for index in reversed(range(count)):
        assert not is_done(settings)
        assert evaluate(index, count=count) == 0
    assert is_done(settings) and [row["task"] for row in merged(settings)] == list(range(count))
    assert {row["beams"] for row in merged(settings)} == {settings.NUM_BEAMS}
    assert {row["model"] for row in merged(settings)} == {"second" if change == "input" else "first"}


def test_a_part_of_the_same_run_counts_after_a_task_was_killed(settings):
    prepare()
    assert evaluate(0) == evaluate(2) == 0
    assert not is_done(settings)
    assert evaluate(1) == 0
    assert is_done(settings) and len(merged(settings)) == COUNT

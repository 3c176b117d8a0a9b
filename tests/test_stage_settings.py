"""What a stage declares (Stage.settings) is what it reads: every stage of a real tiny experiment is traced.

A setting that is read and not declared leaves a finished stage "done" after it changes; one that is declared and not
read makes hours of work stale for nothing. The same experiment shows what the repair of a shared result leaves fresh.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline_world import ROOT, SEED, Run, run_script
from utils.core.settings import Settings
from utils.pipeline import runner
from utils.pipeline.stages import STAGES, upstream

pytestmark = pytest.mark.slow

# Read by stages, but without influence on results: where things lie, on what they are computed, how fast, and what
# SLURM is told. Whoever adds a name here says why.
WITHOUT_INFLUENCE = {
    "SCRATCH_DIR": "where work and results lie; outputs elsewhere are noticed by their paths",
    "EXPERIMENT": "names the directories of a variant",
    "PROJECT_DIR": "where results are kept",
    "HF_CACHE_DIR": "where downloads lie",
    "DEVICE": "which processor computes; rounding apart, the same numbers",
    "MICRO_BATCH_SIZE": "examples at a time; rounding and dropout's draws apart, the same gradients",
    "TRAINING_GRAPHS": "how kernels are launched",
    "GRADIENT_CHECKPOINTING": "activations kept or computed again",
    "REPORT_TO": "who is shown the curves of a training while it runs",
    "EVAL_BATCH_SIZE": "examples at a time",
    "ATTACK_BATCH_SIZE": "examples at a time",
    "NUM_WORKERS": "processes",
    "CHECKPOINTS_TO_KEEP": "how far back a training can resume",
    "DATASET_MAX_RETRIES": "how often a download is tried",
    "DATASET_RETRY_DELAY": "how long it waits between tries",
}


class Recording(Settings):
    """Settings that note the names which are read one by one (a stage's flag and metadata read whole lists)."""

    __slots__ = ("read",)
    read: set[str]

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        object.__setattr__(self, "read", set())

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        self.read.add(name)
        return value


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return Run(tmp_path_factory.mktemp("traced"))


@pytest.fixture(scope="module")
def traced(run) -> dict[int, set[str]]:
    """Names that each stage read, by its number."""
    with pytest.MonkeyPatch.context() as patch:
        made: list[Recording] = []
        load = runner.load_settings

        def load_recording() -> Settings:
            made.append(Recording(**load()._values))
            return made[-1]

        patch.setattr(runner, "load_settings", load_recording)
        patch.setenv("HF_HUB_OFFLINE", os.environ.get("HF_HUB_OFFLINE", "0"))  # stages set it for their process
        reads = {}
        for stage in STAGES:
            assert run_script(patch, stage.script, run.environment) == 0, stage.key
            reads[stage.number] = set().union(*(settings.read for settings in made))
            progress = stage.progress(runner.Paths.of(made[-1]), SEED)
            assert not stage.resumable or any(path.is_dir() for path in progress), "--force would remove nothing"
            made.clear()
        return reads


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.key)
def test_what_a_stage_reads_is_declared_by_it_or_by_a_stage_before_it(traced, stage):
    declared = {name for item in (*upstream(stage.number), stage) for name in item.settings}
    assert traced[stage.number] - declared - set(WITHOUT_INFLUENCE) == set()


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.key)
def test_what_a_stage_declares_it_reads(traced, stage):
    assert set(stage.settings) - traced[stage.number] == set()


def test_the_list_without_influence_names_settings_that_exist_and_that_no_stage_declares(traced):
    names = set(runner.load_settings().all())
    assert set(WITHOUT_INFLUENCE) <= names
    assert not set(WITHOUT_INFLUENCE) & {name for stage in STAGES for name in stage.settings}
    assert set(WITHOUT_INFLUENCE) <= set().union(*traced.values())


@pytest.mark.parametrize(
    "purged",
    [
        ["mono_s2s_results/setup_complete.json"],
        ["mono_s2s_results/data_statistics.json"],
        ["mono_s2s_results/setup_complete.json", "mono_s2s_results/removed_examples.jsonl"],
        ["mono_s2s_work/prepared_data"],
        ["mono_s2s_work/pretrained"],
        ["mono_s2s_work/pretrained", "mono_s2s_work/prepared_data", "mono_s2s_results/data_statistics.json"],
    ],
    ids=lambda paths: "+".join(Path(path).name for path in paths),
)
def test_a_shared_result_that_another_seed_repairs_leaves_finished_seeds_fresh(traced, run, monkeypatch, purged):
    for path in (run.scratch / name for name in purged):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for stage in STAGES[:2]:
        assert run_script(monkeypatch, stage.script, run.environment, seed=7) == 0
    words = str(ROOT / "run_all.sh"), str(SEED), "--local", "--dry-run"
    plan = run(*words).stdout
    assert [line.split()[1:] for line in plan.splitlines()[1:9]] == [["done"]] * 8, plan

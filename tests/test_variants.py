"""run_multi_seed.sh --variants: experiments times seeds as one graph, resumable, cancelled by cell, then a page."""

import json
import re
import shlex

import pytest

from tests.shell_world import World
from utils.core.errors import StageError
from utils.core.paths import Paths
from utils.slurm import cluster as queue
from utils.slurm import multi_seed_submission, sbatch
from utils.slurm import variants as several
from utils.slurm.cluster import JobState
from utils.slurm.options import MultiSeedOptions
from utils.slurm.run_record import AggregateRecord, JobRecord, variant_pages

pytestmark = pytest.mark.slow

# Stand in for the two scripts that read results: the stages of these tests write none.
AGGREGATE = "raise SystemExit(0)"
PAGE = """
import json, sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils.core.files import write_json
from utils.core.paths import Paths
from utils.core.settings import load_settings
write_json(Paths.of(load_settings()).variants / "page.json", sys.argv[1:])
"""
VARIANTS = {"slow": {"LEARNING_RATE": 1e-5}, "fast": {"LEARNING_RATE": 1e-3, "TRAIN_DATASETS": ["dialogsum", "arxiv"]}}


@pytest.fixture
def world(tmp_path) -> World:
    world = World(tmp_path)
    (world.checkout / "scripts" / "aggregate_multi_seed.py").write_text(AGGREGATE)
    (world.checkout / "scripts" / "compare_variants.py").write_text(PAGE)
    (tmp_path / "variants.json").write_text(json.dumps(VARIANTS))
    return world


def variants(world, *words, **environment):
    return world.run(
        "run_multi_seed.sh", "1", "2", "--variants", str(world.root / "variants.json"), *words, **environment
    )


def outputs(world) -> dict[str, str]:
    """What the last stage wrote in every cell."""
    found = world.scratch.glob("mono_s2s_results_*/seed_*/final_results.json")
    return {str(path.relative_to(world.scratch)): path.read_text() for path in found}


def runs(world, name, seed) -> dict[str, dict]:
    folder = world.scratch / f"mono_s2s_work_{name}" / "runs"
    found = [json.loads(path.read_text()) for path in folder.glob("*/run.json")]
    newest = max((run for run in found if run["seed"] == seed), key=lambda run: run["unix_timestamp"])
    return newest["jobs"]


def test_here_all_cells_run_with_their_own_settings_and_the_page_comes_last(world):
    result = variants(world, "--local")
    assert result.returncode == 0, result.stdout + result.stderr
    rates = {path.split("/")[0]: json.loads(text)["lr"] for path, text in outputs(world).items()}
    assert rates == {"mono_s2s_results_slow": 1e-5, "mono_s2s_results_fast": 1e-3} and len(outputs(world)) == 4
    page = json.loads((world.project / "mono_s2s_variants" / "page.json").read_text())
    assert page == ["--variants", "slow,fast", "1", "2"]
    assert not world.work.exists(), "the experiment without a name is none of them"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not JSON"),
        ('{"a": {}}', "at least two names"),
        ('{"a": {}, "b": {"BATCH": 1}}', "variant b: MONO_S2S_BATCH: no such setting"),
        ('{"a": {}, "b/c": {}}', "variant b/c: EXPERIMENT=b/c"),
        ('{"a": {}, "b": {"SCRATCH_DIR": "/x"}}', "b sets SCRATCH_DIR"),
        ('{"a": {}, "b": {"NUM_EPOCHS": 3}}', "variant b: NUM_EPOCHS=3"),
    ],
)
def test_a_file_that_is_wrong_is_one_line_and_touches_nothing(world, content, says):
    (world.root / "variants.json").write_text(content)
    before = world.snapshot()
    result = variants(world, "--local")
    assert result.returncode == 2 and says in result.stderr and len(result.stderr.splitlines()) == 1
    assert world.snapshot() == before


def test_a_page_is_cancelled_only_with_all_of_its_cells(tmp_path, monkeypatch):
    paths = Paths(tmp_path, tmp_path)
    pages = {"11": (("a", "b"), (1, 2)), "12": (("c", "d"), (1, 2)), "13": (("a", "b"), (1, 3)), "14": (("a",), (2,))}
    for job, (names, seeds) in pages.items():
        folder = paths.runs / f"{job}_variants"
        folder.mkdir(parents=True)
        AggregateRecord(folder, seeds, JobRecord(job, name="mono_s2s_variants"), variants=names, file="/f").saved()
    cancelled = []
    monkeypatch.setattr(queue, "queue", lambda ids, name: [JobState(ids[0], "", "PENDING", name="mono_s2s_variants")])
    monkeypatch.setattr(sbatch, "cancel", lambda ids, name: cancelled.extend(ids))
    others = multi_seed_submission.cancel_earlier(variant_pages(paths), [2, 1], ["a", "b", "x"])
    assert sorted(cancelled) == ["11", "14"] and sorted(other.job.job_id for other in others) == ["12", "13"]


@pytest.mark.parametrize("failing", ["a", "b"])
def test_a_submission_that_fails_names_its_variant_and_what_is_queued(tmp_path, monkeypatch, failing):
    monkeypatch.setenv("MONO_S2S_SCRATCH_DIR", str(tmp_path))
    monkeypatch.setenv("MONO_S2S_PROJECT_DIR", str(tmp_path / "p"))
    file = tmp_path / "variants.json"
    file.write_text('{"a": {}, "b": {"LEARNING_RATE": 1e-3}}')

    def submit(options, paths, settings, chain):
        if failing == settings.EXPERIMENT:
            raise StageError("sbatch refused the job. See ./check_training_status.sh 1")
        return "7"

    monkeypatch.setattr(multi_seed_submission, "check", lambda *_: None)
    monkeypatch.setattr(multi_seed_submission, "submit", submit)
    with pytest.raises(StageError) as raised:
        several.main(MultiSeedOptions((1, 2), "slurm", variants=str(file)))
    said = str(raised.value)
    assert f"variant {failing}: sbatch refused" in said
    assert f"See MONO_S2S_EXPERIMENT={failing} ./check_training_status.sh 1" in said
    assert ("variants before it are in the queue" in said) == (failing == "b")


@pytest.mark.slurm
def test_on_slurm_cells_are_killed_cancelled_and_added_again_and_end_as_if_never_stopped(cluster, world):
    world.environment |= cluster.environment
    world.behave(s2_train_baseline={"units": 4, "seconds": 0.5}, s3_train_monotonic={"units": 2})
    result = variants(world, MONO_S2S_MAX_PARALLEL_SEEDS="2")
    assert result.returncode == 0, result.stdout + result.stderr
    first, third = runs(world, "slow", 1), runs(world, "fast", 1)
    # Two side by side: the third cell trains after the end of the first one, and does not wait for its data.
    assert third["0_setup"]["dependency"] == ""
    assert f"afterany:{first['7_aggregate']['job_id']}" in third["2_train_baseline"]["dependency"].split(",")
    # One cell is killed while it trains, another is cancelled: the rest is left alone.
    cluster.until(lambda: cluster.state(first["2_train_baseline"]["job_id"]) == "RUNNING", 60, "a cell that trains")
    cluster("scancel", "--signal=KILL", "--full", first["2_train_baseline"]["job_id"])
    one = world.run("run_all.sh", "2", "--cancel", MONO_S2S_EXPERIMENT="fast")
    assert one.returncode == 0, one.stderr
    ended = runs(world, "slow", 2)["7_aggregate"]["job_id"]
    assert cluster.wait(ended, "COMPLETED"), "a cell beside them"
    cluster.until(lambda: not cluster("squeue", "-h", "-o", "%A").split(), 90, "an empty queue")
    assert 1 <= len(outputs(world)) < 4
    again = variants(world)
    assert again.returncode == 0, again.stdout + again.stderr
    cluster.until(lambda: not cluster("squeue", "-h", "-o", "%A").split(), 120, "an empty queue")
    assert {path: json.loads(text) for path, text in outputs(world).items()} == {
        f"mono_s2s_results_{name}/seed_{seed}/final_results.json": {
            "seed": seed, "lr": rate, "stage": "7_aggregate", "units": [0]
        }
        for name, rate in (("slow", 1e-5), ("fast", 1e-3))
        for seed in (1, 2)
    }  # fmt: skip
    trained = world.scratch / "mono_s2s_work_slow" / "seed_1" / "baseline_model" / "best" / "file"
    assert json.loads(trained.read_text())["units"] == [0, 1, 2, 3], "killed after some, and none is done twice"
    assert (world.project / "mono_s2s_variants" / "page.json").exists()


@pytest.mark.slurm
def test_the_same_data_are_prepared_by_one_variant_and_all_is_cancelled_at_once(cluster, world):
    world.environment |= cluster.environment
    world.behave(s0_setup={"units": 100, "seconds": 1})
    same = {"a": {"LEARNING_RATE": 1e-5}, "b": {"LEARNING_RATE": 1e-3}}
    (world.root / "variants.json").write_text(json.dumps(same))
    result = variants(world)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"afterany:{runs(world, 'a', 1)['1_prepare_data']['job_id']}" in runs(world, "b", 1)["0_setup"]["line"]
    assert len(cluster("squeue", "-h", "-o", "%A").split()) == 2 * (2 + 6 + 6 + 1) + 1
    (page,) = (world.work / "runs").glob("*_variants/variants.json")
    job = json.loads(page.read_text())["job_id"]
    shown = world.run("check_training_status.sh").stdout
    assert re.search(rf"page of variants a, b, of seeds 1, 2 +waiting +job {job}", shown), shown
    refused = world.run("clean_all.sh", "--force")
    assert refused.returncode == 2 and page.exists() and job in refused.stderr
    typed = shlex.split(refused.stderr.rpartition("Cancel it: ")[2])
    assert typed == ["./run_multi_seed.sh", "1", "2", "--variants", str(world.root / "variants.json"), "--cancel"]
    assert world.run(*typed).returncode == 0
    cluster.until(lambda: not cluster("squeue", "-h", "-o", "%A").split(), 30, "an empty queue")

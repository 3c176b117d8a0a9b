"""run_multi_seed.sh --variants: experiments times seeds as one graph, resumable, cancelled by cell, then a page."""

import json

import pytest

from tests.shell_world import World

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
        ("{", "cannot be read"),
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


@pytest.mark.slurm
def test_on_slurm_cells_are_killed_cancelled_and_added_again_and_end_as_if_never_stopped(cluster, world, tmp_path):
    world.environment |= cluster.environment
    plain = World(tmp_path / "undisturbed")
    (plain.root / "variants.json").write_text(json.dumps(VARIANTS))
    for script, text in (("aggregate_multi_seed", AGGREGATE), ("compare_variants", PAGE)):
        (plain.checkout / "scripts" / f"{script}.py").write_text(text)
    for one in (world, plain):
        one.behave(s2_train_baseline={"units": 4, "seconds": 1}, s3_train_monotonic={"units": 2})
    assert variants(plain, "--local").returncode == 0
    result = variants(world, MONO_S2S_MAX_PARALLEL_SEEDS="2")
    assert result.returncode == 0, result.stdout + result.stderr
    first, third = runs(world, "slow", 1), runs(world, "fast", 1)
    # Two side by side: the third cell waits for the end of the first one, and not for its data, which are others.
    assert third["0_setup"]["dependency"] == f"afterany:{first['7_aggregate']['job_id']}"
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
    assert outputs(world) == outputs(plain) and len(outputs(world)) == 4
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
    assert variants(world, "--cancel").returncode == 0
    cluster.until(lambda: not cluster("squeue", "-h", "-o", "%A").split(), 30, "an empty queue")

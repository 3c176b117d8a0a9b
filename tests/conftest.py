"""Fixtures that several test files share: one real SLURM and one whole experiment for the session."""

import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from tests.pipeline_world import Run
from tests.slurm_cluster import Cluster, lacking

ALL_SLOW = re.compile(r"^pytestmark = \[?pytest\.mark\.(slow|slurm)\b", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """--quick reads no file whose tests are all slow: each process would compile and import them to leave them out."""
    quick = config.option.markexpr == "not slurm and not slow" and collection_path.is_file()
    return True if quick and ALL_SLOW.search(collection_path.read_text(encoding="utf-8")) else None


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs the whole experiment is slow."""
    for item in items:
        if "done" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def settings_of_one_test_alone():
    """A stage that runs in this process leaves its settings, and "no hub", in the environment: the next test must not
    get them.

    Nor those that an earlier test read: the module reads the environment once.
    """
    sys.modules.pop("configs.experiment_config", None)

    def named(name: str) -> bool:
        return name.startswith("MONO_S2S_") or name == "HF_HUB_OFFLINE"

    before = {name: value for name, value in os.environ.items() if named(name)}
    yield
    for name in [name for name in os.environ if named(name) and name not in before]:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def running_cluster(tmp_path_factory):
    problem = lacking()
    if problem and os.environ.get("TEST_SLURM") == "required":
        pytest.fail(f"TEST_SLURM=required, but {problem}")
    if problem:
        pytest.skip(f"no real SLURM: {problem}")
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def cluster(running_cluster):
    """The cluster with an empty queue, before and after."""
    running_cluster.cancel_all()
    yield running_cluster
    running_cluster.cancel_all()


@pytest.fixture(scope="session")
def done(tmp_path_factory, worker_id) -> Run:
    """An experiment that has run; tests leave it as it is. Of several workers the first makes it for all."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared if worker_id == "master" else shared.parent
    record = shared / "done.pickle"
    with FileLock(shared / "done.lock"):
        if record.exists():
            return pickle.loads(record.read_bytes())
        run = Run(shared / "a run with spaces")
        result = run.all()
        assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-6000:]
        record.write_bytes(pickle.dumps(run))
        return run


@pytest.fixture
def copied(done: Run, tmp_path: Path) -> Path:
    """A copy of that experiment's results, to be tampered with."""
    return shutil.copytree(done.final, tmp_path / done.final.name)

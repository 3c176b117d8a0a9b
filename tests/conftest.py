"""Fixtures that several test files share: one real SLURM and one whole experiment for the session."""

import os

import pytest

from tests.pipeline_world import Run
from tests.slurm_cluster import Cluster, lacking


@pytest.fixture(autouse=True)
def settings_of_one_test_alone():
    """A stage that runs in this process names its settings in the environment: the next test must not get them."""
    before = {name: value for name, value in os.environ.items() if name.startswith("MONO_S2S_")}
    yield
    for name in [name for name in os.environ if name.startswith("MONO_S2S_") and name not in before]:
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
def done(tmp_path_factory) -> Run:
    """An experiment that has run; tests leave it as it is."""
    run = Run(tmp_path_factory.mktemp("a run with spaces"))
    result = run.all()
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-6000:]
    return run

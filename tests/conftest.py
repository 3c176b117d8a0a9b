"""Fixtures that several test files share: one real SLURM for the whole session."""

import os

import pytest

from tests.slurm_cluster import Cluster, lacking


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

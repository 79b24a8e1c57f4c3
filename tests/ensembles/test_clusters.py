"""Real Dask and Ray clusters of this machine give the members that this process gives."""

from __future__ import annotations

import os

import joblib
import pytest

from tests.ensembles.small import ensemble
from tests.small import python_path, same

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore"),  # theirs
]


@pytest.fixture
def folders(monkeypatch, tmp_path):
    """Let workers import the tests."""
    monkeypatch.setenv("PYTHONPATH", python_path())
    monkeypatch.chdir(tmp_path)


def test_a_dask_cluster_gives_the_same_members(folders):
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None
    )
    with cluster, distributed.Client(cluster), joblib.parallel_config(backend="dask"):
        found = ensemble(members=3, n_jobs=2)
    assert found.summary.backend == "DaskDistributed"
    assert found.summary.failed == ()
    assert all(map(same, found.trainers, ensemble(members=3).trainers))


def test_a_ray_cluster_gives_the_same_members(folders):
    ray = pytest.importorskip("ray")
    from ray.util.joblib import register_ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
    try:
        register_ray()
        with joblib.parallel_config(backend="ray"):
            found = ensemble(members=3, n_jobs=2)
    finally:
        ray.shutdown()
    assert found.summary.backend == "Ray"
    assert found.summary.failed == ()
    assert all(map(same, found.trainers, ensemble(members=3).trainers))
    assert "RAY_ADDRESS" not in os.environ

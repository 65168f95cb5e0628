"""What a run needs of a cluster, and what its processes there get to know."""

from __future__ import annotations

import os

import pytest

from orchestration.config.spec import RunSpec
from orchestration.connect.session import ENVIRONMENT, _check_room, start_ray
from orchestration.errors import ResourceError

HEAD = {"CPU": 0.0, "node:__internal_head__": 1.0}


def make_spec(**resources) -> RunSpec:
    return RunSpec.model_validate({"train": {"batch_size": 12}, "resources": resources})


def test_a_run_that_finds_no_place_is_refused_and_an_elastic_one_needs_its_least_number():
    nodes = [HEAD, {"CPU": 1.0}, {"CPU": 1.0}]
    with pytest.raises(
        ResourceError,
        match=r"needs 3 workers of 1 CPU .* only 2 find a place, .* with 2 CPU cores",
    ):
        _check_room(make_spec(workers=3), nodes)
    with pytest.raises(
        ResourceError, match="only 0 find a place, each whole on one of the 3 nodes"
    ):
        _check_room(make_spec(cpus_per_worker=2), nodes)
    _check_room(make_spec(workers=3, min_workers=2), nodes)


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*ENVIRONMENT, "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")  # so that the variable is put back afterwards
        monkeypatch.delenv(name)
    return monkeypatch


def test_processes_of_a_cluster_that_is_there_get_our_settings_of_ray(clean_environment, tmp_path):
    asked = {}

    def refuse(**arguments):
        asked.update(arguments)
        raise ConnectionError("not today")

    # imported here: Ray reads its settings of access once a process
    clean_environment.setattr("ray.init", refuse)
    clean_environment.setenv("RAY_TRAIN_METRICS_ENABLED", "1")
    spec = make_spec(address="auto")
    with pytest.raises(ResourceError, match="not today"), start_ray(spec, logs=tmp_path):
        pass
    sent = asked["runtime_env"]["env_vars"]
    assert set(sent) == set(ENVIRONMENT)
    assert sent["RAY_TRAIN_METRICS_ENABLED"] == "1", "what the user chose"
    assert sent["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == "1", "a cluster may lose machines"
    assert not [
        value
        for name, value in sent.items()
        if "TOKEN" in name or value == os.environ.get("RAY_AUTH_TOKEN")
    ]

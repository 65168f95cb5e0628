"""The cores that a run may use: a container's quota of CPU time counts like a smaller number of cores."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestration.planning import machine


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Control groups in which this process is in `/batch/job`, on a machine of eight cores."""
    (tmp_path / "own").write_text("3:cpu,cpuacct:/batch/job\n0::/batch/job\n")
    (tmp_path / "batch" / "job").mkdir(parents=True)
    (tmp_path / "cpu" / "batch" / "job").mkdir(parents=True)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    return tmp_path


def test_without_a_quota_all_cores_count(groups: Path):
    (groups / "batch" / "job" / "cpu.max").write_text("max 100000\n")
    assert machine.read_quota() is None
    assert machine.count_cpus() == 8


@pytest.mark.parametrize(
    ("quota", "expected"), [("250000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8)]
)
def test_the_least_quota_of_the_groups_around_counts(groups: Path, quota: str, expected: int):
    (groups / "batch" / "job" / "cpu.max").write_text("max 100000\n")
    (groups / "batch" / "cpu.max").write_text(f"{quota}\n")
    assert machine.count_cpus() == expected


def test_a_machine_without_control_groups_has_its_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "none")
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "none" / "own")
    assert machine.read_quota() is None
    assert machine.count_cpus() >= 1

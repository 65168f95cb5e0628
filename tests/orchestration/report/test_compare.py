"""Runs are compared by settings first, then by metrics."""

import json
import time
from pathlib import Path

import pytest
import synthetic

from boxseg.errors import ConfigError
from orchestration.cli.app import run
from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import RunSpec
from orchestration.record.find_runs import list_runs
from orchestration.record.run_folder import RunFolder, RunStatus
from orchestration.report.compare import compare_runs


def make_run(
    storage: Path, run_id: str, *, ap: float, seed: int = 0, status="finished", data="d", **qam
) -> RunFolder:
    spec = RunSpec.model_validate(
        {"name": "t", "storage": storage, "train": {"seed": seed}, "qam": qam}
    )
    tags = {"seed": str(seed), "data_fingerprint": data, "git_commit": "a" * 40}
    metrics = {"val/mask_ap": ap}
    about = RunStatus(run_id, "t", status=status, best=metrics, metrics=metrics, tags=tags)
    return RunFolder(storage / "t" / run_id).create(about, dump_resolved(spec))


@pytest.fixture
def runs(tmp_path) -> dict[str, RunFolder]:
    """One of a setting, and two seeds of another."""
    made = {"a0": make_run(tmp_path, "a0", ap=0.30, k_top=10)}
    for seed in range(2):
        name = f"b{seed}"
        made[name] = make_run(tmp_path, name, ap=0.60 + seed / 100, seed=seed, k_top=5)
    return made


def test_only_differing_settings_are_shown(runs):
    found = compare_runs([runs["a0"], runs["b1"]])
    assert found.settings == {"train.seed": [0, 1], "qam.k_top": [10, 5]}
    assert found.origin == {}
    same = compare_runs([runs["a0"], runs["a0"]])
    assert same.settings == {}


def test_other_code_and_other_data_are_shown(runs, tmp_path):
    other = make_run(tmp_path, "c", ap=0.3, data="e", k_top=10)
    assert compare_runs([runs["a0"], other]).origin == {"data_fingerprint": ["d", "e"]}


def test_a_metric_that_one_run_lacks_is_left_open(runs):
    runs["b0"].update(best={"val/box_ap": 0.5})
    found = compare_runs([runs["a0"], runs["b0"]])
    assert found.metrics == {"val/box_ap": [None, 0.5], "val/mask_ap": [0.3, None]}


def test_a_sweep_is_not_compared_itself(tmp_path):
    folder = synthetic.write_sweep(tmp_path, settings=1)
    with pytest.raises(ConfigError, match="best:s"):
        compare_runs([RunFolder(folder), RunFolder(folder)])


def test_the_command_prints_settings_before_metrics(runs, tmp_path, capsys):
    assert run(["runs", "compare", "a0", "b0", "--storage", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.index("qam.k_top") < shown.index("val/mask_ap")
    assert "0.6 (+0.3)" in shown
    assert run(["runs", "compare", "a0", "b0", "--storage", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"] == {"qam.k_top": [10, 5]}
    assert found["metrics"] == {"val/mask_ap": [0.3, 0.6]}
    assert run(["runs", "compare", "a0", "a0", "--storage", str(tmp_path)]) == 0
    assert "all settings are the same" in capsys.readouterr().out
    assert run(["runs", "compare", "a0", "--storage", str(tmp_path)]) == 2


def test_a_thousand_runs_are_listed_in_no_time(tmp_path, capsys):
    synthetic.write_sweep(tmp_path, settings=1000)
    began = time.process_time()
    assert run(["runs", "ls", "--storage", str(tmp_path), "--json"]) == 0
    assert time.process_time() - began < 2  # CPU seconds, which other load does not change
    assert len(json.loads(capsys.readouterr().out)) == len(list_runs(tmp_path)) == 1001

"""Runs are compared by settings first, then by metrics with the spread over their seeds."""

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
from orchestration.report.compare import compare_runs, find_seeds


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
    """Three seeds of one setting, two of another."""
    made = {
        f"a{seed}": make_run(tmp_path, f"a{seed}", ap=0.30 + seed / 100, seed=seed, k_top=10)
        for seed in range(3)
    }
    made |= {
        f"b{seed}": make_run(tmp_path, f"b{seed}", ap=0.60 + seed / 100, seed=seed, k_top=5)
        for seed in range(2)
    }
    return made


def test_only_what_differs_is_told(runs):
    found = compare_runs([runs["a0"], runs["b1"]])
    assert found.settings == {"train.seed": [0, 1], "qam.k_top": [10, 5]}
    assert found.origin == {}
    same = compare_runs([runs["a0"], runs["a0"]])
    assert same.settings == {}


def test_other_code_and_other_data_are_told(runs, tmp_path):
    other = make_run(tmp_path, "c", ap=0.3, data="e", k_top=10)
    assert compare_runs([runs["a0"], other]).origin == {"data_fingerprint": ["d", "e"]}


def test_all_seeds_of_a_setting_make_its_spread(runs):
    found = compare_runs([runs["a1"], runs["b0"]])
    first, second = found.metrics["val/mask_ap"]
    assert (first.value, sorted(first.seeds)) == (0.31, [0.30, 0.31, 0.32])
    assert (first.mean, first.spread) == (pytest.approx(0.31), pytest.approx(0.01))
    assert second.seeds == [0.60, 0.61]
    assert (first.against_first, second.against_first) == ("", "differs")


def test_runs_that_did_not_finish_or_had_other_data_are_no_seeds(runs, tmp_path):
    make_run(tmp_path, "a3", ap=0.9, seed=3, k_top=10, status="failed")
    make_run(tmp_path, "a4", ap=0.9, seed=4, k_top=10, data="e")
    make_run(tmp_path, "a5", ap=0.9, seed=0, k_top=10)
    assert sorted(each.id for each in find_seeds(runs["a0"])) == ["a0", "a1", "a2"]


def test_two_seeds_of_one_setting_are_not_judged(runs):
    found = compare_runs([runs["a0"], runs["a1"]])
    assert sorted(found.metrics["val/mask_ap"][0].seeds) == sorted(
        found.metrics["val/mask_ap"][1].seeds
    )
    assert found.metrics["val/mask_ap"][1].against_first == ""


def test_a_metric_that_one_run_lacks_is_left_open(runs):
    runs["b0"].update(best={"val/box_ap": 0.5})
    found = compare_runs([runs["a0"], runs["b0"]])
    assert [each.value for each in found.metrics["val/mask_ap"]] == [0.3, None]
    assert found.metrics["val/box_ap"][1].against_first == ""


def test_a_sweep_is_not_compared_itself(tmp_path):
    folder = synthetic.write_sweep(tmp_path, settings=1)
    with pytest.raises(ConfigError, match="best:s"):
        compare_runs([RunFolder(folder), RunFolder(folder)])


def test_the_command_prints_settings_before_metrics(runs, tmp_path, capsys):
    assert run(["runs", "compare", "a0", "b0", "--storage", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.index("qam.k_top") < shown.index("val/mask_ap")
    assert "0.6 (0.605 ± 0.0071 of 2 seeds) differs" in shown
    assert run(["runs", "compare", "a0", "b0", "--storage", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"] == {"qam.k_top": [10, 5]}
    assert found["metrics"]["val/mask_ap"][1]["against_first"] == "differs"
    assert run(["runs", "compare", "a0", "a0", "--storage", str(tmp_path)]) == 0
    assert "all settings are the same" in capsys.readouterr().out
    assert run(["runs", "compare", "a0", "--storage", str(tmp_path)]) == 2


def test_a_thousand_runs_are_listed_in_no_time(tmp_path, capsys):
    synthetic.write_sweep(tmp_path, settings=1000)
    began = time.process_time()
    assert run(["runs", "ls", "--storage", str(tmp_path), "--json"]) == 0
    assert time.process_time() - began < 2  # CPU seconds, which other load does not change
    assert len(json.loads(capsys.readouterr().out)) == len(list_runs(tmp_path)) == 1001

"""Processes are killed in the middle; what comes out at the end equals an undisturbed run, to the last digit."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlflow
import pytest
from drivers import drive, make_values, story, trial_step
from fake_training import make_training

from orchestration.cli.app import run
from orchestration.config.spec import RunSpec, SweepSpec
from orchestration.connect.session import start_ray
from orchestration.errors import ExitCode
from orchestration.execute.sweep import run_sweep
from orchestration.record.find_runs import list_runs
from orchestration.record.journal import newest_sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.chaos]


@pytest.fixture(scope="module", autouse=True)
def ray_session(tmp_path_factory):
    """One embedded Ray for all that runs in this process."""
    with start_ray(RunSpec(), logs=tmp_path_factory.mktemp("logs")):
        import ray  # not before its environment is set

        yield ray.get_runtime_context().gcs_address


def kill_driver(values: dict, *, when: Callable[[], bool]) -> None:
    """Drive a sweep from another process until something is the case, and kill that process."""
    driver = drive(values)
    while not when():
        assert driver.poll() is None, "the driver ended by itself"
        time.sleep(0.02)
    driver.kill()
    driver.wait()


EXPERIMENT = """
name: causes
data: {toy: {train_images: 4, val_images: 2, size: 64}}
train: {steps: 20, batch_size: 4, report_every: 5}
qam: {k_min: 1, iou_thr: 0.5}
sweep: {search: grid, trial_scheduler: none, concurrency: 1, space: {qam.k_top: {choice: [10, 13, 14, 15, 16]}}}
"""


def test_every_cause_is_reported_and_only_the_right_trials_are_tried_again(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(
        "orchestration.execute.sweep.run_sweep", partial(run_sweep, train_fn=make_training())
    )
    (tmp_path / "causes.yaml").write_text(EXPERIMENT)
    assert run(["sweep", "causes.yaml"]) == ExitCode.SOME_TRIALS_FAILED
    table = capsys.readouterr().out
    for cause in ("non_finite: step 2", "out_of_memory: MemoryError", "configuration: step 2"):
        assert f"failed: {cause}" in table
    trials = {
        each.values["qam.k_top"]: each for each in list_runs(tmp_path / "runs") if each.values
    }
    starts = {
        k_top: len((Path(each.folder) / "starts").read_text().splitlines())
        for k_top, each in trials.items()
    }
    assert starts == {10: 1, 13: 1, 14: 2, 15: 3, 16: 1}
    assert {k_top for k_top, each in trials.items() if each.status == "finished"} == {10, 14}

    assert run(["sweep", "causes.yaml", "--retry-failed"]) == ExitCode.SOME_TRIALS_FAILED
    told = capsys.readouterr().err
    assert "trial 01 was not run again, as it would fail again: non_finite" in told
    again = {
        k_top: len((Path(each.folder) / "starts").read_text().splitlines())
        for k_top, each in trials.items()
    }
    assert again == {10: 1, 13: 1, 14: 2, 15: 4, 16: 1}, (
        "what ran out of memory is tried once more"
    )


def test_a_sweep_that_gives_up_after_a_failure_can_go_on(tmp_path):
    space = {"qam.k_top": {"choice": [13, 10, 11]}}
    sweep = {"search": "grid", "trial_scheduler": "none", "concurrency": 1, "space": space}
    spec = SweepSpec.model_validate(
        make_values(tmp_path, sweep=sweep, train={"steps": 200, "batch_size": 2})
    )
    first = run_sweep(spec, max_failures=1, train_fn=make_training(step_s=0.05))
    assert first.status == "interrupted"
    assert [row.status for row in first.table.rows if row.status == "failed"] == ["failed"]
    second = run_sweep(spec, start="resume", train_fn=make_training())
    assert (second.folder, second.status) == (first.folder, "finished")
    assert [row.status for row in sorted(second.table.rows, key=lambda row: row.id)] == [
        "failed",
        *["finished"] * 2,
    ]


def test_a_sweep_whose_driver_was_killed_ends_as_if_undisturbed(tmp_path, ray_session):
    spec = SweepSpec.model_validate(make_values(tmp_path / "calm"))
    undisturbed = run_sweep(spec, train_fn=make_training())
    assert {row.status for row in undisturbed.table.rows} == {"finished", "stopped"}

    values = make_values(
        tmp_path / "rough", resources={"address": ray_session, "runner": "inline"}
    )
    kill_driver(values, when=lambda: trial_step(tmp_path / "rough", 2) >= 10)
    folder = newest_sweep(tmp_path / "rough", "chaos")
    assert folder.status().status == "interrupted"
    for path in (folder.logs).glob("tune-*/experiment_state-*.json"):
        path.write_text(path.read_text()[:100])
    for path in folder.logs.glob("tune-*/0*"):
        shutil.rmtree(path)

    spec = SweepSpec.model_validate(make_values(tmp_path / "rough"))
    resumed = run_sweep(spec, start="resume", train_fn=make_training())
    assert (resumed.folder, resumed.status) == (folder.path, "finished")
    assert story(resumed.folder) == story(undisturbed.folder)
    assert len(resumed.table.rows) == 8
    ends = [event["trial"] for event in folder.journal() if event["event"] == "trial_end"]
    assert len(set(ends)) == len(ends) == 8, "no trial is run twice"
    starts = [event["trial"][-2:] for event in folder.journal() if event["event"] == "trial_start"]
    assert starts == ["00", "01", "02", "02", "03", "04", "05", "06", "07"]

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/rough/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("chaos").experiment_id])
    assert len(runs) == 9, "one child for each trial, however often it was started"
    assert {run.info.status for run in runs} == {"FINISHED"}

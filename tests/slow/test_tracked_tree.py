"""What MLflow's own client shows of a sweep in which everything happens that can happen to a trial."""

import mlflow
import pytest
from drivers import make_values
from fake_training import make_training

from orchestration.config.spec import RunSpec, SweepSpec
from orchestration.connect.session import start_ray
from orchestration.execute.sweep import run_sweep
from orchestration.tracking.store import tracking_uri

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEPS = 40


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, mlflow.entities.Run]:
    """The sweep's own run as `sweep`, its trials by what happened to them."""
    storage = tmp_path_factory.mktemp("storage")
    space = {"qam.iou_thr": {"choice": [0.8, 0.1]}, "qam.k_top": {"choice": [10, 13, 14]}}
    sweep = {"search": "grid", "reduction": 2, "concurrency": 2, "space": space}
    train = {"steps": STEPS, "batch_size": 4, "report_every": 1}
    spec = SweepSpec.model_validate(make_values(storage, sweep=sweep, train=train))
    with start_ray(RunSpec(), logs=storage / "logs"):
        first = run_sweep(spec, max_failures=1, train_fn=make_training(step_s=0.5))
        assert first.status == "interrupted"
        run_sweep(spec, start="resume", train_fn=make_training(step_s=0.01))
    client = mlflow.MlflowClient(tracking_uri(storage))
    found = client.search_runs([client.get_experiment_by_name("chaos").experiment_id])
    what = {
        ("0.8", "10"): "resumed",
        ("0.8", "13"): "failed",
        ("0.8", "14"): "retried",
        ("0.1", "10"): "pruned",
    }
    named = {
        what.get((tag(each, "varied.qam.iou_thr"), tag(each, "varied.qam.k_top")), ""): each
        for each in found
    }
    named["sweep"] = next(each for each in found if tag(each, "boxseg.kind") == "sweep")
    for name in ("resumed", "retried", "pruned"):
        points = client.get_metric_history(named[name].info.run_id, "train/loss")
        named[name].data.metrics["steps"] = sorted(point.step for point in points)
    named["all"] = found
    return named


def tag(run: mlflow.entities.Run, name: str) -> str | None:
    return run.data.tags.get(name)


def test_there_is_one_tree_in_which_nothing_runs(runs):
    parents = {tag(each, "mlflow.parentRunId") for each in runs["all"]}
    assert parents == {None, runs["sweep"].info.run_id}
    assert len(runs["all"]) == 7
    ends = {
        name: (runs[name].info.status, tag(runs[name], "status"))
        for name in ("sweep", "resumed", "retried")
    }
    assert set(ends.values()) == {("FINISHED", "finished")}
    assert (runs["pruned"].info.status, tag(runs["pruned"], "status")) == ("FINISHED", "stopped")
    assert tag(runs["pruned"], "stopped_by") == "asha"
    assert (runs["failed"].info.status, tag(runs["failed"], "failure_class")) == (
        "FAILED",
        "non_finite",
    )


def test_all_trials_share_one_axis_of_steps_after_any_interruption(runs):
    whole = list(range(1, STEPS + 1))
    assert runs["resumed"].data.metrics["steps"] == whole
    assert sorted(set(runs["retried"].data.metrics["steps"])) == whole
    pruned = runs["pruned"].data.metrics["steps"]
    assert pruned == whole[: len(pruned)]
    assert len(pruned) < STEPS


def test_the_sweeps_page_has_the_table(runs):
    lines = tag(runs["sweep"], "mlflow.note.content").splitlines()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")
    ]
    assert rows[0] == ["trial", "qam.iou_thr", "qam.k_top", "val/mask_ap", "step", "status"]
    states = {(row[1], row[2]): row[-1] for row in rows[2:]}
    assert len(states) == 6
    assert states["0.8", "10"] == "finished"
    assert states["0.1", "10"] == "stopped"
    assert states["0.8", "13"].startswith("failed: non_finite: step 2")
    assert states["0.8", "14"].startswith("finished (started again 1x, last for out_of_memory")

"""Runs and sweeps on a real Ray: early stopping, failures, lost workers, two workers, a signal."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import mlflow
import pytest
from fake_training import make_training

from boxseg.engine.checkpoint import folder_of
from boxseg.errors import NonFiniteLossError
from orchestration.config.spec import RunSpec, SweepSpec
from orchestration.connect.session import start_ray
from orchestration.errors import ResourceError
from orchestration.execute.run import train_run
from orchestration.execute.sweep import run_sweep
from orchestration.record.find_runs import list_runs
from orchestration.record.run_folder import RunFolder

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def make_values(storage: Path, **changes) -> dict:
    values = {
        "name": "toy",
        "storage": storage,
        "data": {"toy": {"train_images": 4, "val_images": 2, "size": 64}},
        "train": {"steps": 40, "batch_size": 4, "report_every": 5},
    }
    return values | changes


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module", autouse=True)
def ray_session(storage):
    """One embedded Ray for all tests here, with what Ray Train needs."""
    spec = RunSpec.model_validate({"resources": {"runner": "ray_train"}})
    with start_ray(spec, logs=storage / "logs") as session:
        yield session


def test_the_embedded_ray_needs_a_token_that_only_we_can_read():
    assert os.environ["RAY_AUTH_MODE"] == "token"
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o777 == 0o700


def test_more_than_ray_has_is_refused_at_once(storage):
    spec = RunSpec.model_validate(
        make_values(storage, resources={"workers": 64}, train={"batch_size": 64})
    )
    with pytest.raises(ResourceError, match="needs 64 workers of 1 CPU cores"):
        train_run(spec, train_fn=make_training())


def test_an_inline_sweep_stops_weak_trials_and_survives_a_failing_one(storage, capsys):
    space = {"qam.iou_thr": {"choice": [0.8, 0.7, 0.1]}, "qam.k_top": {"choice": [10, 13]}}
    sweep = {"search": "grid", "reduction": 2, "concurrency": 1, "space": space}
    result = run_sweep(
        SweepSpec.model_validate(make_values(storage, sweep=sweep)),
        train_fn=make_training(step_s=0.005),
    )
    found = {
        (row.values["qam.iou_thr"], row.values["qam.k_top"]): row for row in result.table.rows
    }
    assert found[0.8, 10].status == "finished"
    assert found[0.1, 10].status == "stopped"
    assert found[0.1, 10].step < 40
    assert {found[thr, 13].status for thr in (0.8, 0.7, 0.1)} == {"failed"}
    assert found[0.8, 13].failure.kind == "NonFiniteLossError"
    assert (result.status, result.best.values["qam.iou_thr"], result.best.value) == (
        "finished",
        0.8,
        0.8,
    )
    assert (result.best_checkpoint / "about.json").exists()
    ends = [event for event in RunFolder(result.folder).journal() if event["event"] == "trial_end"]
    assert len(ends) == 6
    assert all(RunFolder(row.folder).stored().mlflow_run_id for row in result.table.rows)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert all(line.startswith("trial ") for line in printed.err.splitlines()), printed.err


def test_a_trial_whose_best_evaluation_came_early_is_neither_stopped_nor_behind(storage):
    even = {step: {"val/mask_ap": 0.5} for step in (10, 20, 30, 40)}
    early = {step: {"val/mask_ap": 0.7 if step == 10 else 0.1} for step in even}
    training = make_training(script={1: even, 5: early})
    sweep = {"search": "grid", "reduction": 2, "concurrency": 1}
    sweep["space"] = {"qam.k_top": {"choice": [1, 5]}}
    spec = SweepSpec.model_validate(make_values(storage, name="early", sweep=sweep))
    result = run_sweep(spec, train_fn=training)
    assert [(row.status, row.value) for row in by_number(result)] == [
        ("finished", 0.5),
        ("finished", 0.7),
    ]
    assert (result.best.values, result.best.best_step) == ({"qam.k_top": 5}, 10)
    assert '"step": 10' in (result.best_checkpoint / "about.json").read_text()


def test_a_trial_that_lost_its_best_checkpoint_fails_and_can_be_resumed_with_what_is_left(storage):
    scores = {1: (0.5, 0.5, 0.5, 0.5), 5: (0.7, 0.1, 0.2, 0.3)}
    script = {
        k_top: {
            step: {"val/mask_ap": score} for step, score in zip((10, 20, 30, 40), of, strict=True)
        }
        for k_top, of in scores.items()
    }
    sweep = {
        "search": "grid",
        "trial_scheduler": "none",
        "space": {"qam.k_top": {"choice": [1, 5]}},
    }
    spec = SweepSpec.model_validate(make_values(storage, name="lossy", sweep=sweep))
    training = make_training(script=script)
    whole = run_sweep(spec, train_fn=training)
    assert whole.best.value == 0.7
    kept = folder_of(Path(whole.best.folder) / "checkpoints", 10)
    (kept / "state.pt").write_bytes(b"other")
    ends = []
    for _ in range(2):
        ends.append(run_sweep(spec, start="retry_failed", train_fn=training))
    told = [
        [(row.status, row.value, row.best_step) for row in by_number(result)] for result in ends
    ]
    assert told == [
        [("finished", 0.5, 10), ("failed", None, None)],
        [("finished", 0.5, 10), ("finished", 0.3, 40)],
    ]
    assert [result.best.values for result in ends] == [{"qam.k_top": 1}] * 2
    assert starting_steps(Path(whole.best.folder)) == ["0", "40"], "nothing is trained again"
    client = mlflow.MlflowClient(f"sqlite:///{storage}/mlflow.db")
    tracked = client.get_run(RunFolder(whole.best.folder).read_tracking()["run_id"])
    assert (tracked.info.status, tracked.data.tags["best"]) == ("FINISHED", "0.300000")


def test_for_two_metrics_the_front_is_named_and_the_end_is_notified_once(storage):
    # mask AP is to be high and box AP low; 5 has less of the one and of the other, 10 loses both ways
    script = {
        number: {step: {"val/mask_ap": mask, "val/box_ap": box} for step in (10, 20, 30, 40)}
        for number, mask, box in ((1, 0.6, 0.5), (5, 0.4, 0.2), (10, 0.3, 0.3))
    }
    sweep = {"search": "tpe", "trials": 3, "trial_scheduler": "none", "own_first": False}
    sweep |= {"space": {"qam.k_top": {"choice": [1, 5, 10]}}, "against": {"val/box_ap": "min"}}
    told = storage / "told"
    notify = {"command": ["sh", "-c", f'echo "$0" >> {told}']}
    values = make_values(storage, name="two", sweep=sweep, notify=notify)
    result = run_sweep(SweepSpec.model_validate(values), train_fn=make_training(script=script))
    assert result.best.values == {"qam.k_top": 1}
    assert [rows[0].values["qam.k_top"] for rows in result.table.front()] == [1, 5]
    assert RunFolder(result.folder).stored().front == [rows[0].id for rows in result.table.front()]
    (line,) = told.read_text().splitlines()
    assert line.startswith(
        f"sweep two {result.id} finished: best val/mask_ap 0.6000 with k_top=1; "
        "3 finished of 3 trials; "
    )
    client = mlflow.MlflowClient(f"sqlite:///{storage}/mlflow.db")
    tags = {
        row.values["qam.k_top"]: client.get_run(
            RunFolder(row.folder).read_tracking()["run_id"]
        ).data.tags.get("front")
        for row in result.table.rows
    }
    assert tags == {1: "yes", 5: "yes", 10: None}


def test_a_search_over_a_small_space_runs_each_setting_once(storage):
    sweep = {"search": "tpe", "trials": 12, "trial_scheduler": "none"}
    sweep["space"] = {"qam.k_top": {"randint": [1, 4]}}
    spec = SweepSpec.model_validate(make_values(storage, name="small", sweep=sweep))
    result = run_sweep(spec, train_fn=make_training())
    assert sorted(row.values["qam.k_top"] for row in result.table.rows) == [1, 2, 3]


@pytest.mark.parametrize("scheduler", ["hyperband", "median"])
def test_other_schedulers_stop_weak_trials_too(storage, scheduler):
    space = {"qam.iou_thr": {"choice": [0.8, 0.75, 0.7, 0.1]}}
    sweep = {
        "search": "grid",
        "trial_scheduler": scheduler,
        "reduction": 2,
        "concurrency": 1,
        "space": space,
    }
    spec = SweepSpec.model_validate(make_values(storage, name=scheduler, sweep=sweep))
    result = run_sweep(spec, train_fn=make_training(step_s=0.005))
    found = {row.values["qam.iou_thr"]: row for row in result.table.rows}
    assert (found[0.8].status, found[0.1].status, found[0.1].step) == ("finished", "stopped", 10)
    [end] = [
        event
        for event in RunFolder(result.folder).journal()
        if event.get("trial") == found[0.1].id
    ][-1:]
    assert (end["event"], end["cause"]) == ("trial_end", scheduler)


def outcomes(result) -> list[tuple]:
    """What was drawn and what came of it, by number."""
    rows = sorted(result.table.rows, key=lambda row: row.number)
    return [(row.number, row.values, row.seed, row.status, row.value) for row in rows]


def test_a_sweep_that_is_extended_equals_one_that_was_planned_so_long(storage):
    space = {"qam.iou_thr": {"uniform": [0.1, 0.8]}}
    sweep = {"search": "random", "trial_scheduler": "none", "seeds": [0, 1], "space": space}

    def run(name: str, trials: int, **options):
        values = make_values(storage, name=name, sweep={**sweep, "trials": trials})
        spec = SweepSpec.model_validate(values)
        return run_sweep(spec, train_fn=make_training(), **options)

    planned = run("planned", 5)
    run("extended", 2)
    by_option = run("extended", 2, start="more", more=2)
    assert [row.number for row in by_option.table.rows] == list(range(8))
    by_file = run("extended", 5, start="resume")
    assert by_file.folder == by_option.folder
    assert outcomes(by_file) == outcomes(planned)
    assert (by_file.best.values, by_file.best.seed) == (planned.best.values, planned.best.seed)
    assert by_file.best_checkpoint.exists()
    # the file of before goes on with what the sweep has been extended to
    assert len(run("extended", 2, start="more", more=1).table.rows) == 12
    runs = mlflow.MlflowClient(f"sqlite:///{storage}/mlflow.db").search_runs(
        [mlflow.MlflowClient().get_experiment_by_name("extended").experiment_id]
    )
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * 13


def test_a_grid_that_gets_seeds_and_values_equals_one_that_was_planned_so_large(storage):
    def run(name: str, thresholds: list[float], seeds: list[int], **options):
        space = {"qam.iou_thr": {"choice": thresholds}}
        sweep = {"search": "grid", "trial_scheduler": "none", "seeds": seeds, "space": space}
        values = make_values(storage, name=name, sweep=sweep)
        spec = SweepSpec.model_validate(values)
        return run_sweep(spec, train_fn=make_training(), **options)

    def found(result) -> list[tuple]:
        return sorted(tuple(map(str, outcome[1:])) for outcome in outcomes(result))

    planned = run("planned-grid", [0.3, 0.5, 0.8], [0, 1])
    first = run("extended-grid", [0.5, 0.3], [0])
    run("extended-grid", [0.1], [0], start="new")
    extended = run("extended-grid", [0.3, 0.5, 0.8], [0, 1], start="resume", earlier=first.id)
    assert extended.folder == first.folder
    assert outcomes(extended)[:2] == outcomes(first), "what was run keeps its number"
    assert found(extended) == found(planned)
    # the fake training's score is the threshold
    assert extended.best.values == planned.best.values == {"qam.iou_thr": 0.8}


def test_a_sweep_starts_from_the_best_of_another_and_resumes_without_it(storage):
    space = {"qam.iou_thr": {"choice": [0.3, 0.8]}}
    sweep = {"search": "grid", "trial_scheduler": "none", "space": space}
    values = make_values(storage, name="first", sweep=sweep)
    first = run_sweep(SweepSpec.model_validate(values), train_fn=make_training())
    sweep = {"search": "tpe", "trial_scheduler": "none", "trials": 2, "start_from": [first.id]}
    sweep["space"] = {"qam.iou_thr": {"uniform": [0.1, 0.9]}}
    # of another length, so that only the best third of two trials, one setting, is tried
    values = make_values(storage, name="second", sweep=sweep)
    values["train"] = values["train"] | {"steps": 30}
    spec = SweepSpec.model_validate(values)
    second = run_sweep(spec, train_fn=make_training())
    assert [row.values["qam.iou_thr"] for row in by_number(second)][:1] == [0.8]
    shutil.rmtree(first.folder)
    third = run_sweep(spec, start="more", more=1, train_fn=make_training())
    assert [row.values for row in by_number(third)][:2] == [
        row.values for row in by_number(second)
    ]
    assert len(third.table.rows) == 3


def test_a_conditional_space_has_one_trial_for_all_that_does_not_apply(storage):
    space = {"method": {"choice": ["boxinst", "qam"]}}
    space["qam.iou_thr"] = {"choice": [0.3, 0.8], "when": {"method": "qam"}}
    sweep = {"search": "grid", "trial_scheduler": "none", "space": space}
    spec = SweepSpec.model_validate(make_values(storage, name="conditional", sweep=sweep))
    result = run_sweep(spec, train_fn=make_training())
    # the fake training's score is the threshold, that of the file for boxinst
    assert [(row.values, row.value) for row in by_number(result)] == [
        ({"method": "boxinst"}, spec.qam.iou_thr),
        ({"method": "qam", "qam.iou_thr": 0.3}, 0.3),
        ({"method": "qam", "qam.iou_thr": 0.8}, 0.8),
    ]
    assert result.best.values == {"method": "qam", "qam.iou_thr": 0.8}


def test_a_sweep_without_gain_or_without_time_begins_no_more_settings(storage):
    # Settings in the order of the grid: the second is the best, and the two after it gain nothing.
    space = {"qam.iou_thr": {"choice": [0.5, 0.8, 0.6, 0.7, 0.75]}}
    sweep = {"search": "grid", "trial_scheduler": "none", "concurrency": 1, "space": space}

    def run(**settings):
        values = make_values(storage, name="ends", sweep=sweep | settings)
        start = "resume" if (storage / "ends").exists() else None
        spec = SweepSpec.model_validate(values)
        return run_sweep(spec, start=start, train_fn=make_training())

    result = run(patience=2)
    assert (result.status, result.stopped_by) == ("finished", "sweep.patience 2")
    assert [row.values["qam.iou_thr"] for row in result.table.rows] == [0.5, 0.8, 0.6, 0.7]
    assert result.best.values == {"qam.iou_thr": 0.8}
    again = run(patience=2, time_budget_h=1e-9)
    assert again.stopped_by == "sweep.time_budget_h 1e-09"
    assert len(again.table.rows) == 4, "the time was over before the last one"
    last = run()
    assert (len(last.table.rows), last.stopped_by) == (5, "")


def test_a_signal_ends_a_sweep_with_no_run_left_running(storage):
    space = {"qam.iou_thr": {"uniform": [0.1, 0.8]}}
    values = make_values(
        storage, name="signal", train={"steps": 4000}, sweep={"trials": 4, "space": space}
    )

    def stop_when_running():
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            if any(
                each.step and each.kind == "run"
                for each in list_runs(storage)
                if each.name == "signal"
            ):
                break
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_running, daemon=True).start()
    spec = SweepSpec.model_validate(values)
    result = run_sweep(spec, train_fn=make_training(step_s=0.01))
    assert result.status == "interrupted"
    statuses = [each for each in list_runs(storage) if each.name == "signal"]
    assert {each.status for each in statuses} == {"interrupted"}
    trials = [each for each in statuses if each.kind == "run"]
    begun = [each for each in trials if each.step]  # another may still have been starting
    assert begun
    for each in begun:
        assert (Path(each.folder) / "checkpoints" / "last" / "about.json").exists()
    resumed = run_sweep(spec, start="resume", train_fn=make_training())
    assert (resumed.status, resumed.folder, len(resumed.table.rows)) == (
        "finished",
        result.folder,
        4,
    )
    assert 0 < int(starting_steps(Path(trials[-1].folder))[1]) < 4000


def make_training_that_dies_once():
    """Like `make_training`, but the first process is killed right after its evaluation at step 20."""
    inner = make_training(step_s=0.005)

    def train(config, *, folder, reporter, **others):
        import os
        import signal

        class DiesOnce:
            on_best, on_step = reporter.on_best, reporter.on_step
            should_stop = reporter.should_stop

            def on_eval(self, report):
                reporter.on_eval(report)
                if report.step == 20 and len((folder / "starts").read_text().splitlines()) == 1:
                    os.kill(os.getpid(), signal.SIGKILL)

        return inner(config, folder=folder, reporter=DiesOnce(), **others)

    return train


def starting_steps(folder: Path) -> list[str]:
    return [line.split()[1] for line in (folder / "starts").read_text().splitlines()]


def test_a_lost_worker_is_replaced_and_continues_from_the_last_checkpoint(storage):
    spec = RunSpec.model_validate(make_values(storage, resources={"runner": "ray_train"}))
    result = train_run(spec, train_fn=make_training_that_dies_once())
    assert (result.status, result.metrics["val/mask_ap"]) == ("finished", 0.5)
    assert starting_steps(Path(result.folder)) == ["0", "20"]


def test_a_lost_trial_process_is_replaced_too(storage):
    sweep = {"trials": 1, "search": "random", "space": {"qam.iou_thr": {"uniform": [0.4, 0.8]}}}
    spec = SweepSpec.model_validate(make_values(storage, sweep=sweep))
    result = run_sweep(spec, train_fn=make_training_that_dies_once())
    assert [row.status for row in result.table.rows] == ["finished"]
    assert starting_steps(Path(result.best.folder)) == ["0", "20"]


def test_a_run_without_a_place_waits_until_there_is_one(storage, monkeypatch):
    import ray

    # so long Ray Train waits for a place at a time
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    other = ray.util.placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    assert other.wait(10)
    earlier = set(ray.util.placement_group_table())
    tries: set[str] = set()

    def go() -> None:
        """Make room after more starts without a place than there may be failed ones."""
        while len(tries) < 4:
            tries.update(set(ray.util.placement_group_table()) - earlier)
            time.sleep(0.1)
        ray.util.remove_placement_group(other)

    threading.Thread(target=go, daemon=True).start()
    values = make_values(storage, name="waiting", resources={"runner": "ray_train"})
    status = train_run(RunSpec.model_validate(values), train_fn=make_training())
    assert (status.status, status.step) == ("finished", 40)
    assert len(tries) >= 4, "it did not wait"


def test_two_workers_train_together_and_a_failure_keeps_its_class(storage):
    inner = make_training()

    def train(config, *, folder, reporter, **others):
        import torch
        import torch.distributed as dist

        total = torch.tensor([dist.get_rank() + 1.0])
        dist.all_reduce(total)
        assert (dist.get_world_size(), float(total)) == (2, 3.0)
        if config.qam.k_top == 13 and dist.get_rank() == 1:
            from boxseg.errors import NonFiniteLossError

            raise NonFiniteLossError("step 0: the loss of rank 1 is nan")
        if config.qam.k_top == 13:
            dist.barrier()
        (folder / f"rank-{dist.get_rank()}").touch()
        return inner(config, folder=folder, reporter=reporter, **others)

    values = make_values(storage, resources={"workers": 2})
    result = train_run(RunSpec.model_validate(values), train_fn=train)
    assert result.status == "finished"
    assert {path.name for path in Path(result.folder).glob("rank-*")} == {"rank-0", "rank-1"}
    steps = [step for step, _ in RunFolder(result.folder).history("train/loss")]
    assert steps == list(range(5, 41, 5)), "only rank 0 writes"
    with pytest.raises(NonFiniteLossError, match="rank 1"):
        train_run(
            RunSpec.model_validate({**values, "qam": {"k_top": 13}}),
            train_fn=train,
        )


def test_both_runners_give_the_same_trials_and_mlflow_holds_the_tree(storage):
    inline = by_number(run_real_sweep(storage, "inline", [0.3, 0.6]))
    (by_ray_train,) = by_number(run_real_sweep(storage, "ray_train", [0.6]))
    assert history(by_ray_train.folder) == history(inline[1].folder)
    assert {row.status for row in (*inline, by_ray_train)} == {"finished"}

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("real-inline")
    runs = client.search_runs([experiment.experiment_id])
    children = [each for each in runs if "mlflow.parentRunId" in each.data.tags]
    assert len(children) == 2
    assert len(runs) == 3
    for child in children:
        assert child.info.status == "FINISHED"
        assert child.data.params["qam.iou_thr"] in ("0.3", "0.6")
        for metric, least in (
            ("train/loss", 3),
            ("qam/quality", 3),
            ("pc/paste_rate", 3),
            ("val/mask_ap", 1),
        ):
            assert len(client.get_metric_history(child.info.run_id, metric)) >= least, metric
        artifacts = {
            each.path
            for folder in ("samples", "checkpoints/best")
            for each in files(client, child, folder)
        }
        assert "samples/step-00000006.png" in artifacts
        assert any(path.endswith(".safetensors") for path in artifacts)


def run_real_sweep(storage: Path, runner: str, thresholds: list[float]):
    values = {
        "name": f"real-{runner}",
        "storage": storage,
        "data": {"toy": {"train_images": 12, "val_images": 4, "size": 64}},
        "model": {
            "backbone": "timm/test_resnet",
            "weights": "none",
            "channels": 16,
            "tower_convs": 1,
        },
        "cond": {"branch_channels": 16, "branch_convs": 1},
        "train": {
            "steps": 6,
            "batch_size": 2,
            "image_size": 64,
            "report_every": 2,
            "eval_every": 3,
        },
        "solver": {"optimizer": "adamw"},
        "resources": {"runner": runner},
        "sweep": {
            "search": "grid",
            "trial_scheduler": "none",
            "space": {"qam.iou_thr": {"choice": thresholds}},
        },
    }
    return run_sweep(SweepSpec.model_validate(values))


def by_number(result):
    return sorted(result.table.rows, key=lambda row: row.id)


def history(folder: Path):
    """Everything a trial reported but its pace and what the machine was doing."""
    pace = ("train/images_per_s", "train/step_s", "train/data_wait_s", "system/")
    reports, _ = RunFolder(folder).reports_since(0)
    kept = [
        (
            each.step,
            {key: each.metrics[key] for key in sorted(each.metrics) if not key.startswith(pace)},
        )
        for each in reports
    ]
    return [(step, metrics) for step, metrics in kept if metrics]


def files(client, run_of_mlflow, folder: str):
    return client.list_artifacts(run_of_mlflow.info.run_id, folder)

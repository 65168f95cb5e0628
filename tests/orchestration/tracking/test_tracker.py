"""MLflow repeats what the folders say: once, completely, and without ever holding up a run."""

import contextlib
import json
import logging
import socket
import threading
import time
from pathlib import Path

import mlflow
import pytest

import orchestration.tracking.artifacts
import orchestration.tracking.run
import orchestration.tracking.tracker
from boxseg.engine.checkpoint import publish, save_checkpoint
from orchestration.config.resolved import dump_resolved, params_of, parse_resolved
from orchestration.config.spec import RunSpec, SweepSpec
from orchestration.record.failures import Failure
from orchestration.record.run_folder import RunFolder, RunStatus, own_process
from orchestration.tracking.run import follow
from orchestration.tracking.store import tracking_uri
from orchestration.tracking.tracker import Tracker, catch_up, is_copied, latest_uri

SPACE = {"sweep": {"space": {"qam.k_top": {"choice": [1, 5]}}}}
NETWORKS = ("student", "teacher")


@pytest.fixture(scope="module")
def storage(tmp_path_factory, make_store) -> Path:
    storage = tmp_path_factory.mktemp("storage")
    make_store(storage / "mlflow.db")
    return storage


@pytest.fixture(scope="module")
def client(storage) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=tracking_uri(storage))


def make_run(storage: Path, run_id: str, spec: RunSpec | None = None, **fields) -> RunFolder:
    name = fields.pop("folder", run_id)
    folder = RunFolder(storage / "toy" / name)
    fields = {
        "steps": 100,
        "tags": {"profile": "fixed", "data": "/d/train.json", "data_fingerprint": "abc"},
        **fields,
    }
    return folder.create(
        RunStatus(run_id, "toy", **own_process(), **fields), dump_resolved(spec or RunSpec())
    )


def track(storage: Path, *folders: RunFolder) -> None:
    tracker = Tracker(storage, "toy", logs=storage / "logs")
    for folder in folders:
        tracker.add(folder)
    tracker.start()
    ended = all(folder.status().is_final for folder in folders)
    assert tracker.close(timeout_s=600) == ended


def mlflow_run(client, folder: RunFolder):
    return client.get_run(folder.read_tracking()["run_id"])


def save_best(folder: RunFolder, files: dict[str, bytes], **about) -> Path:
    """A checkpoint of step 100 in a run's folder, its best one."""
    checkpoints = folder.path / "checkpoints"
    checkpoints.mkdir()
    about = {"best_step": 100} | about
    written = save_checkpoint(checkpoints, step=100, files=files, about=about)
    publish(checkpoints, written)
    return written


def test_a_run_arrives_with_params_tags_metrics_samples_and_checkpoint(storage, client):
    folder = make_run(storage, "whole", RunSpec.model_validate({"qam": {"k_top": 7}}))
    folder.report(10, {"train/loss": 2.0, "val/mask_ap": 0.1})
    folder.report(20, {"train/loss": 1.0, "val/mask_ap": 0.3}, is_best=True)
    (folder.path / "samples").mkdir()
    (folder.path / "samples" / "step-20.png").write_bytes(b"png")
    save_best(folder, {"state.pt": b"only for going on"})
    folder.finish("finished")
    track(storage, folder)
    run = mlflow_run(client, folder)
    assert run.info.status == "FINISHED"
    assert run.data.params["qam.k_top"] == "7"
    assert len(run.data.params) > 100
    assert run.data.tags["profile"] == "fixed"
    assert [dataset.dataset.digest for dataset in run.inputs.dataset_inputs] == ["abc"]
    history = client.get_metric_history(run.info.run_id, "val/mask_ap")
    assert sorted((point.step, point.value) for point in history) == [(10, 0.1), (20, 0.3)]
    places = ("", "samples", "checkpoints/best")
    found = {
        entry.path for place in places for entry in client.list_artifacts(run.info.run_id, place)
    }
    assert {
        "config.yaml",
        "status.json",
        "samples/step-20.png",
        "checkpoints/best/about.json",
    } <= found
    assert "checkpoints/best/state.pt" not in found


def test_params_are_plain_values_by_dotted_name():
    values = {
        "data": {"val": {"images": "i", "annotations": "/a"}},
        "train": {"image_size": [64, 96]},
        **SPACE,
    }
    params = params_of(parse_resolved(dump_resolved(SweepSpec.model_validate(values))))
    assert params["qam.k_top"] == 20
    assert params["data.train"] == "toy"
    assert params["data.val.annotations"] == "/a"
    assert params["train.image_size"] == "[64, 96]"
    assert params["train.clip_norm"] == "null"
    assert params["sweep.trials"] == 8


def test_nothing_is_lost_or_doubled_when_the_mirror_starts_again(storage, client):
    folder = make_run(storage, "again")
    folder.report(1, {"a": 1.0})
    track(storage, folder)
    with folder.metrics_path.open("ab") as file:
        file.write(b'{"step": 2, "time": 5, "metrics": {"a"')  # half a line is left for later
    track(storage, folder)
    with folder.metrics_path.open("ab") as file:
        file.write(b": 2.0}}\n")
    before = folder.read_tracking()
    folder.finish("finished")
    track(storage, folder)
    folder.write_tracking(before)  # as if killed before the place was kept
    track(storage, folder)
    run = mlflow_run(client, folder)
    history = client.get_metric_history(run.info.run_id, "a")
    assert sorted((point.step, point.value) for point in history) == [(1, 1.0), (2, 2.0)]
    assert len(client.search_runs(["1"], "tags.`boxseg.run` = 'again'")) == 1


def test_a_run_known_to_mlflow_is_found_by_its_tag_when_its_id_was_lost(storage, client):
    folder = make_run(storage, "lost")
    track(storage, folder)
    first = folder.read_tracking()["run_id"]
    folder.tracking_path.unlink()
    track(storage, folder)
    assert folder.read_tracking()["run_id"] == first


def test_a_run_that_went_on_with_other_settings_is_found_as_well(storage, client):
    folder = make_run(storage, "longer")
    track(storage, folder)
    first = mlflow_run(client, folder)
    folder.tracking_path.unlink()
    longer = RunSpec.model_validate({"train": {"steps": 30}, "storage": storage / "moved"})
    folder.config_path.write_text(dump_resolved(longer))
    folder.report(1, {"train/loss": 1.0})
    folder.finish("finished")
    track(storage, folder)
    run = mlflow_run(client, folder)
    assert run.info.run_id == first.info.run_id
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"train/loss": 1.0})


def test_trials_are_children_and_say_how_they_ended(storage, client):
    spec = SweepSpec.model_validate({"sweep": {"space": {"qam.k_top": {"choice": [1, 5]}}}})
    sweep = make_run(
        storage, "sweep", spec, kind="sweep", tags={"command": "boxseg sweep toy.yaml"}
    )
    tags = {"trial_scheduler": "hyperband"}
    about = {"parent": "..", "values": {"qam.k_top": 5}, "description": "k_top=5", "tags": tags}
    trials = [
        make_run(storage, f"sweep-0{n}", folder=f"sweep/sweep-0{n}", **about) for n in range(3)
    ]
    trials[0].finish("stopped")
    trials[1].finish("failed", ValueError("bad\nnews"))
    trials[2].finish("interrupted")
    sweep.append_metrics(1, {"val/mask_ap": 0.5})
    sweep.finish("finished")
    track(storage, sweep, *trials)
    parent = mlflow_run(client, sweep)
    runs = [mlflow_run(client, trial) for trial in trials]
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.info.run_id}
    assert [run.info.status for run in runs] == ["FINISHED", "FAILED", "KILLED"]
    assert [run.data.tags["status"] for run in runs] == ["stopped", "failed", "interrupted"]
    assert runs[0].data.tags["stopped_by"] == "hyperband"
    assert runs[1].data.tags["failure_class"] == "unknown"
    assert runs[0].info.run_name == "00 k_top=5"
    assert runs[0].data.tags["varied.qam.k_top"] == "5"
    note = parent.data.tags["mlflow.note.content"]
    assert note.startswith("`boxseg sweep toy.yaml`\n\n| trial | qam.k_top |")
    assert "failed: unknown: ValueError: bad |" in note
    assert (
        parent.info.run_name
        == f"sweep {time.strftime('%Y-%m-%d %H:%M', time.localtime(sweep.status().created))} sweep"
    )
    assert parent.data.metrics["val/mask_ap"] == 0.5
    assert parent.data.params["sweep.search"] == "tpe"


def test_a_setting_that_does_not_apply_to_a_trial_is_a_dash_in_its_params(storage, client):
    space = {"method": {"choice": ["boxinst", "qam"]}}
    space["qam.k_top"] = {"choice": [1, 5], "when": {"method": "qam"}}
    spec = SweepSpec.model_validate({"sweep": {"space": space}})
    sweep = make_run(storage, "branches", spec, kind="sweep")
    params = []
    for number, values in enumerate(({"method": "boxinst"}, {"method": "qam", "qam.k_top": 5})):
        name = f"branches-0{number}"
        about = {"folder": f"branches/{name}", "parent": "..", "values": values}
        trial = make_run(storage, name, spec.trial(values, 0), **about)
        track(storage, sweep, trial)
        params.append(mlflow_run(client, trial).data.params)
    assert [each["qam.k_top"] for each in params] == ["-", "5"]
    assert [each["method"] for each in params] == ["boxinst", "qam"]


def test_trials_of_several_seeds_say_theirs_in_the_name(storage, client):
    spec = SweepSpec.model_validate(
        {"sweep": {"seeds": [0, 1], "space": {"qam.k_top": {"choice": [1, 5]}}}}
    )
    sweep = make_run(storage, "seeds", spec, kind="sweep")
    tags = {"seed": "1"}
    trial = make_run(
        storage,
        "seeds-104",
        folder="seeds/seeds-104",
        parent="..",
        description="k_top=5",
        tags=tags,
    )
    track(storage, sweep, trial)
    assert mlflow_run(client, trial).info.run_name == "104 k_top=5 seed=1"


def test_a_sweep_has_a_saved_view_of_its_trials_with_swept_settings_and_metric(storage, client):
    space = {"qam.k_top": {"choice": [1, 5]}, "qam.iou_thr": {"uniform": [0.1, 0.5]}}
    spec = SweepSpec.model_validate({"sweep": {"metric": "val/box_ap", "space": space}})
    sweep = make_run(storage, "viewed", spec, kind="sweep")
    track(storage, sweep)
    tags = client.get_experiment("1").tags
    view = json.loads(tags["mlflow.sharedViewState.viewed"])
    state = json.loads(view["state"])
    assert view["name"] == "sweep viewed"
    assert (
        state["searchFilter"] == f"tags.mlflow.parentRunId = '{sweep.read_tracking()['run_id']}'"
    )
    parallel = state["compareRunCharts"][0]
    assert (parallel["type"], parallel["selectedParams"]) == (
        "PARALLEL",
        ["qam.k_top", "qam.iou_thr"],
    )
    assert parallel["selectedMetrics"] == ["best/val/box_ap"]
    assert len(tags["mlflow.sharedViewState.viewed"]) < 5000


def make_trial_with_networks(
    storage: Path, sweep: RunFolder, number: int, *, best: str
) -> RunFolder:
    run_id = f"{sweep.path.name}-{number:02d}"
    folder = make_run(storage, run_id, folder=f"{sweep.path.name}/{run_id}", parent="..")
    files = {f"{name}.safetensors": b"weights" for name in ("teacher", "student")}
    save_best(folder, files, network=best)
    (folder.path / "samples").mkdir()
    (folder.path / "samples" / "step-100.png").write_bytes(b"png")
    folder.finish("finished")
    return folder


def test_every_trial_carries_its_panels_and_the_weights_of_its_better_network(
    storage, client, monkeypatch
):
    sweep = make_run(storage, "weights", SweepSpec.model_validate(SPACE), kind="sweep")
    trials = [
        make_trial_with_networks(storage, sweep, number, best=best)
        for number, best in enumerate(NETWORKS)
    ]
    sweep.finish("finished")
    track(storage, sweep, *trials)
    for trial, best in zip(trials, NETWORKS, strict=True):
        run = mlflow_run(client, trial)
        found = {
            entry.path for entry in client.list_artifacts(run.info.run_id, "checkpoints/best")
        }
        assert found == {
            f"checkpoints/best/{name}" for name in ("about.json", f"{best}.safetensors")
        }
        assert [entry.path for entry in client.list_artifacts(run.info.run_id, "samples")] == [
            "samples/step-100.png"
        ]

    monkeypatch.setattr(orchestration.tracking.artifacts, "MAX_CHECKPOINT_BYTES", 3)
    large = make_trial_with_networks(storage, sweep, 2, best="teacher")
    track(storage, sweep, large)
    run = mlflow_run(client, large)
    found = [entry.path for entry in client.list_artifacts(run.info.run_id, "checkpoints/best")]
    assert found == ["checkpoints/best/about.json"]
    assert run.data.tags["best_checkpoint"] == str(large.best_checkpoint)


def test_damaged_weights_do_not_become_artifacts(storage, client, caplog):
    sweep = make_run(storage, "damaged", SweepSpec.model_validate(SPACE), kind="sweep")
    trial = make_trial_with_networks(storage, sweep, 0, best="teacher")
    (trial.best_checkpoint / "teacher.safetensors").write_bytes(b"weightz")
    track(storage, sweep, trial)
    assert mlflow_run(client, trial).info.status == "FINISHED"
    assert client.list_artifacts(trial.read_tracking()["run_id"], "checkpoints/best") == []
    assert "teacher.safetensors is damaged" in caplog.text


@pytest.mark.parametrize(("metric", "mode"), [("val/box_ap", "max"), ("health/mask_fill", "min")])
def test_runs_are_tagged_with_the_best_by_the_metric_of_their_sweep(storage, client, metric, mode):
    spec = SweepSpec.model_validate({"sweep": {**SPACE["sweep"], "metric": metric, "mode": mode}})
    name = f"best-{mode}"
    sweep = make_run(storage, name, spec, kind="sweep")
    trial = make_run(storage, f"{name}-00", folder=f"{name}/{name}-00", parent="..")
    alone = make_run(storage, f"alone-{mode}")
    first = {"val/mask_ap": 0.1, "val/box_ap": 0.5, "health/mask_fill": 0.25}
    last = {"val/mask_ap": 0.9, "val/box_ap": 0.2, "health/mask_fill": 0.75}
    for run, best in ((trial, first), (alone, last)):
        run.report(50, first, is_best=True)
        run.report(100, last, is_best=best is last)
        run.finish("finished")
    sweep.report(1, first, is_best=True)
    sweep.finish("finished")
    track(storage, sweep, trial, alone)
    told = [
        tuple(mlflow_run(client, run).data.tags[tag] for tag in ("best", "best_by", "best_step"))
        for run in (trial, sweep, alone)
    ]
    value = f"{first[metric]:.6f}"
    assert told == [
        (value, f"{metric} {mode}", "50"),
        (value, f"{metric} {mode}", "1"),
        ("0.900000", "val/mask_ap max", "100"),
    ]
    assert mlflow_run(client, sweep).data.metrics[metric] == first[metric]
    scores = [mlflow_run(client, run).data.metrics for run in (trial, sweep, alone)]
    assert [each[f"best/{metric}"] for each in scores[:2]] == [first[metric]] * 2
    assert scores[2]["best/val/mask_ap"] == 0.9


def test_the_front_of_a_sweep_is_marked_in_any_order_of_its_runs(storage, client):
    settings = {**SPACE["sweep"], "against": {"val/box_ap": "min"}}
    spec = SweepSpec.model_validate({"sweep": settings})
    sweep = make_run(storage, "front", spec, kind="sweep")
    trials = [
        make_run(storage, f"front-{number:02d}", folder=f"front/front-{number:02d}", parent="..")
        for number in range(3)
    ]
    for trial in trials:
        trial.finish("finished")
    track(storage, sweep, *trials[:2])
    sweep.update(front=["front-00", "front-02"])
    sweep.finish("finished")
    track(storage, sweep)
    track(storage, trials[2])

    def marks() -> list[str | None]:
        return [mlflow_run(client, run).data.tags.get("front") for run in (sweep, *trials)]

    assert marks() == ["00, 02", "yes", None, "yes"]
    # it goes on, and others beat the first one
    sweep.start()
    sweep.update(front=["front-01"])
    sweep.finish("finished")
    track(storage, sweep)
    assert marks() == ["01", "no", "yes", "no"]


def test_a_folder_that_cannot_be_copied_does_not_hold_up_the_others(storage, client):
    broken, whole = make_run(storage, "broken"), make_run(storage, "unharmed")
    broken.config_path.write_text("no_such_setting: 1")
    whole.finish("finished")
    tracker = Tracker(storage, "toy", logs=storage / "logs")
    tracker.add(broken)
    tracker.add(whole)
    tracker.start()
    assert not tracker.close()
    assert mlflow_run(client, whole).info.status == "FINISHED"


def test_a_resumed_run_continues_in_the_same_mlflow_run(storage, client):
    folder = make_run(storage, "resumed")
    folder.report(1, {"a": 1.0})
    folder.finish("interrupted")
    track(storage, folder)
    assert mlflow_run(client, folder).info.status == "KILLED"
    folder.start()
    follow(client, "1", folder)
    assert mlflow_run(client, folder).info.status == "RUNNING"
    folder.report(2, {"a": 2.0})
    folder.finish("finished")
    track(storage, folder)
    run = mlflow_run(client, folder)
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "a")) == 2


@pytest.mark.parametrize("seen_running", [True, False])
def test_tags_of_an_earlier_end_are_removed_from_a_resumed_run(storage, client, seen_running):
    folder = make_run(storage, f"goes-on-{seen_running}", tags={"trial_scheduler": "asha"})
    for status, failure in (
        ("failed", Failure("DataError", "no t.json")),
        ("stopped", None),
        ("finished", None),
    ):
        folder.finish(status, failure)
        track(storage, folder)
        tags = mlflow_run(client, folder).data.tags
        assert tags["status"] == status
        assert ("failure_class" in tags, "failure" in tags) == (failure is not None,) * 2
        assert ("no t.json" in tags["mlflow.note.content"]) == (failure is not None)
        assert ("stopped_by" in tags) == (status == "stopped")
        folder.start()
        if seen_running:
            follow(client, "1", folder)
            run = mlflow_run(client, folder)
            assert (run.info.status, run.data.tags["status"]) == ("RUNNING", "running")
            assert not {"failure_class", "failure", "stopped_by"} & run.data.tags.keys()


def test_ended_runs_are_not_read_again_until_the_end(storage, client, monkeypatch):
    looks: list[str] = []

    def look(client, experiment_id, folder):
        looks.append(folder.path.name)
        follow(client, experiment_id, folder)

    monkeypatch.setattr(orchestration.tracking.tracker, "follow", look)
    monkeypatch.setattr(orchestration.tracking.tracker, "FIRST_LOOK_S", 0.0)
    monkeypatch.setattr(orchestration.tracking.tracker, "TICK_S", 0.01)
    over, running = make_run(storage, "over"), make_run(storage, "running")
    tracker = Tracker(storage, "toy", logs=storage / "logs")
    tracker.add(over)
    tracker.add(running)
    over.finish("failed", Failure("WorkerLost", "the process ended"))
    tracker.settle(RunFolder(over.path))  # whoever closes a trial makes its own
    tracker.start()
    while looks.count("running") < 5:
        time.sleep(0.01)
    assert looks.count("over") == 1
    # by a worker that outlived its driver's word
    over.finish("failed", Failure("DataError", "an image is missing"))
    running.finish("finished")
    assert tracker.close(timeout_s=600)
    assert mlflow_run(client, over).data.tags["failure"] == "an image is missing"


def test_the_next_tracker_takes_over_what_a_dead_process_left(storage, client):
    left = make_run(storage, "left")
    left.report(1, {"a": 1.0})
    follow(client, "1", left)
    left.report(2, {"a": 2.0})
    left.finish("failed", RuntimeError("killed"))
    left.update(pid=1, pid_created=1.5)
    track(storage, make_run(storage, "next"))
    assert mlflow_run(client, left).info.status == "FAILED"


def test_runs_unknown_to_mlflow_are_copied_by_the_next_command(tmp_path, make_store):
    uri = make_store(tmp_path / "mlflow.db")
    sweep = make_run(tmp_path, "early", SweepSpec.model_validate(SPACE), kind="sweep")
    trial = make_run(tmp_path, "early-00", folder="early/early-00", parent="..")
    trial.report(1, {"a": 1.0})
    tracker = Tracker(tmp_path, "toy", logs=tmp_path / "logs")  # killed before its first look
    for folder in (sweep, trial):
        tracker.add(folder)
        folder.update(pid=1, pid_created=1.5, tags={"host": socket.gethostname()})
    found = catch_up(tmp_path, latest_uri(tmp_path))
    client = mlflow.MlflowClient(tracking_uri=uri)
    runs = client.search_runs([found.experiment_id])
    assert {run.info.status for run in runs} == {"KILLED"}
    assert len(runs) == 2
    assert [run.data.metrics for run in runs if run.data.tags["boxseg.kind"] == "run"] == [
        {"a": 1.0}
    ]
    assert found.sweep == (found.experiment_id, "early")
    again = catch_up(tmp_path, uri)
    assert again == found
    assert len(client.search_runs([found.experiment_id])) == 2


def test_a_run_resumed_with_another_store_is_complete_there(storage, tmp_path, make_store):
    folder = make_run(storage, "moved")
    folder.report(1, {"a": 1.0})
    folder.finish("interrupted")
    track(storage, folder)
    folder.start()
    folder.report(2, {"a": 2.0})
    folder.finish("finished")
    other = make_store(tmp_path / "other.db")
    tracker = Tracker(storage, "toy", uri=other, logs=storage / "logs")
    tracker.add(folder)
    tracker.start()
    assert tracker.close(timeout_s=600)
    run_id = folder.read_tracking()["run_id"]
    assert len(mlflow.MlflowClient(tracking_uri=other).get_metric_history(run_id, "a")) == 2


def test_a_tracker_without_a_server_neither_raises_nor_waits_long(tmp_path, caplog):
    folder = make_run(tmp_path, "alone")
    folder.report(1, {"a": 1.0})
    tracker = Tracker(tmp_path, "toy", uri="http://127.0.0.1:9", logs=tmp_path / "logs")
    tracker.add(folder)
    tracker.start()
    folder.finish("finished")
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="boxseg.tracking"):
        assert not tracker.close(timeout_s=20)
    assert time.monotonic() - began < 40  # 20, and what a busy machine adds
    assert "folders are complete" in caplog.text
    assert json.loads(folder.metrics_path.read_text())["metrics"] == {"a": 1.0}


def test_two_trackers_never_follow_one_run_at_a_time(storage, client, monkeypatch):
    folder = make_run(storage, "shared")
    folder.report(1, {"a": 1.0})
    folder.finish("finished")
    inside, over, ends = threading.Event(), threading.Event(), []

    def copy_slowly(copy):
        inside.set()
        over.wait(60)

    def end(copy):
        ends.append(copy.status.id)

    monkeypatch.setattr(orchestration.tracking.run, "_copy_metrics", copy_slowly)
    monkeypatch.setattr(orchestration.tracking.run, "_end_run", end)
    first = threading.Thread(target=follow, args=(client, "0", folder))
    first.start()
    inside.wait(60)
    # it would find the run without its end as well, and write a record in which the other's is missing
    with pytest.raises(BlockingIOError):
        follow(client, "0", folder)
    over.set()
    first.join()
    assert ends == ["shared"]


@pytest.mark.parametrize("hangs", [False, True])
def test_the_end_waits_while_mlflow_takes_runs_and_not_for_one_that_hangs(
    storage, monkeypatch, hangs: bool
):
    patience, over = 100.0, threading.Event()
    clock = FakeClock()

    def follow_slowly(*arguments):
        clock.now += 2 * patience if hangs else 0.9 * patience
        if hangs:
            over.wait(60)
        follow(*arguments)

    monkeypatch.setattr(orchestration.tracking.tracker, "follow", follow_slowly)
    monkeypatch.setattr(orchestration.tracking.tracker, "time", clock)
    tracker = Tracker(storage, "toy", logs=storage / "logs")
    for number in range(6):
        run = make_run(storage, f"slow-{hangs}-{number}")
        run.finish("finished")
        tracker.add(run)
    tracker.start()
    assert tracker.close(timeout_s=patience) != hangs
    over.set()
    tracker._thread.join()
    assert clock.now > 5 * patience


@pytest.mark.parametrize("ends", [True, False])
def test_a_run_that_another_process_copies_is_waited_for_and_not_for_ever(
    storage, client, monkeypatch, ends: bool
):
    monkeypatch.setattr(orchestration.tracking.tracker, "BUSY_S", 60.0 if ends else 0.5)
    taken = make_run(storage, f"taken-{ends}")
    free = make_run(storage, f"free-{ends}")
    tracker = Tracker(storage, "toy", logs=storage / "logs")
    for run in (taken, free):
        run.finish("finished")
        tracker.add(run)
    with contextlib.ExitStack() as other:
        other.enter_context(taken.tracking())
        if ends:
            threading.Timer(1.0, other.close).start()
        tracker.copy_leftovers()
    assert is_copied(free)
    assert is_copied(taken) == ends


class FakeClock:
    """A clock that goes on when a test says so; sleeping is as ever."""

    now = 0.0
    sleep = staticmethod(time.sleep)

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("name", ["50%41?x=1", "ü 5% #1 $x @a:b"])
def test_a_storage_may_have_any_name(name, tmp_path, make_store):
    storage = tmp_path / name
    storage.mkdir()
    make_store(storage / "mlflow.db")
    folder = make_run(storage, "20261123-130000-aaaa")
    folder.finish("finished")
    track(storage, folder)
    assert (
        mlflow_run(mlflow.MlflowClient(tracking_uri=tracking_uri(storage)), folder).info.status
        == "FINISHED"
    )
    assert (storage / "mlartifacts").is_dir()
    assert not [
        path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(storage)
    ]

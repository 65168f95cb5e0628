"""A tracking server that is down, slow or forgetful: training goes on, and in the end every point is there once."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from faulty_proxy import FaultyProxy, faulty_proxy, free_port
from postgres import postgres
from tracked_writer import METRICS, write_run
from tracked_writer import REPORTS as WRITTEN

import orchestration.tracking.tracker
from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import RunSpec
from orchestration.execute.run import train_run
from orchestration.record.run_folder import RunFolder, RunStatus, own_process
from orchestration.tracking.server import mlflow_server
from orchestration.tracking.tracker import Tracker, catch_up

pytestmark = pytest.mark.slow

REPORTS = 40


@contextlib.contextmanager
def serve(place: Path, port: int, store: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
    store = store or f"sqlite:///{place}/mlflow.db"
    with mlflow_server(
        store, port=port, artifacts=place / "artifacts", log=place / "server.log"
    ) as process:
        yield process


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[int]:
    """Port of a real MLflow server."""
    port = free_port()
    with serve(tmp_path_factory.mktemp("server"), port):
        yield port


@pytest.fixture
def impatient(monkeypatch) -> None:
    """The tracker looks at once and often and does not wait long."""
    monkeypatch.setattr(orchestration.tracking.tracker, "TICK_S", 0.3)
    monkeypatch.setattr(orchestration.tracking.tracker, "FIRST_LOOK_S", 0.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")


@pytest.fixture
def proxy(server, impatient) -> Iterator[FaultyProxy]:
    """What stands between the tracker and the server."""
    with faulty_proxy(server) as proxy:
        yield proxy


def make_run(storage: Path, run_id: str, experiment: str = "faults", **tracking) -> RunFolder:
    status = RunStatus(
        run_id, experiment, steps=REPORTS, tags={"data": "/d/t.json", "data_fingerprint": "abc"}
    )
    config = dump_resolved(RunSpec.model_validate({"tracking": tracking}))
    folder = RunFolder(storage / experiment / run_id).create(status, config)
    folder.update(**own_process())
    return folder


def start(folder: RunFolder, uri: str) -> Tracker:
    tracker = Tracker(folder.path.parents[1], folder.path.parent.name, uri=uri, logs=folder.logs)
    tracker.add(folder)
    tracker.start()
    return tracker


def train(folder: RunFolder, steps: range, pause_s: float = 0.05) -> float:
    """Report some steps; gives the longest time that one report took [s]."""
    longest = 0.0
    for step in steps:
        began = time.monotonic()
        folder.report(step, {"train/loss": 1 / step, "train/lr": 0.1})
        longest = max(longest, time.monotonic() - began)
        time.sleep(pause_s)
    return longest


def find_run(client: mlflow.MlflowClient, run_id: str) -> mlflow.entities.Run:
    """The only MLflow run with this id, ended well."""
    places = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(places, f"tags.`boxseg.run` = '{run_id}'")
    assert [run.info.status for run in runs] == ["FINISHED"]
    return runs[0]


def check_whole(server: int, run_id: str) -> mlflow.entities.Run:
    """The server has exactly one run of this id, ended, with every point once and all files."""
    client = mlflow.MlflowClient(f"http://127.0.0.1:{server}")
    found = find_run(client, run_id)
    for name in ("train/loss", "train/lr"):
        steps = Counter(point.step for point in client.get_metric_history(found.info.run_id, name))
        assert steps == Counter(range(1, REPORTS + 1)), name
    assert {"config.yaml", "status.json"} <= {
        each.path for each in client.list_artifacts(found.info.run_id)
    }
    assert len(found.inputs.dataset_inputs) == 1
    return found


def wait_until(true, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("down_from", ["start", "middle"])
def test_a_server_that_was_down_for_a_while_gets_everything_once(
    proxy, server, tmp_path, down_from
):
    proxy.fault = "down" if down_from == "start" else "none"
    folder = make_run(tmp_path, f"down-{down_from}")
    tracker = start(folder, proxy.url)
    train(folder, range(1, 11))
    if down_from == "middle":
        wait_until(lambda: folder.read_tracking().get("offset"))
        proxy.fault = "down"
    longest = train(folder, range(11, 31))
    assert longest < 2
    proxy.fault = "none"
    train(folder, range(31, REPORTS + 1))
    folder.finish("finished")
    assert tracker.close(timeout_s=300)
    check_whole(server, folder.path.name)


def test_records_that_a_server_missed_at_the_end_are_copied_by_the_next_command(
    proxy, server, tmp_path
):
    folder = make_run(tmp_path, "down-end")
    tracker = start(folder, proxy.url)
    train(folder, range(1, 21))
    wait_until(lambda: folder.read_tracking().get("offset"))
    proxy.fault = "down"
    train(folder, range(21, REPORTS + 1))
    folder.finish("finished")
    began = time.monotonic()
    assert not tracker.close()
    assert time.monotonic() - began < 45
    folder.update(pid=1, pid_created=1.5)  # the process is gone
    proxy.fault = "none"
    found = catch_up(tmp_path, proxy.url)
    assert found.sweep is None
    check_whole(server, "down-end")


def test_a_slow_server_does_not_slow_training(proxy, server, tmp_path):
    proxy.fault = "slow"
    folder = make_run(tmp_path, "slow")
    tracker = start(folder, proxy.url)
    longest = train(folder, range(1, REPORTS + 1))
    assert longest < 0.9  # a request takes a second
    folder.finish("finished")
    assert tracker.close(timeout_s=300)
    check_whole(server, "slow")


def test_lost_answers_make_no_second_run_model_version_or_point(
    proxy, server, tmp_path, trained_run
):
    proxy.fault = "drop"
    # an experiment that is not there yet
    folder = make_run(tmp_path, "drop", "dropping", register_as="dropped")
    (folder.path / "checkpoints").mkdir()
    (folder.path / "checkpoints/best").symlink_to(trained_run.checkpoint)
    tracker = start(folder, proxy.url)
    for first in range(1, REPORTS + 1, 8):
        train(folder, range(first, first + 8))
        wait_until(
            lambda: folder.read_tracking().get("offset") == folder.metrics_path.stat().st_size
        )
        proxy.dropped.discard("POST /api/2.0/mlflow/runs/log-batch")
    folder.finish("finished")
    tracker.close(timeout_s=300)
    folder.update(pid=1, pid_created=1.5)  # the process is gone
    # as the next commands do
    wait_until(lambda: catch_up(tmp_path, proxy.url) and "ended" in folder.read_tracking())
    api = "/api/2.0/mlflow"
    lost = (
        "runs/create",
        "runs/log-batch",
        "runs/log-inputs",
        "runs/outputs",
        "runs/update",
        "logged-models",
    )
    assert {
        f"POST {api}/{name}" for name in (*lost, "experiments/create", "model-versions/create")
    } <= proxy.dropped
    assert {
        "PUT .yaml",
        "PUT .json",
        "PUT .safetensors",
        f"PATCH {api}/logged-models/m-ID",
    } <= proxy.dropped
    found = check_whole(server, "drop")
    client = mlflow.MlflowClient(f"http://127.0.0.1:{server}")
    models = client.search_logged_models([found.info.experiment_id])
    assert [(each.source_run_id, str(each.status)) for each in models] == [
        (found.info.run_id, "READY")
    ]
    versions = client.search_model_versions("name = 'dropped'")
    assert [each.source for each in versions] == [models[0].model_uri]
    assert client.get_model_version_by_alias("dropped", "best").version == versions[0].version


TOY = {
    "name": "faults",
    "data": {"toy": {"train_images": 4, "val_images": 2, "size": 64}},
    "model": {"backbone": "timm/test_resnet", "weights": "none", "channels": 16, "tower_convs": 1},
    "cond": {"branch_channels": 16, "branch_convs": 1, "max_per_image": 8},
    "train": {
        "steps": REPORTS,
        "batch_size": 2,
        "image_size": 64,
        "report_every": 1,
        "eval_every": 20,
        "panels": 1,
    },
    "resources": {"runner": "inline"},
}


def strike(storage: Path, server: subprocess.Popen[bytes], fault: signal.Signals) -> None:
    """Send a signal to a server and its workers once the run of this storage has told it something."""
    wait_until(
        lambda: any(
            json.loads(each.read_text()).get("offset")
            for each in storage.glob("*/*/tracking.json")
        )
    )
    os.killpg(server.pid, fault)


def train_under(
    fault: signal.Signals, storage: Path, port: int, server: subprocess.Popen[bytes]
) -> RunFolder:
    """A real run in whose middle the server gets a signal."""
    uri = f"http://127.0.0.1:{port}"
    hit = threading.Thread(target=strike, args=(storage, server, fault))
    hit.start()
    status = train_run(
        RunSpec.model_validate({**TOY, "storage": storage, "tracking": {"uri": uri}}),
    )
    hit.join()
    assert status.status == "finished"
    folder = RunFolder(status.folder)
    assert "ended" not in folder.read_tracking()
    folder.update(pid=1, pid_created=1.5)  # the process is gone
    return folder


def check_replayed(folder: RunFolder, storage: Path, port: int) -> None:
    """The next command brings every point of the folder to the server, once."""
    client = mlflow.MlflowClient(f"http://127.0.0.1:{port}")
    catch_up(storage, f"http://127.0.0.1:{port}")
    found = find_run(client, folder.path.name)
    for name in {name for report in folder.reports_since(0)[0] for name in report.metrics}:
        points = client.get_metric_history(found.info.run_id, name)
        assert sorted((point.step, point.value) for point in points) == folder.history(name), name


@pytest.mark.chaos
def test_training_ends_with_the_same_numbers_where_the_server_is_killed_or_frozen(
    tmp_path, impatient
):
    port, folders = free_port(), []
    with serve(tmp_path / "server", port) as server:
        folders.append(train_under(signal.SIGKILL, tmp_path / "killed", port, server))
    with serve(tmp_path / "server", port) as server:
        check_replayed(folders[0], tmp_path / "killed", port)
        folders.append(train_under(signal.SIGSTOP, tmp_path / "frozen", port, server))
        os.killpg(server.pid, signal.SIGCONT)
        check_replayed(folders[1], tmp_path / "frozen", port)
    killed, frozen = (
        {name: each.history(name) for name in ("train/loss", "val/mask_ap")} for each in folders
    )
    assert killed == frozen
    assert [step for step, _ in killed["train/loss"]] == list(range(1, REPORTS + 1))


def check_eight_writers(storage: Path, uri: str) -> None:
    """Eight processes log 300 reports of five metrics each at once; all of them are counted."""
    (storage / "many").mkdir()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow", "orchestration.tracking.tracker"])
    writers = [
        context.Process(target=write_run, args=(storage, uri, number)) for number in range(8)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(280)
    assert [writer.exitcode for writer in writers] == [0] * 8
    assert not [log for log in storage.glob("many/*/logs/*") if "locked" in log.read_text()]
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("many").experiment_id])
    assert [each.info.status for each in runs] == ["FINISHED"] * 8
    for found in runs:
        number = int(found.data.tags["boxseg.run"].removeprefix("run-"))
        for name in METRICS:
            history = client.get_metric_history(found.info.run_id, f"train/loss_{name}")
            assert sorted((each.step, each.value) for each in history) == [
                (step, step + number) for step in range(1, WRITTEN + 1)
            ]


def test_eight_runs_at_once_lose_nothing_in_sqlite(tmp_path):
    check_eight_writers(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")


def test_eight_runs_at_once_lose_nothing_in_a_server_on_postgresql(tmp_path):
    port = free_port()
    with postgres() as store, serve(tmp_path / "server", port, store):
        check_eight_writers(tmp_path, f"http://127.0.0.1:{port}")

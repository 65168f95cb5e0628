"""Lost or damaged records in MLflow are made again from the folders of runs, which are complete."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import alembic.command
import mlflow
import mlflow.store.db.utils
import pytest

from boxseg.errors import ConfigError
from orchestration.cli.app import run as run_command
from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import RunSpec
from orchestration.errors import ResourceError
from orchestration.record.run_folder import RunFolder, RunStatus, own_process
from orchestration.tracking.repair import repair
from orchestration.tracking.store import tracking_uri
from orchestration.tracking.tracker import Tracker, catch_up, latest_uri

MakeStore = Callable[[Path], str]


def make_run(storage: Path, run_id: str) -> RunFolder:
    """A run with one report and a picture."""
    folder = RunFolder(storage / "toy" / run_id)
    status = RunStatus(run_id, "toy", **own_process(), steps=10)
    folder.create(status, dump_resolved(RunSpec()))
    folder.report(10, {"train/loss": 2.0})
    (folder.path / "samples").mkdir()
    (folder.path / "samples" / "step-10.png").write_bytes(b"png")
    return folder


def track(storage: Path, folder: RunFolder, **options: str) -> None:
    tracker = Tracker(storage, "toy", logs=storage / "logs", **options)
    tracker.add(folder)
    tracker.start()
    assert tracker.close(timeout_s=600)


@pytest.fixture
def storage(tmp_path: Path, make_store: MakeStore) -> Path:
    """A storage with one run that has ended and is in MLflow."""
    storage = tmp_path / "runs"
    storage.mkdir()
    make_store(storage / "mlflow.db")
    folder = make_run(storage, "20261101-120000-aaaa")
    folder.finish("finished")
    track(storage, folder)
    return storage


def client_of(storage: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=tracking_uri(storage))


def first_run(storage: Path) -> RunFolder:
    return RunFolder(storage / "toy" / "20261101-120000-aaaa")


def pictures(storage: Path, folder: RunFolder) -> list[str]:
    found = client_of(storage).list_artifacts(folder.read_tracking()["run_id"], "samples")
    return [entry.path for entry in found]


@pytest.mark.parametrize("keep_old", [True, False], ids=["copied", "moved"])
def test_a_storage_at_another_place_writes_there_alone(
    storage: Path, tmp_path: Path, keep_old: bool
):
    before = sorted(path for path in storage.rglob("*") if path.is_file())
    new = tmp_path / "ü elsewhere 100%" / "runs"
    new.parent.mkdir()
    if keep_old:
        shutil.copytree(storage, new, symlinks=True)
    else:
        storage.rename(new)
    assert latest_uri(new) == tracking_uri(new)
    folder = make_run(new, "20261102-120000-bbbb")
    folder.finish("finished")
    track(new, folder)
    for run in (first_run(new), folder):
        assert pictures(new, run) == ["samples/step-10.png"]
        place = client_of(new).get_run(run.read_tracking()["run_id"]).info.artifact_uri
        assert place.startswith((new / "mlartifacts").as_uri())
    assert len(list(new.glob("mlartifacts/**/step-10.png"))) == 2
    if keep_old:
        assert sorted(path for path in storage.rglob("*") if path.is_file()) == before
    else:
        assert not storage.exists()


def test_runs_that_were_moved_without_the_file_get_one_at_their_new_place(
    storage: Path, tmp_path: Path
):
    new = tmp_path / "elsewhere"
    new.mkdir()
    (storage / "toy").rename(new / "toy")
    shutil.rmtree(storage)
    assert latest_uri(new) == tracking_uri(new)
    assert list(repair(new))[-1] == f"1 runs are in MLflow ({tracking_uri(new)})"
    assert pictures(new, first_run(new)) == ["samples/step-10.png"]
    assert not storage.exists()


def test_paths_of_runs_that_are_copied_again_do_not_depend_on_the_current_folder(
    storage: Path, monkeypatch: pytest.MonkeyPatch
):
    (storage / "mlflow.db").unlink()
    monkeypatch.chdir(storage.parent)
    list(repair(Path("runs")))
    tags = client_of(storage).get_run(first_run(storage).read_tracking()["run_id"]).data.tags
    assert tags["boxseg.folder"] == str(first_run(storage).path)


def test_a_storage_within_another_keeps_its_file(storage: Path, make_store: MakeStore):
    assert latest_uri(storage.parent) == tracking_uri(storage)
    make_store(storage.parent / "mlflow.db")
    assert list(repair(storage.parent)) == [f"1 runs are in MLflow ({tracking_uri(storage)})"]


def test_the_pages_of_a_storage_that_was_moved_show_its_new_place(storage: Path, tmp_path: Path):
    new = tmp_path / "elsewhere"
    storage.rename(new)
    catch_up(new, latest_uri(new))  # what `boxseg ui` does; all runs are in MLflow already
    assert pictures(new, first_run(new)) == ["samples/step-10.png"]
    place = client_of(new).get_run(first_run(new).read_tracking()["run_id"]).info.artifact_uri
    assert place.startswith((new / "mlartifacts").as_uri())


def test_a_store_that_the_settings_name_is_no_old_place_of_the_storage(
    storage: Path, tmp_path: Path, make_store: MakeStore
):
    (tmp_path / "other").mkdir()
    named = make_store(tmp_path / "other" / "mlflow.db")
    folder = RunFolder(storage / "toy" / "20261102-120000-bbbb")
    spec = RunSpec.model_validate({"tracking": {"uri": named}})
    folder.create(RunStatus(folder.path.name, "toy", **own_process()), dump_resolved(spec))
    folder.finish("finished")
    track(storage, folder, uri=named)
    assert list(repair(storage)) == [
        f"1 runs are in MLflow ({named})",
        f"1 runs are in MLflow ({tracking_uri(storage)})",
    ]
    assert len(client_of(storage).search_runs(["1"])) == 1


def test_the_same_storage_under_another_path_keeps_its_names(storage: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(storage)
    folder = make_run(tmp_path / "link", "20261102-120000-bbbb")
    folder.finish("finished")
    track(tmp_path / "link", folder)
    places = [
        client_of(storage).get_run(run.read_tracking()["run_id"]).info.artifact_uri
        for run in (first_run(storage), folder)
    ]
    assert all(place.startswith((storage / "mlartifacts").as_uri()) for place in places)


def test_a_run_deleted_in_mlflow_is_not_copied_again_until_asked_for(
    storage: Path, caplog: pytest.LogCaptureFixture
):
    client = client_of(storage)
    folder = make_run(storage, "20261102-120000-bbbb")
    tracker = Tracker(storage, "toy", logs=storage / "logs")
    tracker.add(folder)
    tracker.copy_leftovers()
    run_id = folder.read_tracking()["run_id"]
    client.delete_run(run_id)
    folder.report(20, {"train/loss": 1.0})
    folder.finish("finished")
    with caplog.at_level(logging.WARNING, logger="boxseg.tracking"):
        tracker.copy_leftovers()
        tracker.copy_leftovers()
    assert caplog.text.count("`boxseg runs track` brings it back") == 1
    assert "trying again" not in caplog.text
    assert client.get_run(run_id).info.lifecycle_stage == "deleted"

    done = list(repair(storage))
    assert "20261102-120000-bbbb was deleted in MLflow; it is back" in done
    assert client.get_run(run_id).info.lifecycle_stage == "active"
    assert client.get_run(run_id).info.status == "FINISHED"
    assert len(client.get_metric_history(run_id, "train/loss")) == 2
    assert list(repair(storage)) == [f"2 runs are in MLflow ({tracking_uri(storage)})"]


def test_a_run_after_its_experiment_was_deleted_brings_it_back(
    storage: Path, caplog: pytest.LogCaptureFixture
):
    client = client_of(storage)
    experiment = client.get_experiment_by_name("toy")
    client.delete_experiment(experiment.experiment_id)
    folder = make_run(storage, "20261102-120000-bbbb")
    folder.finish("finished")
    with caplog.at_level(logging.WARNING, logger="boxseg.tracking"):
        track(storage, folder)
    assert "the experiment toy was deleted in MLflow; it is back" in caplog.text
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_a_damaged_file_is_set_aside_and_written_again(
    storage: Path, capsys: pytest.CaptureFixture[str]
):
    content = (storage / "mlflow.db").read_bytes()
    (storage / "mlflow.db").write_bytes(content[:4096] + b"\xff" * 40960 + content[45056:])
    assert run_command(["runs", "track", "--storage", str(storage)]) == 0
    told = capsys.readouterr().out
    assert "MLflow's file is damaged; it is mlflow.db.damaged-1 now" in told
    assert f"1 runs are in MLflow ({tracking_uri(storage)})" in told
    folder = first_run(storage)
    run = client_of(storage).get_run(folder.read_tracking()["run_id"])
    assert run.data.metrics == {"train/loss": 2.0}
    assert pictures(storage, folder) == ["samples/step-10.png"]


def version_of(storage: Path) -> str:
    with contextlib.closing(sqlite3.connect(storage / "mlflow.db")) as connection:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def take_back_one_migration(storage: Path) -> None:
    config = mlflow.store.db.utils._get_alembic_config(tracking_uri(storage))
    alembic.command.downgrade(config, "-1")


def test_a_file_of_an_older_mlflow_is_brought_up_to_date(storage: Path):
    newest = version_of(storage)
    take_back_one_migration(storage)
    assert version_of(storage) != newest
    track = [sys.executable, "-m", "orchestration.cli", "runs", "track", "--storage", str(storage)]
    ended = subprocess.run(track, capture_output=True, text=True, check=True)
    assert f"1 runs are in MLflow ({tracking_uri(storage)})" in ended.stdout
    assert version_of(storage) == newest


def test_tables_that_mlflow_leaves_to_us_are_refused_with_the_command(
    storage: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object, **__: object) -> None:
        raise mlflow.MlflowException("Detected out-of-date database schema (found version 1)")

    monkeypatch.setattr(mlflow.MlflowClient, "search_experiments", refuse)
    with pytest.raises(ResourceError, match=r"`mlflow db upgrade sqlite:.*` brings them"):
        list(repair(storage))


@pytest.mark.parametrize("command", [["runs", "track"], ["ui"]], ids=["track", "ui"])
def test_tables_of_another_version_are_refused_with_the_command(storage: Path, command: list[str]):
    with contextlib.closing(sqlite3.connect(storage / "mlflow.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0c779009ac13'")
    # another process, as MLflow looks only once
    whole = [sys.executable, "-m", "orchestration.cli", *command, "--storage", str(storage)]
    ended = subprocess.run(whole, capture_output=True, text=True, check=False)
    assert ended.returncode == 5
    assert f"; `mlflow db upgrade {tracking_uri(storage)}` brings them" in ended.stderr
    assert "unexpected" not in ended.stderr


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits a minute for a lock."""
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **_: connect(path, timeout=0.1))


@pytest.mark.usefixtures("_impatient")
def test_pages_of_a_file_that_another_process_holds_are_refused(storage: Path):
    code = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('BEGIN EXCLUSIVE'); print(flush=True); input()"
    command = [sys.executable, "-c", code, str(storage / "mlflow.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(ResourceError, match="database is locked; if it is locked, end what"):
            catch_up(storage, latest_uri(storage))
        holder.communicate(b"\n")


def test_pages_of_a_damaged_file_are_refused_with_the_command(storage: Path):
    (storage / "mlflow.db").write_bytes(b"\xff" * 8192)
    with pytest.raises(ResourceError, match=r"not a database; .* `boxseg runs track` makes"):
        catch_up(storage, latest_uri(storage))


def test_pages_of_a_file_that_lacks_a_run_are_refused_with_the_command(
    storage: Path, make_store: MakeStore
):
    make_store(storage / "mlflow.db")  # as an earlier copy that was put back
    with pytest.raises(ResourceError, match=r"not found; `boxseg runs track` copies"):
        catch_up(storage, latest_uri(storage))
    list(repair(storage))
    assert catch_up(storage, latest_uri(storage)).sweep is None


def test_a_storage_without_runs_is_reported(tmp_path: Path):
    with pytest.raises(ConfigError, match="no runs here"):
        list(repair(tmp_path))

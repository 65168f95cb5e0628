"""A run ends cleanly in every case: finished, failed, interrupted, resumed."""

import os
import re
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from fake_training import make_training

from boxseg.errors import (
    BoxSegError,
    CheckpointError,
    ConfigError,
    DataError,
    NonFiniteLossError,
    StorageError,
)
from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import RunSpec, load_run
from orchestration.execute.run import train_run
from orchestration.execute.supervise import StopSignals
from orchestration.record.find_runs import list_runs
from orchestration.record.run_folder import RunFolder, RunStatus

TOY = {"train_images": 4, "val_images": 2, "size": 64}


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("storage")


def make_spec(storage: Path, **changes) -> RunSpec:
    values = {
        "name": "toy",
        "storage": storage,
        "data": {"toy": TOY},
        "train": {"steps": 20, "batch_size": 4, "report_every": 5},
        "resources": {"runner": "inline"},
        "qam": {"iou_thr": 0.5},
    }
    return RunSpec.model_validate(values | changes)


def only_new(storage: Path, before: set[str]) -> RunFolder:
    (status,) = [status for status in list_runs(storage) if status.id not in before]
    return RunFolder(Path(status.folder))


def known(storage: Path) -> set[str]:
    return {status.id for status in list_runs(storage)}


def make_interrupted(number):
    """A slow training whose own process is sent a signal while it runs, however late it began."""
    training = make_training(step_s=0.01)

    def train(config, **arguments):
        threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
        return training(config, **arguments)

    return train


def test_a_run_leaves_settings_status_metrics_and_mlflow_copy(storage):
    spec = make_spec(storage)
    result = train_run(spec, train_fn=make_training())
    assert result.status == "finished"
    assert result.folder == str(storage / "toy" / result.id)
    assert result.metrics == {"train/loss": 1 / 20, "val/mask_ap": 0.5, "val/box_ap": 0.5}
    folder = RunFolder(Path(result.folder))
    assert load_run(folder.config_path) == spec
    status = folder.status()
    assert (status.step, status.steps, status.status) == (20, 20, "finished")
    assert {"host", "profile", "method", "seed", "data_fingerprint"} <= set(status.tags)
    assert [step for step, _ in folder.history("val/mask_ap")] == [5, 10, 15, 20]
    assert status.mlflow_run_id
    assert (storage / "mlflow.db").exists()


def test_a_run_of_one_worker_on_this_machine_starts_no_ray(storage, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("Ray was started")

    monkeypatch.setattr("orchestration.execute.run.start_ray", refuse)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    result = train_run(make_spec(storage, resources={}), train_fn=make_training())
    assert result.status == "finished"


def test_the_loop_gets_one_thread_per_core_of_the_worker(storage):
    result = train_run(
        make_spec(storage, resources={"runner": "inline", "cpus_per_worker": 2}),
        train_fn=make_training(),
    )
    assert Path(result.folder, "starts").read_text().split()[1:] == ["0", "2"]


def test_a_failure_keeps_its_class_and_is_written_down(storage):
    before = known(storage)
    with pytest.raises(NonFiniteLossError, match="step 7: the loss is nan"):
        train_run(make_spec(storage), train_fn=make_training(fail_at=7))
    status = only_new(storage, before).status()
    assert (status.status, status.failure.kind, status.step) == ("failed", "NonFiniteLossError", 5)
    assert "NonFiniteLossError" in (Path(status.folder) / "traceback.txt").read_text()


def test_a_foreign_error_is_named_with_its_class(storage):
    with pytest.raises(BoxSegError, match="ZeroDivisionError: step 3"):
        train_run(
            make_spec(storage),
            train_fn=make_training(fail_at=3, error="ZeroDivisionError"),
        )


def test_a_termination_signal_saves_the_state_and_a_resume_reaches_the_same_end(storage):
    spec = make_spec(
        storage, train={"steps": 400, "batch_size": 4, "report_every": 5, "eval_every": 100}
    )
    first = train_run(spec, train_fn=make_interrupted(signal.SIGTERM))
    assert first.status == "interrupted"
    assert RunFolder(Path(first.folder)).status().status == "interrupted"
    again = train_run(spec, resume=first.id, train_fn=make_training())
    assert (again.id, again.status) == (first.id, "finished")
    assert again.metrics["val/mask_ap"] == 0.5
    starts = [
        int(line.split()[1]) for line in Path(first.folder, "starts").read_text().splitlines()
    ]
    assert starts[0] == 0
    assert 0 < starts[1] < 400
    steps = [step for step, _ in RunFolder(Path(first.folder)).history("train/loss")]
    assert steps == sorted(set(steps))
    assert steps[-1] == 400


def test_a_finished_run_that_is_started_again_only_reports_its_metrics(storage):
    result = train_run(make_spec(storage), train_fn=make_training())
    again = train_run(make_spec(storage), resume=result.folder, train_fn=make_training(fail_at=0))
    assert (again.status, again.metrics) == ("finished", result.metrics)
    longer = make_spec(storage, train={"steps": 24, "batch_size": 4, "report_every": 5})
    assert (
        train_run(longer, resume=result.id, train_fn=make_training()).metrics["train/loss"]
        == 1 / 20
    )
    assert RunFolder(Path(result.folder)).status().step == 24


def test_a_run_that_lost_all_its_checkpoints_does_not_start_over_in_silence(storage):
    result = train_run(make_spec(storage), train_fn=make_training())
    shutil.rmtree(Path(result.folder, "checkpoints"))
    with pytest.raises(
        CheckpointError, match="the run had one of step 20; put it back, or start a new run"
    ):
        train_run(make_spec(storage), resume=result.id, train_fn=make_training())
    assert RunFolder(Path(result.folder)).status().status == "finished"


def test_a_trial_is_resumed_by_its_sweep_alone(storage):
    sweep = RunFolder(storage / "toy" / "some-sweep")
    sweep.create(RunStatus("some-sweep", "toy", kind="sweep"), "")
    trial = RunFolder(sweep.path / "some-sweep-00")
    trial.create(
        RunStatus("some-sweep-00", "toy", status="interrupted", parent=".."),
        dump_resolved(make_spec(storage)),
    )
    with pytest.raises(
        ConfigError, match="is a trial; go on with its sweep by `boxseg sweep --resume`"
    ):
        train_run(make_spec(storage), resume=str(trial.path), train_fn=make_training())
    assert trial.status().status == "interrupted"


def test_a_running_run_and_an_unknown_one_cannot_be_resumed(storage):
    with pytest.raises(ConfigError, match="no such run"):
        train_run(make_spec(storage), resume="nonsense", train_fn=make_training())
    result = train_run(make_spec(storage), train_fn=make_training())
    folder = RunFolder(Path(result.folder))
    folder.start()
    assert folder.status().tags["host"] == socket.gethostname()
    with pytest.raises(ConfigError, match=f"is running in process {os.getpid()}"):
        train_run(make_spec(storage), resume=result.id, train_fn=make_training())
    folder.finish("finished")


def test_a_closed_terminal_saves_the_state_too(storage):
    spec = make_spec(storage, train={"steps": 400, "batch_size": 4, "report_every": 5})
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
    try:
        result = train_run(spec, train_fn=make_interrupted(signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert result.status == "interrupted"
    assert (Path(result.folder) / "checkpoints" / "last").exists()


def test_a_run_started_with_nohup_continues_without_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
        assert not signals.has_received()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_does_not_wait():
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.has_received()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_that_comes_once_a_run_has_ended_does_not_change_its_end(storage):
    before = known(storage)
    # sent by what is told of the end; the last words are still to come
    notify = {"command": ["sh", "-c", f"kill -INT {os.getpid()}"]}
    with pytest.raises(NonFiniteLossError, match="step 7: the loss is nan"):
        train_run(make_spec(storage, notify=notify), train_fn=make_training(fail_at=7))
    assert only_new(storage, before).status().status == "failed"


def test_progress_shows_steps_metrics_and_time_left_line_by_line(storage, capsys):
    train_run(make_spec(storage), train_fn=make_training(step_s=0.02))
    lines = capsys.readouterr().err.splitlines()
    # The time left comes first, as the end of a line is what a narrow terminal cuts off.
    assert re.match(r"step 5/20  (\d+ s left  )?loss 0\.2", lines[0])
    assert any(re.match(r"step \d+/20  \d+ s left  ", line) for line in lines)
    assert any(line.startswith("step 20/20  mask_ap 0.5") for line in lines)


def test_a_resume_with_other_settings_is_refused_and_changes_nothing(storage):
    first = train_run(make_spec(storage), train_fn=make_training())
    before = (Path(first.folder) / "config.yaml").read_text()
    other = make_spec(storage, qam={"iou_thr": 0.5, "k_top": 3})
    with pytest.raises(
        ConfigError, match=r"cannot go on with other settings: qam\.k_top 3 \(the run has 20\)"
    ):
        train_run(other, resume=first.id, train_fn=make_training())
    assert (Path(first.folder) / "config.yaml").read_text() == before


@pytest.mark.parametrize("last", ["name: ", "  k_top: "])
def test_a_resume_with_settings_that_were_cut_short_says_that_they_are_damaged(storage, last):
    first = train_run(make_spec(storage), train_fn=make_training())
    path = Path(first.folder) / "config.yaml"
    kept, _, _ = path.read_text().partition(f"\n{last}")
    path.write_text(f"{kept}\n")
    with pytest.raises(
        ConfigError, match=r"config\.yaml: is damaged: it ends before .*put a copy back"
    ):
        train_run(make_spec(storage), resume=first.id, train_fn=make_training())


def test_a_resume_on_changed_data_is_refused_and_changes_nothing(tmp_path):
    first = train_run(make_spec(tmp_path), train_fn=make_training())
    annotations = Path(first.tags["data"])
    annotations.write_text(annotations.read_text() + "\n")
    refusal = "had the fingerprint .* put the old files back, or start a new run without --resume"
    with pytest.raises(DataError, match=refusal):
        train_run(make_spec(tmp_path), resume=first.id, train_fn=make_training())
    status = RunFolder(first.folder).status()
    assert (status.status, status.tags) == ("finished", first.tags)


def test_a_resume_with_fewer_steps_than_are_saved_is_refused_and_changes_nothing(storage):
    first = train_run(make_spec(storage), train_fn=make_training())
    before = Path(first.folder, "config.yaml").read_text()
    shorter = make_spec(storage, train={"steps": 15, "batch_size": 4, "report_every": 5})
    with pytest.raises(
        ConfigError, match=r"has a checkpoint of step 20, beyond train\.steps 15; raise that"
    ):
        train_run(shorter, resume=first.id, train_fn=make_training())
    assert RunFolder(Path(first.folder)).status().status == "finished"
    assert Path(first.folder, "config.yaml").read_text() == before


def test_a_storage_that_is_moved_away_ends_the_run_at_once_and_is_not_created_again(tmp_path):
    storage = tmp_path / "storage"
    storage.mkdir()

    def training(config, *, folder: Path, **named):
        storage.rename(tmp_path / "elsewhere")
        time.sleep(30)

    began = time.monotonic()
    with pytest.raises(StorageError, match="the folder is gone; mount or restore it"):
        train_run(make_spec(storage), train_fn=training)
    assert time.monotonic() - began < 20
    assert not storage.exists()


def test_a_run_that_lost_its_best_checkpoint_continues_and_ends_with_an_existing_one(
    storage, monkeypatch
):
    spec, before = make_spec(storage, train={"steps": 20, "report_every": 1}), known(storage)
    scores = {5: 0.6, 10: 0.2, 15: 0.1, 20: 0.1}
    metrics = {step: {"val/mask_ap": score} for step, score in scores.items()}
    loop = make_training(script={spec.qam.k_top: metrics})

    def stopped_after_the_second_evaluation(*arguments, reporter, **named):
        reporter.should_stop = lambda: reporter.folder.stored().step >= 11
        reporter.folder.request_stop()
        return loop(*arguments, reporter=reporter, **named)

    train_run(spec, train_fn=stopped_after_the_second_evaluation)
    folder = only_new(storage, before)
    assert (folder.stored().status, folder.stored().best_step) == ("interrupted", 5)
    shutil.rmtree(folder.path / "checkpoints/step-00000005")
    status = train_run(spec, resume=folder.path.name, train_fn=loop)
    assert (status.status, status.best_step) == ("finished", 10)
    assert status.best == metrics[10]
    assert folder.best_checkpoint.name == "step-00000010"

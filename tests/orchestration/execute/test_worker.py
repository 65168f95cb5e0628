"""A training process tries again by itself where that can help, and only there."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from fake_training import make_training

from boxseg.engine.checkpoint import find_checkpoint_damage, folder_of
from boxseg.errors import DataError, StorageError
from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import RunSpec, SweepConfig
from orchestration.errors import PreemptedError
from orchestration.execute.payload import Payload
from orchestration.execute.worker import train_here
from orchestration.record.failures import FailureClass
from orchestration.record.run_folder import RunFolder, RunStatus, own_process


def make_payload(storage: Path, train_fn) -> Payload:
    values = {
        "name": "toy",
        "storage": storage,
        "train": {"steps": 20, "batch_size": 4, "report_every": 5},
    }
    spec = RunSpec.model_validate(values)
    folder = RunFolder(storage / "toy" / "run")
    folder.create(RunStatus("run", "toy", steps=20, **own_process()), dump_resolved(spec))
    return Payload(spec, folder.path, storage / ".data", train_fn=train_fn, sweep=SweepConfig())


def starting_steps(payload: Payload) -> list[int]:
    return [int(line.split()[1]) for line in (payload.folder / "starts").read_text().splitlines()]


def test_short_memory_splits_the_batch_until_it_fits_and_training_continues_from_the_checkpoint(
    tmp_path,
):
    payload = make_payload(tmp_path, make_training(parts_needed=3))
    sent: list[dict[str, float]] = []
    train_here(payload, device="cpu", send=sent.append)
    assert [each["step"] for each in sent] == [5, 5, 5, 10, 15, 20], (
        "the last evaluation is told again"
    )
    status = RunFolder(payload.folder).stored()
    assert (status.status, status.failure, status.accumulate) == ("finished", None, 4)
    assert starting_steps(payload) == [0, 5, 5]
    assert status.retries == [
        f"out_of_memory after step 5: each worker's batch in {parts} parts" for parts in (2, 4)
    ]
    assert [step for step, _ in RunFolder(payload.folder).history("train/loss")] == [5, 10, 15, 20]


def test_a_batch_of_single_images_cannot_be_split_further(tmp_path):
    payload = make_payload(tmp_path, make_training(parts_needed=5))
    with pytest.raises(MemoryError):
        train_here(payload, device="cpu")
    status = RunFolder(payload.folder).stored()
    assert (status.status, status.failure.failure_class) == ("failed", FailureClass.OUT_OF_MEMORY)
    assert starting_steps(payload) == [0, 5, 5]


def test_one_of_several_workers_leaves_the_next_try_to_ray(tmp_path):
    payload = make_payload(tmp_path, make_training(parts_needed=2))
    with pytest.raises(MemoryError):
        train_here(payload, device="cpu", workers=2)
    status = RunFolder(payload.folder).stored()
    assert (status.status, status.accumulate) == ("running", 2)
    train_here(payload, device="cpu", workers=2)
    assert RunFolder(payload.folder).stored().status == "finished"


@pytest.mark.parametrize("error", ["DataError", "ZeroDivisionError"])
def test_failures_that_would_recur_are_not_tried_again(tmp_path, error):
    payload = make_payload(tmp_path, make_training(fail_at=12, error=error))
    with pytest.raises((DataError, ZeroDivisionError)):
        train_here(payload, device="cpu")
    train_here(payload, device="cpu")  # as Ray may
    assert starting_steps(payload) == [0]
    assert RunFolder(payload.folder).stored().retries == []


def test_a_full_disk_ends_the_run_with_its_last_state(tmp_path):
    payload = make_payload(tmp_path, make_training(fail_at=12, error="StorageError"))
    with pytest.raises(Exception, match="step 12"):
        train_here(payload, device="cpu")
    status = RunFolder(payload.folder).stored()
    assert (status.status, status.failure.failure_class, status.step) == (
        "failed",
        FailureClass.DISK_FULL,
        10,
    )


class Killed(BaseException):
    """Ends a process at once, as `kill -9` does: nothing is written after it."""


def killed_in_the_last_evaluation(*arguments, reporter, **named):
    """The fake loop, killed when it has reported its last step but not yet saved it."""

    def die(report):
        real_on_step(report)
        if report.step == 20:
            raise Killed

    real_on_step, reporter.on_step = reporter.on_step, die
    return make_training()(*arguments, reporter=reporter, **named)


def test_a_run_killed_in_its_last_evaluation_has_not_ended(tmp_path):
    payload = make_payload(tmp_path, killed_in_the_last_evaluation)
    folder = RunFolder(payload.folder)
    with pytest.raises(Killed):
        train_here(payload, device="cpu")
    assert (folder.stored().step, folder.stored().status) == (20, "running")
    train_here(replace(payload, train_fn=make_training()), device="cpu")
    assert starting_steps(payload) == [0, 15]
    assert folder.stored().status == "finished"
    assert [step for step, _ in folder.history("val/mask_ap")] == [5, 10, 15, 20]


def test_an_unreported_evaluation_is_reported_by_the_next_process(tmp_path):
    payload = make_payload(tmp_path, make_training())
    folder = RunFolder(payload.folder)

    def killed_before_the_report(*arguments, reporter, **named):
        reporter.on_eval = lambda report: (_ for _ in ()).throw(Killed)
        return make_training()(*arguments, reporter=reporter, **named)

    with pytest.raises(Killed):
        train_here(replace(payload, train_fn=killed_before_the_report), device="cpu")
    sent: list[dict[str, float]] = []
    train_here(payload, device="cpu", send=sent.append)
    assert [step for step, _ in folder.history("val/mask_ap")] == [5, 10, 15, 20]
    assert [each["step"] for each in sent] == [5, 10, 15, 20]


def test_storage_that_cannot_even_record_the_failure_ends_the_run_at_once(tmp_path, monkeypatch):
    payload = make_payload(tmp_path, make_training(fail_at=12))

    def refuse(path, content):
        raise StorageError(f"{path} cannot be written: the disk is full")

    def training(*arguments, **named):
        monkeypatch.setattr("orchestration.record.run_folder.write_atomic", refuse)
        return make_training()(*arguments, **named)

    with pytest.raises(StorageError, match=r"status\.json cannot be written"):
        train_here(replace(payload, train_fn=training), device="cpu")
    assert starting_steps(payload) == [0]


def test_a_machine_about_to_be_taken_away_leaves_its_state_to_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestration.execute.reporter.STOP_POLL_S", -1.0)
    payload = make_payload(tmp_path, make_training())
    asked = []

    def taken_away() -> bool:
        asked.append(1)
        return len(asked) == 8

    with pytest.raises(PreemptedError, match="step 8 is saved"):
        train_here(payload, device="cpu", taken_away=taken_away)
    status = RunFolder(payload.folder).stored()
    assert (status.status, status.failure.failure_class) == ("running", FailureClass.PREEMPTED)
    assert status.retries == ["preempted after step 5: other machines go on from there"]
    train_here(payload, device="cpu")
    assert RunFolder(payload.folder).stored().status == "finished"
    assert starting_steps(payload) == [0, 8]


def test_a_requested_stop_wins_over_a_machine_about_to_be_taken_away(tmp_path):
    payload = make_payload(tmp_path, make_training())
    RunFolder(payload.folder).request_stop()
    train_here(payload, device="cpu", taken_away=lambda: True)
    assert RunFolder(payload.folder).stored().status == "interrupted"


SCORES = {5: 0.3, 10: 0.6, 15: 0.2, 20: 0.1}


def scripted():
    """A loop whose evaluations have these scores."""
    metrics = {step: {"val/mask_ap": score, "val/box_ap": 0.5} for step, score in SCORES.items()}
    return make_training(script={RunSpec().qam.k_top: metrics})


def killed_before_the_end(*arguments, reporter, **named):
    real_on_step = reporter.on_step

    def die(report):
        if report.step == 20:
            raise Killed
        real_on_step(report)

    reporter.on_step = die
    return scripted()(*arguments, reporter=reporter, **named)


@pytest.mark.parametrize(
    ("lost", "begins", "then", "end"), [([10], 15, 15, 15), ([10, 15], 0, None, 10)]
)
def test_the_best_that_a_run_reports_has_an_existing_checkpoint(tmp_path, lost, begins, then, end):
    payload = make_payload(tmp_path, killed_before_the_end)
    folder = RunFolder(payload.folder)
    with pytest.raises(Killed):
        train_here(payload, device="cpu")
    assert folder.stored().best_step == 10
    for step in lost:
        shutil.rmtree(folder_of(folder.path / "checkpoints", step))
    seen = []

    def look(*arguments, reporter, **named):
        on_best = reporter.on_best

        def listen(step, metrics):
            on_best(step, metrics)
            seen.append(folder.stored())

        reporter.on_best = listen
        return scripted()(*arguments, reporter=reporter, **named)

    train_here(replace(payload, train_fn=look), device="cpu")
    assert starting_steps(payload) == [0, begins]
    assert [(status.best_step, bool(status.best)) for status in seen] == [(then, then is not None)]
    status = folder.stored()
    assert (status.status, status.best_step) == ("finished", end)
    assert status.best["val/mask_ap"] == SCORES[end]
    assert folder.best_checkpoint == folder_of(folder.path / "checkpoints", end)
    assert find_checkpoint_damage(folder.best_checkpoint) is None

"""A training process tries again by itself where that can help, and only there."""

from pathlib import Path

import pytest
from fake_training import make_training

from boxseg.errors import DataError
from orchestration.config import RunSpec, dump_resolved
from orchestration.errors import PreemptedError
from orchestration.failures import FailureClass
from orchestration.run_folder import RunFolder, RunStatus, own_process
from orchestration.worker import Payload, train_here


def make_payload(storage: Path, train_fn) -> Payload:
    values = {"name": "toy", "storage": storage, "train": {"steps": 20, "batch_size": 4, "report_every": 5}}
    spec = RunSpec.model_validate(values)
    folder = RunFolder(storage / "toy" / "run")
    folder.create(RunStatus("run", "toy", steps=20, **own_process()), dump_resolved(spec))
    return Payload(spec, folder.path, storage / ".data", metric="val/mask_ap", train_fn=train_fn)


def starting_steps(payload: Payload) -> list[int]:
    return [int(line.split()[1]) for line in (payload.folder / "starts").read_text().splitlines()]


def test_short_memory_splits_the_batch_until_it_fits_and_goes_on_from_the_checkpoint(tmp_path):
    payload = make_payload(tmp_path, make_training(parts_needed=3))
    sent: list[dict[str, float]] = []
    train_here(payload, device="cpu", send=sent.append)
    assert [each["step"] for each in sent] == [5, 5, 5, 10, 15, 20], "the last evaluation is told again"
    status = RunFolder(payload.folder).stored()
    assert (status.status, status.failure, status.accumulate) == ("finished", None, 4)
    assert starting_steps(payload) == [0, 5, 5]
    assert status.retries == [f"out_of_memory after step 5: each worker's batch in {parts} parts" for parts in (2, 4)]
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
        train_here(payload, device="cpu", alone=False)
    status = RunFolder(payload.folder).stored()
    assert (status.status, status.accumulate) == ("running", 2)
    train_here(payload, device="cpu", alone=False)
    assert RunFolder(payload.folder).stored().status == "finished"


@pytest.mark.parametrize("error", ["DataError", "ZeroDivisionError"])
def test_what_would_fail_again_is_not_tried_again(tmp_path, error):
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
    assert (status.status, status.failure.failure_class, status.step) == ("failed", FailureClass.DISK_FULL, 10)


def test_a_machine_that_will_go_leaves_its_state_to_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestration.worker.STOP_POLL_S", -1.0)
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


def test_a_stop_that_was_asked_for_counts_more_than_a_machine_that_will_go(tmp_path):
    payload = make_payload(tmp_path, make_training())
    RunFolder(payload.folder).request_stop()
    train_here(payload, device="cpu", taken_away=lambda: True)
    assert RunFolder(payload.folder).stored().status == "interrupted"

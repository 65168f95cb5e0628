"""After a loss of power a disk holds what was promised, whole; on a real ext4 that forgets what was not synced."""

import json
from pathlib import Path

import pytest
from real_disks import mounted_ext4, why_no_mounts

from boxseg.config.method import ToyConfig
from boxseg.data.toy import ensure_toy
from boxseg.engine.checkpoint import find_best, find_sound, publish, save_checkpoint
from boxseg.files.writing import write_atomic
from orchestration.record.run_folder import RunFolder, RunStatus, own_process

pytestmark = pytest.mark.skipif(why_no_mounts() is not None, reason=str(why_no_mounts()))

NAMES_KEPT = pytest.mark.parametrize("names_kept", [True, False])
"""Whether names of files have reached the disk where their content has not: both are allowed to a file system."""


@pytest.fixture
def disk(tmp_path):
    with mounted_ext4(tmp_path / "disk") as disk:
        yield disk


def make_run(storage: Path) -> RunFolder:
    status = RunStatus("20260101-000000-aaaa", "toy", steps=100, **own_process())
    return RunFolder(storage / "toy" / status.id).create(status, "name: toy\n")


@NAMES_KEPT
def test_settings_status_and_all_that_was_reported_are_there(disk, names_kept):
    run = make_run(disk.path / "runs")
    for step in (20, 40, 60):
        run.report(step, {"train/loss": 1 / step})
    run.report(60, {"val/mask_ap": 0.5}, is_best=True)
    run.note("trial_start", trial="00")
    before = run.stored()
    disk.cut_power(names_kept=names_kept)
    assert run.config_path.read_text() == "name: toy\n"
    assert run.stored() == before
    assert run.history("train/loss") == [(20, 1 / 20), (40, 1 / 40), (60, 1 / 60)]
    assert run.history("val/mask_ap") == [(60, 0.5)]
    assert [event["event"] for event in run.journal()] == ["trial_start"]


@NAMES_KEPT
def test_a_change_is_there_as_soon_as_it_was_made(disk, names_kept):
    run = make_run(disk.path / "runs")
    run.finish("stopped")
    disk.cut_power(names_kept=names_kept)
    assert run.stored().status == "stopped"


@NAMES_KEPT
def test_a_published_checkpoint_is_there_with_its_pointers(disk, names_kept):
    checkpoints = disk.path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for step in (1, 2, 3):
        files = {"student.safetensors": bytes(100_000), "state.pt": b"state"}
        written = save_checkpoint(checkpoints, step=step, files=files, about={"best_step": 1})
        publish(checkpoints, written)
    disk.cut_power(names_kept=names_kept)
    assert find_sound(checkpoints) == checkpoints / "step-00000003"
    assert find_best(checkpoints) == checkpoints / "step-00000001"
    assert [(checkpoints / name).readlink().name for name in ("last", "best")] == [
        "step-00000003",
        "step-00000001",
    ]


def test_files_that_can_be_rebuilt_are_old_or_empty_and_never_a_hindrance(disk):
    run = make_run(disk.path)
    run.write_tracking({"run_id": "abc"})
    disk.cut_power()
    assert run.read_tracking() in ({}, {"run_id": "abc"})
    assert run.stored().mlflow_run_id in (None, "abc")


@NAMES_KEPT
def test_the_generated_data_set_is_whole(disk, names_kept):
    settings = ToyConfig(train_images=2, val_images=1, size=64)
    train, _ = ensure_toy(disk.path / "data", settings)
    pictures = {path.name: path.read_bytes() for path in train.images.iterdir()}
    annotations = train.annotations.read_bytes()
    disk.cut_power(names_kept=names_kept)
    assert {path.name: path.read_bytes() for path in train.images.iterdir()} == pictures
    assert train.annotations.read_bytes() == annotations


def test_files_written_atomically_are_the_old_or_the_new_ones(disk):
    path = disk.path / "table.json"
    for number in range(20):
        write_atomic(path, json.dumps({"number": number}))
    disk.cut_power()
    assert json.loads(path.read_text()) == {"number": 19}

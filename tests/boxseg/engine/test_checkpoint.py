"""Checkpoints appear whole, are found again, and say so when they are damaged."""

import errno
import os
import signal
from pathlib import Path

import pytest
import torch

from boxseg.engine import checkpoint
from boxseg.errors import CheckpointError, StorageError


def write(folder, step, value=0.0):
    files = checkpoint.pack(
        {"student": {"weight": torch.full((2, 2), value)}},
        {"optimizer": {"lr": 0.1}, "ranks": [{"numbers": torch.arange(3)}]},
    )
    return checkpoint.save_checkpoint(
        folder,
        step=step,
        files=files,
        about={"metrics": {"val/mask_ap": 0.5}},
    )


def test_what_was_saved_is_loaded(tmp_path):
    folder = write(tmp_path, 7, value=3.0)
    about = checkpoint.load_about(folder)
    assert (about["step"], about["metrics"]) == (7, {"val/mask_ap": 0.5})
    assert set(about["sha256"]) == {"student.safetensors", "state.pt"}
    assert torch.equal(checkpoint.load_network(folder, "student")["weight"], torch.full((2, 2), 3.0))
    assert torch.equal(checkpoint.load_state(folder)["ranks"][0]["numbers"], torch.arange(3))


def save(folder, step, *, is_best=False):
    written = write(folder, step)
    checkpoint.publish(folder, written, is_best=is_best)
    return written


def test_pointers_move_and_all_steps_go_but_the_best_and_the_last_two(tmp_path):
    folders = [save(tmp_path, step, is_best=step == 1) for step in (1, 2, 3, 4)]
    assert [folder.exists() for folder in folders] == [True, False, True, True]
    assert (tmp_path / "last").resolve() == folders[3].resolve()
    assert (tmp_path / "best").resolve() == folders[0].resolve()


@pytest.mark.parametrize("name", ["student.safetensors", "state.pt", "about.json"])
@pytest.mark.parametrize("damage", ["gone", "cut", "changed"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog, name, damage):
    assert checkpoint.find_sound(tmp_path) is None
    before, newest = (save(tmp_path, step) for step in (1, 2))
    assert checkpoint.find_sound(tmp_path) == newest
    file = newest / name
    data = file.read_bytes()
    file.unlink()
    if damage != "gone":
        middle = len(data) // 2
        file.write_bytes(data[:middle] if damage == "cut" else data[:middle] + b"?" + data[middle + 1 :])
    assert checkpoint.find_sound(tmp_path) == before
    assert name in caplog.text
    assert caplog.text.strip().endswith("going on from step-00000001")
    (before / "state.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no other checkpoint is left"):
        checkpoint.find_sound(tmp_path)


def kill_at(stage, folder):
    """Write step 2 in another process, which is killed on the way."""

    def die(*arguments, **others):
        os.kill(os.getpid(), signal.SIGKILL)

    def die_after_half(path, data):
        path.write_bytes(data[: len(data) // 2])
        if path.name == stage:
            die()
        return "0"

    child = os.fork()
    if child == 0:
        if stage == "rename":
            Path.rename = die
        elif stage == "publish":
            Path.symlink_to = die
        else:
            checkpoint._write = die_after_half
        save(folder, 2, is_best=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("stage", ["student.safetensors", "state.pt", "about.json", "rename", "publish"])
def test_a_kill_during_a_write_leaves_the_checkpoint_before_and_the_next_write_clears_up(tmp_path, stage):
    before = save(tmp_path, 1)
    kill_at(stage, tmp_path)
    assert checkpoint.find_sound(tmp_path) == before
    again = save(tmp_path, 2)
    assert checkpoint.find_sound(tmp_path) == again
    assert not list(tmp_path.glob(".step*"))


def test_a_full_disk_is_named_and_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    before = save(tmp_path, 1)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(StorageError, match=r"step-00000002 cannot be written .*: the disk is full; make room"):
        save(tmp_path, 2)
    assert checkpoint.find_sound(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir() if path.is_dir() and not path.is_symlink()] == ["step-00000001"]


def test_a_vanished_folder_is_named_and_not_made_anew(tmp_path):
    with pytest.raises(StorageError, match="the folder is gone; mount or restore it"):
        write(tmp_path / "unmounted" / "checkpoints", 1)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_no_step_folder(tmp_path):
    with pytest.raises(TypeError):
        checkpoint.save_checkpoint(tmp_path, step=1, files={"student.safetensors": None}, about={})
    assert not list(tmp_path.glob("step-*"))


def test_damage_and_absence_are_named(tmp_path):
    folder = write(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"has no teacher"):
        checkpoint.load_network(folder, "teacher")
    (folder / "student.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"student.safetensors is damaged"):
        checkpoint.load_network(folder, "student")
    (folder / "state.pt").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"state.pt is damaged"):
        checkpoint.load_state(folder)
    with pytest.raises(CheckpointError, match=r"no checkpoint here"):
        checkpoint.load_about(tmp_path / "nowhere")

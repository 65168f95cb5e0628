"""Checkpoints appear whole, are found again, and say so when they are damaged."""

import pytest
import torch

from boxseg.engine import checkpoint
from boxseg.errors import CheckpointError


def write(folder, step, value=0.0):
    return checkpoint.save_checkpoint(
        folder,
        step=step,
        networks={"student": {"weight": torch.full((2, 2), value)}},
        state={"optimizer": {"lr": 0.1}, "ranks": [{"numbers": torch.arange(3)}]},
        about={"metrics": {"val/mask_ap": 0.5}},
    )


def test_what_was_saved_is_loaded(tmp_path):
    folder = write(tmp_path, 7, value=3.0)
    assert checkpoint.load_about(folder) == {"step": 7, "metrics": {"val/mask_ap": 0.5}}
    assert torch.equal(checkpoint.load_network(folder, "student")["weight"], torch.full((2, 2), 3.0))
    assert torch.equal(checkpoint.load_state(folder)["ranks"][0]["numbers"], torch.arange(3))


def test_pointers_move_and_unneeded_steps_go(tmp_path):
    folders = []
    for step, is_best in ((1, True), (2, False), (3, False)):
        folders.append(write(tmp_path, step))
        checkpoint.publish(tmp_path, folders[-1], is_best=is_best)
    assert [folder.exists() for folder in folders] == [True, False, True]
    assert (tmp_path / "last").resolve() == folders[2].resolve()
    assert (tmp_path / "best").resolve() == folders[0].resolve()


def test_an_interrupted_write_leaves_no_step_folder(tmp_path):
    with pytest.raises(AttributeError):
        checkpoint.save_checkpoint(tmp_path, step=1, networks={"student": {"weight": None}}, state={}, about={})
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

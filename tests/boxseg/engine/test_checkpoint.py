"""Checkpoints appear whole, are found again, also in a copy, and are refused when they are damaged."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from copies import COPIES

from boxseg.engine import checkpoint
from boxseg.errors import CheckpointError, StorageError
from boxseg.predict import Predictor


def write(folder, step, value=0.0, **about):
    files = checkpoint.pack(
        {"student": {"weight": torch.full((2, 2), value)}},
        {"optimizer": {"lr": 0.1}, "ranks": [{"numbers": torch.arange(3)}]},
    )
    return checkpoint.save_checkpoint(
        folder,
        step=step,
        files=files,
        about={"metrics": {"val/mask_ap": 0.5}} | about,
    )


def test_what_was_saved_is_loaded(tmp_path):
    folder = write(tmp_path, 7, value=3.0)
    about = checkpoint.load_about(folder)
    assert (about["step"], about["metrics"]) == (7, {"val/mask_ap": 0.5})
    assert set(about["sha256"]) == {"student.safetensors", "state.pt", "about.json"}
    assert torch.equal(
        checkpoint.load_network(folder, "student")["weight"], torch.full((2, 2), 3.0)
    )
    assert torch.equal(checkpoint.load_state(folder)["ranks"][0]["numbers"], torch.arange(3))


def save(folder, step, **about):
    written = write(folder, step, **about)
    checkpoint.publish(folder, written)
    return written


@pytest.mark.parametrize("first", [1, 99_999_998])
def test_links_move_and_only_the_best_and_the_last_two_steps_are_kept(tmp_path, first):
    steps = range(first, first + 4)  # from step 100,000,000 on names have a digit more
    folders = [evaluated(tmp_path, step, best_step=first) for step in steps]
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
        file.write_bytes(
            data[:middle] if damage == "cut" else data[:middle] + b"?" + data[middle + 1 :]
        )
    assert checkpoint.find_sound(tmp_path) == before
    assert name in caplog.text
    assert caplog.text.strip().endswith("going on from step-00000001")
    (before / "state.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no other checkpoint is left"):
        checkpoint.find_sound(tmp_path)


def kill_at(stage, folder):
    """Write step 2 in another process, which is killed while it writes."""

    def die(*arguments, **others):
        os.kill(os.getpid(), signal.SIGKILL)

    def die_after_half(path, data):
        path.write_bytes(data[: len(data) // 2])
        if path.name == stage:
            die()

    child = os.fork()
    if child == 0:
        if stage == "rename":
            Path.rename = die
        elif stage == "publish":
            Path.symlink_to = die
        else:
            checkpoint.write_file = die_after_half
        save(folder, 2, best_step=2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(
    "stage", ["student.safetensors", "state.pt", "about.json", "rename", "publish"]
)
def test_a_kill_during_a_write_leaves_a_whole_checkpoint_and_the_next_write_clears_up(
    tmp_path, stage
):
    before = save(tmp_path, 1)
    kill_at(stage, tmp_path)
    whole = checkpoint.folder_of(tmp_path, 2) if stage == "publish" else before
    assert checkpoint.find_sound(tmp_path) == whole
    again = save(tmp_path, 2)
    assert checkpoint.find_sound(tmp_path) == again
    assert not list(tmp_path.glob(".step*"))


def test_a_full_disk_is_named_and_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    before = save(tmp_path, 1)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        StorageError, match=r"step-00000002 cannot be written .*: the disk is full; make room"
    ):
        save(tmp_path, 2)
    assert checkpoint.find_sound(tmp_path) == before
    assert [
        path.name for path in tmp_path.iterdir() if path.is_dir() and not path.is_symlink()
    ] == ["step-00000001"]


def test_a_vanished_folder_is_named_and_not_created_again(tmp_path):
    with pytest.raises(StorageError, match="the folder is gone; mount or restore it"):
        write(tmp_path / "unmounted" / "checkpoints", 1)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_vanishes_before_its_checkpoint_is_complete_is_named(tmp_path):
    with pytest.raises(StorageError, match="the folder is gone; mount or restore it"):
        checkpoint.publish(tmp_path / "unmounted", tmp_path / "unmounted" / "step-00000001")


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


def evaluated(folder, step, best_step):
    """A published checkpoint of an evaluation, of a run whose best one was that of `best_step`."""
    written = write(folder, step, value=float(step), evaluated=step, best_step=best_step)
    checkpoint.publish(folder, written)
    return written


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_has_its_newest_and_best_checkpoints_and_the_next_one_restores_the_links(
    tmp_path, way
):
    original, copy = tmp_path / "original", tmp_path / "copy"
    original.mkdir()
    evaluated(original, 2, best_step=2)
    evaluated(original, 4, best_step=2)
    COPIES[way](original, copy)
    assert checkpoint.load_about(checkpoint.find_sound(copy))["step"] == 4
    assert checkpoint.load_about(checkpoint.find_best(copy))["step"] == 2
    for name, step in (("best", 2), ("last", 4)):  # as people name them
        assert checkpoint.load_about(checkpoint.find_checkpoint(copy / name))["step"] == step
    evaluated(copy, 6, best_step=2)
    names = ["best", "last", "step-00000002", "step-00000004", "step-00000006"]
    assert sorted(each.name for each in copy.iterdir()) == names
    assert [(copy / name).readlink().name for name in ("best", "last")] == [
        "step-00000002",
        "step-00000006",
    ]
    assert all(checkpoint.find_checkpoint_damage(copy / name) is None for name in names)


@pytest.mark.parametrize("last", ["gone", "empty", "text"])
def test_a_broken_link_neither_restarts_training_nor_removes_sound_checkpoints(tmp_path, last):
    for step in (2, 4):
        evaluated(tmp_path, step, best_step=step)
    (tmp_path / "last").unlink()
    if last != "gone":
        (tmp_path / "last").write_text("" if last == "empty" else "no such folder")
    newest = checkpoint.find_sound(tmp_path)
    assert newest == tmp_path / "step-00000004"
    evaluated(tmp_path, 6, best_step=4)
    assert checkpoint.find_checkpoint_damage(newest) is None


def test_the_best_is_found_even_if_a_kill_came_before_its_link(tmp_path):
    evaluated(tmp_path, 2, best_step=2)
    better = write(tmp_path, 4, evaluated=4, best_step=4)
    assert (tmp_path / "best").readlink().name == "step-00000002"
    assert checkpoint.find_best(tmp_path) == better
    stopped = write(tmp_path, 5, evaluated=4, best_step=4)
    checkpoint.publish(tmp_path, stopped)
    assert (tmp_path / "best").readlink().name == "step-00000004"


@pytest.mark.parametrize("damage", ["gone", "unreadable"])
def test_an_earlier_checkpoint_does_not_take_the_place_of_the_best_unnoticed(tmp_path, damage):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    sound, best = (evaluated(checkpoints, step, best_step=step) for step in (2, 4))
    if damage == "gone":
        shutil.rmtree(best)
    else:
        (best / "about.json").write_text("{")
    for named in (tmp_path, checkpoints / "best"):
        assert checkpoint.find_checkpoint(named).resolve() == best.resolve()
    with pytest.raises(CheckpointError, match=rf"{sound} is sound; name that one"):
        Predictor(tmp_path)


def test_a_copy_without_links_warns_that_the_newest_checkpoint_may_have_been_the_best(
    tmp_path, caplog
):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    sound, newest = (evaluated(checkpoints, step, best_step=2) for step in (2, 4))
    (newest / "about.json").write_text("{")
    assert checkpoint.find_checkpoint(tmp_path) == sound
    assert not caplog.text, "the link says which one was the best"
    (checkpoints / "best").unlink()
    assert checkpoint.find_checkpoint(tmp_path) == sound
    assert f"{newest / 'about.json'} cannot be read, and may have been the best" in caplog.text


def test_folders_are_enough_on_a_disk_without_links(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")  # as exFAT does

    monkeypatch.setattr(Path, "symlink_to", refuse)
    for step in (10, 20):
        evaluated(tmp_path, step, best_step=10)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["step-00000010", "step-00000020"]
    assert checkpoint.find_sound(tmp_path).name == "step-00000020"
    assert checkpoint.find_best(tmp_path).name == "step-00000010"


def test_a_run_that_has_not_been_evaluated_has_no_best_checkpoint(tmp_path):
    stopped = write(tmp_path, 1, evaluated=0, best_step=0)
    checkpoint.publish(tmp_path, stopped)
    assert checkpoint.find_best(tmp_path) is None
    assert checkpoint.find_best(tmp_path / "nowhere") is None


def test_damaged_later_steps_are_removed_and_written_again(tmp_path):
    for step in (2, 4):
        evaluated(tmp_path, step, best_step=step)
    (tmp_path / "step-00000004" / "state.pt").write_bytes(b"short")
    assert checkpoint.find_sound(tmp_path).name == "step-00000002"
    evaluated(tmp_path, 3, best_step=2)
    assert (tmp_path / "best").readlink().name == "step-00000002"
    assert not (tmp_path / "step-00000004").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"step": 11},
        {"metrics": {"val/mask_ap": 0.9}},
        {"config": {"fcos": {"score_thr": 0.9}}},
        {"sha256": {}},
        {"sha256": None},
        {"more": 1},
    ],
)
def test_a_changed_description_is_damage(tmp_path, change):
    before, newest = (save(tmp_path, step) for step in (10, 12))
    about = json.loads((newest / "about.json").read_text())
    if change == {"sha256": {}}:
        change = {"sha256": about["sha256"] | {"state.pt": about["sha256"]["student.safetensors"]}}
    (newest / "about.json").write_text(json.dumps(about | change))
    for load in (
        checkpoint.load_about,
        checkpoint.load_state,
        lambda folder: checkpoint.load_network(folder, "student"),
    ):
        with pytest.raises(
            CheckpointError,
            match=r"about\.json is damaged: .*step-00000010 is sound; name that one",
        ):
            load(newest)
    assert checkpoint.find_sound(tmp_path) == before


@pytest.mark.parametrize(
    "content", ["", "[]", "null", "5", '"text"', "{}", '{"step": "2", "sha256": {}}', "[" * 10_000]
)
def test_an_unreadable_description_is_damage(tmp_path, content):
    newest = save(tmp_path, 2)
    (newest / "about.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"about\.json is damaged: .*; put a copy back"):
        checkpoint.load_about(newest)


@pytest.mark.parametrize("sums", ["[]", "5", '{"about.json": 5}'])
@pytest.mark.parametrize("step", ["null", '"two"', "2.5"])
def test_a_description_with_wrong_types_is_damage_in_any_folder(tmp_path, step, sums):
    before = save(tmp_path, 1)
    for name in ("last", "best"):
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).mkdir()
        (tmp_path / name / "about.json").write_text(f'{{"step": {step}, "sha256": {sums}}}')
    assert checkpoint.find_sound(tmp_path) == before


@pytest.mark.parametrize("name", ["about.json", "student.safetensors"])
def test_a_pipe_in_a_checkpoint_is_not_waited_for(tmp_path, name):
    before, newest = (save(tmp_path, step) for step in (1, 2))
    (newest / name).unlink()
    os.mkfifo(newest / name)
    assert checkpoint.find_sound(tmp_path) == before
    with pytest.raises(CheckpointError, match=f"{name} is damaged: it is a pipe, not a file"):
        checkpoint.load_network(newest, "student")


@pytest.mark.parametrize("place", ["header", "middle", "end"])
def test_one_changed_bit_of_the_weights_is_damage(tmp_path, place):
    before, newest = (save(tmp_path, step) for step in (1, 2))
    path = newest / "student.safetensors"
    data = bytearray(path.read_bytes())
    data[{"header": 20, "middle": len(data) // 2, "end": -1}[place]] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        CheckpointError,
        match=rf"student\.safetensors is damaged: its checksum .*{before.name} is sound",
    ):
        checkpoint.load_network(newest, "student")


def test_weights_of_another_network_are_refused(tmp_path):
    folder = save(tmp_path, 1)
    with pytest.raises(CheckpointError, match="student has the weights of another network"):
        checkpoint.load_weights(torch.nn.Linear(3, 3), folder, "student")


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 1)
    again = write(tmp_path, 1, value=5.0)
    assert float(checkpoint.load_network(again, "student")["weight"][0, 0]) == 5.0
    assert not list(tmp_path.glob(".*"))

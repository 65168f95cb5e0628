"""Commands that load a damaged checkpoint say so, name a sound one, and write no result."""

import json
import os
import shutil
from pathlib import Path

import pytest

from boxseg.engine.checkpoint import find_checkpoint, save_checkpoint
from boxseg.errors import ConfigError
from orchestration.cli.app import run
from orchestration.config.spec import RunSpec
from orchestration.planning.preflight import check
from orchestration.record.find_runs import resolve_start_from
from orchestration.record.run_folder import RunFolder, RunStatus


@pytest.fixture
def checkpoint(trained_run, tmp_path, monkeypatch) -> Path:
    """The only checkpoint of a run, free to be damaged."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(
        trained_run.checkpoint, tmp_path / "run" / "checkpoints" / trained_run.checkpoint.name
    )


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


COMMANDS = {
    "predict": ["predict", "run", "IMAGES"],
    "eval": ["eval", "run", "--data", "DATA", "--images", "IMAGES"],
    "label": ["label", "DATA", "--images", "IMAGES", "--run", "run", "--output", "out"],
    "export": ["export", "run", "--format", "safetensors", "--output", "out"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", ["weights", "description", "missing"])
def test_commands_refuse_a_damaged_checkpoint_and_write_nothing(
    checkpoint, trained_run, capsys, command, damage
):
    if damage == "description":
        about = json.loads((checkpoint / "about.json").read_text())
        about["classes"]["names"].reverse()
        (checkpoint / "about.json").write_text(json.dumps(about))
    for path in checkpoint.glob("*.safetensors"):
        if damage == "weights":
            flip(path)
        elif damage == "missing":
            path.unlink()
    places = {"IMAGES": str(trained_run.val.images), "DATA": str(trained_run.val.annotations)}
    assert run([places.get(word, word) for word in COMMANDS[command]]) == 1
    told = capsys.readouterr().err
    assert "error: " in told
    assert "unexpected" not in told
    assert "Traceback" not in told
    assert ("is missing" if damage == "missing" else "is damaged") in told
    assert ("about.json" if damage == "description" else ".safetensors") in told
    assert "put a copy back" in told
    left = {path.name for path in Path().iterdir()} - {"run"}
    assert not any(path.is_file() for name in left for path in Path(name).rglob("*"))


def test_a_sound_checkpoint_next_to_it_is_named(checkpoint, trained_run, capsys):
    sound = save_checkpoint(checkpoint.parent, step=0, files={"state.pt": b"?"}, about={})
    for path in checkpoint.glob("*.safetensors"):
        flip(path)
    assert run(["predict", str(checkpoint), str(trained_run.val.images)]) == 1
    assert f"{sound} is sound; name that one" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["weights", "gone"])
def test_runs_show_warns_of_a_damaged_best_checkpoint(checkpoint, capsys, damage):
    folder = checkpoint.parents[1]
    status = RunStatus("r1", "demo", status="finished", folder=str(folder))
    RunFolder(folder).create(status, "name: demo\n")
    assert run(["runs", "show", "run"]) == 0
    assert "warning" not in capsys.readouterr().err
    if damage == "gone":
        (checkpoint.parent / "best").symlink_to(checkpoint.name)
        shutil.rmtree(checkpoint)
    else:
        for path in checkpoint.glob("*.safetensors"):
            flip(path)
    assert run(["runs", "show", "run", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["id"] == "r1"
    assert "warning: the best checkpoint cannot be used: " in told.err
    assert "put a copy back, or name another checkpoint" in told.err


@pytest.mark.parametrize("damage", ["gone", "unreadable"])
def test_no_checkpoint_silently_takes_the_place_of_the_best(
    checkpoint, trained_run, capsys, damage
):
    best = checkpoint.parent / "step-00000004"
    status = RunStatus("r1", "demo", status="finished", best_step=4, best={"val/mask_ap": 0.5})
    RunFolder(checkpoint.parents[1]).create(status, "name: demo\n")
    if damage == "unreadable":
        best.mkdir()
        (best / "about.json").touch()
    way_out = f"{checkpoint} is sound; name that one"
    assert run(["runs", "show", "run"]) == 0
    assert way_out in capsys.readouterr().err
    assert run(["predict", "run", str(trained_run.val.images)]) == 1
    assert way_out in capsys.readouterr().err
    spec = RunSpec.model_validate({"model": {"start_from": "run"}, "storage": "runs"})
    with pytest.raises(ConfigError, match=r"model\.start_from: .*step-00000004"):
        check(resolve_start_from(spec))


def test_a_run_does_not_start_from_damaged_weights(checkpoint, tmp_path):
    assert find_checkpoint(checkpoint.parents[1]) == checkpoint
    for path in checkpoint.glob("*.safetensors"):
        flip(path)
    with pytest.raises(
        ConfigError, match=r"model\.start_from: .*(student|teacher)\.safetensors is damaged"
    ):
        check(
            RunSpec.model_validate(
                {"model": {"start_from": checkpoint}, "storage": tmp_path / "runs"}
            )
        )


@pytest.mark.parametrize("damage", ["cut", "gone", "described"])
def test_runs_ls_warns_of_a_damaged_best_checkpoint_without_reading_weights(
    checkpoint, capsys, damage
):
    folder = shutil.copytree(checkpoint.parents[1], Path("runs/demo/r1"))
    here = folder / "checkpoints" / checkpoint.name
    RunFolder(folder).create(RunStatus("r1", "demo", status="finished", best_step=1), "")
    assert run(["runs", "ls"]) == 0
    assert "warning" not in capsys.readouterr().err
    if damage == "cut":
        os.truncate(next(here.glob("*.safetensors")), 100)
    elif damage == "gone":
        shutil.rmtree(here)
    else:
        (here / "about.json").write_text("{}")
    assert run(["runs", "ls", "--json"]) == 0
    told = capsys.readouterr()
    assert "warning: the best checkpoint of 1 of these is gone or damaged: r1; " in told.err
    assert [each["id"] for each in json.loads(told.out)] == ["r1"]

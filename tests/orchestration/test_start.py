"""Starts from trained weights: runs are found by name, what is taken is kept on record, wrong weights are refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from boxseg.config.presets import merge
from boxseg.errors import ConfigError
from orchestration.cli.app import run as run_command
from orchestration.config.spec import RunSpec, SweepSpec, load_run
from orchestration.execute.run import train_run
from orchestration.planning.preflight import check
from orchestration.record.find_runs import list_runs, resolve_start_from
from orchestration.record.run_folder import RunFolder, RunStatus

SETTINGS = {
    "method": "boxinst",
    "data": {"toy": {"train_images": 4, "val_images": 2, "size": 64}},
    "model": {"backbone": "timm/test_resnet", "weights": "none", "channels": 16, "tower_convs": 1},
    "cond": {"branch_channels": 16, "branch_convs": 1},
    "train": {
        "steps": 2,
        "batch_size": 2,
        "image_size": 64,
        "report_every": 1,
        "eval_every": 2,
        "panels": 0,
    },
    "solver": {"optimizer": "adamw", "lr": 1e-3, "warmup": 0},
}


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("storage")


def make_spec(storage: Path, **changes) -> RunSpec:
    return RunSpec.model_validate(merge(SETTINGS | {"name": "toy", "storage": storage}, changes))


@pytest.fixture(scope="module")
def earlier(storage) -> RunStatus:
    """A run of two updates."""
    return train_run(make_spec(storage))


def test_a_run_starts_from_a_run_that_it_names_by_its_id(storage, earlier, capsys):
    assert earlier.start == ""
    spec = make_spec(
        storage, model={"start_from": earlier.id}, data={"toy": {"shapes": ["ring", "quad"]}}
    )
    check(spec)
    later = train_run(spec)
    checkpoint = Path(earlier.folder, "checkpoints/step-00000002")
    told = f"starts from {checkpoint} (student): 92 of 92 weights taken over, known classes: ring"
    assert later.start == told
    assert load_run(Path(later.folder, "config.yaml")).model.start_from == Path(earlier.folder)
    assert capsys.readouterr().err.count(told) == 1
    run_command(["runs", "show", later.id, "--storage", str(storage)])
    assert told in capsys.readouterr().out


def test_a_resumed_run_no_longer_needs_its_start(storage, earlier, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    start = RunFolder(shutil.copytree(earlier.folder, storage / "gone/20260101-000000-abcdef"))
    start.update(id=start.path.name)
    settings = {"storage": str(storage), "model": {"start_from": start.path.name}}
    Path("exp.yaml").write_text(json.dumps(merge(SETTINGS | {"name": "later"}, settings)))
    assert run_command(["train", "exp.yaml"]) == 0
    (step,) = re.findall(r"^best at step +(\d+)$", capsys.readouterr().out, re.MULTILINE)
    (later,) = [each for each in list_runs(storage) if each.name == "later"]
    assert int(step) == later.best_step
    shutil.rmtree(start.path)
    assert run_command(["train", "exp.yaml", "--set", "train.steps=3"]) == 2
    assert run_command(["train", "exp.yaml", "--set", "train.steps=3", "--resume", later.id]) == 0
    status = RunFolder(later.folder).status()
    assert (status.step, status.start) == (3, later.start)
    assert load_run(Path(later.folder, "config.yaml")).model.start_from == start.path


def test_names_of_runs_and_sweeps_become_paths(storage, earlier, tmp_path):
    def found(start: str) -> Path | None:
        return resolve_start_from(make_spec(storage, model={"start_from": start})).model.start_from

    sweep = RunFolder(tmp_path / "sweep")
    (sweep.path / "best").mkdir(parents=True)
    sweep.create(RunStatus("sweep", "toy", kind="sweep", best_run="trial-1"), "")
    assert found(earlier.id) == found(earlier.folder) == Path(earlier.folder)
    assert found(f"best:{sweep.path}") == sweep.path / "trial-1/checkpoints/best"
    (sweep.path / "trial-1/checkpoints").mkdir(parents=True)
    assert found(f"best:{sweep.path}") == sweep.path / "trial-1"
    assert found(str(sweep.path)) == sweep.path / "best"
    assert found("weights.pt") == Path("weights.pt")
    with pytest.raises(
        ConfigError,
        match=r"model.start_from: mine: no such run under .*; a path has a slash, as in",
    ):
        found("mine")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("../a/best", "{parent}/a/best"),
        ("w.pt", "{here}/w.pt"),
        ("./mine", "{here}/mine"),
        ("20261122-171500-k3f9ab", "20261122-171500-k3f9ab"),
        ("best:qam", "best:qam"),
    ],
)
def test_paths_belong_to_the_file_that_names_them_and_names_stay(tmp_path, written, read):
    path = tmp_path / "exp.yaml"
    path.write_text(f"model: {{start_from: '{written}'}}\n")
    assert load_run(path).model.start_from == Path(
        read.format(here=tmp_path, parent=tmp_path.parent)
    )


def test_weights_of_another_network_are_refused_before_anything_starts(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    save_file({"strange.weight": torch.zeros(3, 3)}, "other.safetensors")
    Path("exp.yaml").write_text(json.dumps(SETTINGS))
    for command in ("train", "sweep"):
        setting = "model.start_from=other.safetensors"
        if command == "sweep":
            setting = "sweep.space.model.start_from={choice: [other.safetensors]}"
        assert run_command([command, "exp.yaml", "--set", setting]) == 2
        told = capsys.readouterr().err
        assert (
            f"model.start_from: {tmp_path / 'other.safetensors'}: no layer has the name and shape"
            in told
        )
    assert not Path("runs").exists()


def test_a_sweep_may_choose_among_starts(storage, earlier):
    choice = {"choice": [None, earlier.id, "/nowhere/best"]}
    spec = SweepSpec.model_validate(
        {**SETTINGS, "storage": storage, "sweep": {"space": {"model.start_from": choice}}}
    )
    with pytest.raises(
        ConfigError, match=r"model.start_from: /nowhere/best: no such run, checkpoint or file"
    ):
        check(spec)
    assert resolve_start_from(
        spec.trial({"model.start_from": earlier.id}, 0)
    ).model.start_from == Path(earlier.folder)

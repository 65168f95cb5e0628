"""Where a run comes from is kept with it, and a repetition comes out the same."""

import json
import shutil
import subprocess
from pathlib import Path

import mlflow
import pytest
import yaml
from fake_training import make_training

from boxseg.errors import DataError
from orchestration.cli.app import run
from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import RunSpec
from orchestration.execute.run import train_run
from orchestration.record import origin
from orchestration.record.find_runs import list_runs
from orchestration.record.run_folder import RunFolder, RunStatus

SETTINGS = {
    "name": "again",
    "data": {"toy": {"train_images": 4, "val_images": 4, "size": 64, "seed": 3}},
    "model": {"backbone": "timm/test_resnet", "weights": "none", "channels": 16, "tower_convs": 1},
    "cond": {"branch_channels": 16, "branch_convs": 1, "max_per_image": 8},
    "train": {
        "steps": 4,
        "batch_size": 2,
        "image_size": 64,
        "report_every": 1,
        "eval_every": 0.5,
        "seed": 7,
    },
    "solver": {"optimizer": "adamw", "lr": 1e-3, "warmup": 0},
    "fcos": {"score_thr": 1e-5},
    "resources": {"runner": "inline"},
}
PACE = ("train/images_per_s", "train/step_s", "train/data_wait_s", "system/")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> RunFolder:
    """A run of four updates by the command."""
    root = tmp_path_factory.mktemp("trained")
    (root / "exp.yaml").write_text(yaml.safe_dump(SETTINGS | {"storage": "runs"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert run(["train", str(root / "exp.yaml")]) == 0
    (status,) = list_runs(root / "runs")
    return RunFolder(status.folder)


def reports(folder: RunFolder) -> list[tuple[int, dict[str, float]]]:
    """Every report with all its numbers but the pace and what the machine was doing."""
    kept = [
        (
            each.step,
            {name: value for name, value in each.metrics.items() if not name.startswith(PACE)},
        )
        for each in folder.reports_since(0)[0]
    ]
    return [(step, metrics) for step, metrics in kept if metrics]


def test_a_repeated_run_has_the_same_metrics_to_the_last_digit(trained, capsys):
    assert run(["train", "--from-run", str(trained.path)]) == 0
    said = capsys.readouterr().err
    (again,) = [
        each for each in list_runs(trained.path.parents[1]) if each.id != trained.path.name
    ]
    assert again.tags["repeats"] == trained.path.name
    assert reports(RunFolder(again.folder)) == reports(trained)
    assert len(reports(trained)) >= 6
    assert again.best == trained.status().best
    assert f"compare: boxseg runs compare {trained.path} {again.folder}" in said


def test_the_model_is_in_the_experiment_of_its_run_and_nothing_in_the_current_folder(trained):
    client = mlflow.MlflowClient(trained.read_tracking()["uri"])
    place = client.get_experiment_by_name("again").experiment_id
    models = client.search_logged_models(experiment_ids=[place])
    (model,) = [each for each in models if each.source_run_id == trained.read_tracking()["run_id"]]
    assert Path(model.artifact_location.removeprefix("file://")).is_relative_to(
        trained.path.parents[1]
    )
    assert [
        path.name
        for path in trained.path.parents[2].iterdir()
        if path.name not in ("exp.yaml", "runs")
    ] == []


def test_other_data_is_refused_with_3(trained, capsys):
    tags = trained.status().tags
    trained.update(tags={**tags, "data_fingerprint": "0" * 16})
    try:
        assert run(["train", "--from-run", str(trained.path)]) == 3
    finally:
        trained.update(tags=tags)
    assert (
        f"had the fingerprint {'0' * 16}, they have {tags['data_fingerprint']} now"
        in capsys.readouterr().err
    )


def test_images_that_changed_are_named_and_a_copy_is_the_same(tmp_path, monkeypatch):
    def spec_of(root: Path) -> RunSpec:
        source = {"images": root, "annotations": tmp_path / "boxes.json"}
        return RunSpec.model_validate({"data": {"train": source, "val": "toy"}})

    first, copy = tmp_path / "first", tmp_path / "copy"
    first.mkdir()
    names = [f"{number}.png" for number in range(6)]
    for name in names:
        (first / name).write_bytes(name.encode())
    (tmp_path / "boxes.json").write_text(json.dumps({"images": [{"file_name": n} for n in names]}))
    monkeypatch.setenv("BOXSEG_CACHE", str(tmp_path / "cache"))
    stored = tmp_path / "cache" / "stores" / "s3" / "bucket" / "images"
    shutil.copytree(first, stored)
    away = RunFolder(tmp_path / "away").create(RunStatus("away", "again"), "")
    origin.write_prints(away, spec_of(stored))
    assert json.loads((away.path / "images.json").read_text()) == {"train": {}, "val": {}}
    folder = RunFolder(tmp_path / "run").create(RunStatus("run", "again"), "")
    origin.check_same_data(folder, spec_of(first), {}, otherwise="start anew")  # of before
    origin.write_prints(folder, spec_of(first))
    shutil.copytree(first, copy)
    origin.check_same_data(folder, spec_of(copy), {}, otherwise="start anew")
    for name in names[1:5]:
        (copy / name).write_bytes(b"other")
    (copy / names[5]).unlink()
    origin.write_prints(folder, spec_of(copy))  # those of the beginning stay
    with pytest.raises(DataError) as refusal:
        origin.check_same_data(folder, spec_of(copy), {}, otherwise="start anew")
    assert str(refusal.value) == (
        f"{copy}: 4 of 6 images of run have changed since it began (1.png, 2.png, 3.png …); put the old files "
        "back, or start anew"
    )


def test_a_run_keeps_packages_and_hardware(trained):
    found = json.loads((trained.path / "environment.json").read_text())
    assert found["packages"]["torch"].startswith("2.")
    assert found["cores"] >= 1
    assert found["python"].startswith("3.")
    assert "gpu" not in found


@pytest.mark.parametrize(
    "arguments", [[], ["exp.yaml", "--from-run", "r"], ["--from-run", "r", "--resume", "r"]]
)
def test_a_run_or_a_file_is_named_not_both(arguments, capsys):
    assert run(["train", *arguments]) == 2
    assert "--from-run" in capsys.readouterr().err


def test_a_sweep_is_not_repeated_as_a_run(tmp_path, capsys):
    spec = RunSpec.model_validate(SETTINGS | {"storage": tmp_path})
    folder = RunFolder(tmp_path / "again" / "s").create(
        RunStatus("s", "again", kind="sweep"), dump_resolved(spec)
    )
    assert run(["train", "--from-run", str(folder.path)]) == 2
    assert "s is a sweep; repeat it with `boxseg sweep" in capsys.readouterr().err


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A small repository in place of ours."""
    (tmp_path / "boxseg").mkdir()
    (tmp_path / "boxseg" / "__init__.py").write_text("a = 1\n")
    me = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    for command in (["init", "-q"], ["add", "."], [*me, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(origin.boxseg, "__file__", str(tmp_path / "boxseg" / "__init__.py"))
    return tmp_path


def make_folder(storage: Path) -> RunFolder:
    tags = origin.provenance(RunSpec())
    return RunFolder(storage / "t" / "r").create(
        RunStatus("r", "t", tags=tags), dump_resolved(RunSpec())
    )


def test_changes_of_the_checkout_are_kept_as_a_patch(checkout, tmp_path):
    origin.write_changes(make_folder(tmp_path / "clean"))
    assert not (tmp_path / "clean/t/r/changes.diff").exists()
    (checkout / "boxseg/__init__.py").write_text("a = 2\n")
    folder = make_folder(tmp_path / "dirty")
    origin.write_changes(folder)
    assert folder.status().tags["git_dirty"] == "true"
    assert "-a = 1\n+a = 2\n" in (folder.path / "changes.diff").read_text()


def test_a_resumed_run_keeps_the_code_changes_that_it_is_resumed_with(checkout, tmp_path):
    spec = RunSpec.model_validate(
        {
            **SETTINGS,
            "storage": tmp_path / "runs",
            "train": {"steps": 4, "batch_size": 4, "report_every": 1},
        }
    )
    folder = RunFolder(train_run(spec, train_fn=make_training()).folder)
    for code, kept in (("a = 2\n", True), ("a = 1\n", False)):
        (checkout / "boxseg/__init__.py").write_text(code)
        train_run(spec, resume=folder.path.name, train_fn=make_training())
        changes = folder.path / "changes.diff"
        assert folder.status().tags["git_dirty"] == str(kept).lower()
        assert f"+{code}" in changes.read_text() if kept else not changes.exists()


def test_long_changes_are_only_counted(checkout, tmp_path):
    (checkout / "boxseg/__init__.py").write_text("x" * (origin.MAX_CHANGES_BYTES + 1))
    folder = make_folder(tmp_path / "runs")
    origin.write_changes(folder)
    assert (folder.path / "changes.diff").stat().st_size < 200
    assert "not kept" in (folder.path / "changes.diff").read_text()


def test_outside_of_a_checkout_nothing_is_recorded_about_the_code(tmp_path, monkeypatch):
    monkeypatch.setattr(origin.boxseg, "__file__", str(tmp_path / "boxseg" / "__init__.py"))
    assert "git_commit" not in origin.provenance(RunSpec())

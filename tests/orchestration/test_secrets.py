"""No secret that somebody writes into a setting reaches a file, a log, MLflow or a message."""

import json
import subprocess
from pathlib import Path

import pytest

from orchestration.cli.app import run
from orchestration.config.spec import ResourcesConfig, RunSpec, TrackingConfig
from orchestration.errors import ExitCode, ResourceError
from orchestration.record.failures import Failure
from orchestration.record.origin import own_command, write_changes
from orchestration.record.run_folder import RunFolder, RunStatus, own_process

SECRET = "hunter2secret"
EXPERIMENT = (
    "name: toy\ntrain: {steps: 1, batch_size: 1, image_size: 64, panels: 0}\n"
    "data: {toy: {train_images: 1, val_images: 1, size: 64}}\n"
    "model: {backbone: timm/test_resnet, weights: none, channels: 16, tower_convs: 1}\n"
    "cond: {branch_channels: 16, branch_convs: 1}\nqam: {color_weight: 0}\ntracking: {log_model: false}\n"
)

SETTINGS = [
    f"tracking.uri=postgresql://me:{SECRET}@db/mlflow",
    f"tracking.uri=postgresql://me@db/mlflow?sslpassword={SECRET}",
    f"tracking.uri=https://{SECRET}@mlflow.example.org",
    f"tracking={{uri: 'https://mlflow.example.org?token={SECRET}'}}",
    f"storage=s3://bucket/runs?aws_secret_access_key={SECRET}",
    f"storage=s3://key:{SECRET}@bucket/runs",
    f"resources.address=ray://{SECRET}@head:10001",
    f"data.train.images=https://host/images?sig={SECRET}",
    f"data.train.annotations=https://me:{SECRET}@host/a.json",
    f"model.weights=https://host/w.pt?X-Amz-Signature={SECRET}",
    f"sweep.space.model.weights={{choice: ['https://host/w.pt?api_key={SECRET}']}}",
    f"nothing.such=https://me:{SECRET}@host",
    f"tracking.uri=[https://me:{SECRET}@host",
    f"tracking.uri:postgresql://me:{SECRET}@db",
]
"""What somebody may give to `--set`."""


def files_with_secret(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and SECRET.encode() in path.read_bytes()
    ]


@pytest.mark.parametrize("command", ["train", "sweep"])
@pytest.mark.parametrize("override", SETTINGS)
def test_a_secret_in_a_setting_ends_the_command_and_is_repeated_nowhere(
    tmp_path: Path, monkeypatch, capfd, command: str, override: str
):
    monkeypatch.chdir(tmp_path)
    Path("exp.yaml").write_text(EXPERIMENT)
    assert run([command, "exp.yaml", "--set", override]) == ExitCode.USAGE
    told = "".join(capfd.readouterr())
    assert SECRET not in told
    assert override.partition("=")[0].partition(":")[0] in told, "its place is named"
    assert not Path("runs").exists()
    assert files_with_secret(tmp_path) == []


def test_the_way_out_is_named(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(
        f"{EXPERIMENT}resources: {{address: 'ray://me:{SECRET}@head:1'}}\n"
    )
    Path("exp.yaml").write_text("base: base.yaml\nresources: {address: null}\n")
    assert run(["train", "exp.yaml"]) == ExitCode.USAGE
    told = capsys.readouterr().err
    assert (
        "base.yaml:8: resources.address: has a password in its address; runs keep their settings"
        in told
    )
    for name in (
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "PGPASSWORD",
        "RAY_AUTH_TOKEN",
    ):
        assert name in told


def test_wrong_usage_does_not_repeat_the_secret_either(tmp_path: Path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert run(["train", "exp.yaml", f"https://me:{SECRET}@host"]) == ExitCode.USAGE
    assert SECRET not in "".join(capfd.readouterr())


def test_settings_made_in_code_are_looked_at_too():
    address = f"https://me:{SECRET}@host"
    for make in (
        lambda: TrackingConfig(uri=address),
        lambda: ResourcesConfig(address=address),
        lambda: RunSpec(storage=address),
    ):
        with pytest.raises(ValueError, match=r"password in its address|is no address") as caught:
            make()
        assert SECRET not in str(caught.value.errors()[0]["msg"])


def test_a_failure_of_a_run_does_not_show_an_address_of_the_environment():
    assert (
        SECRET not in Failure.of(ResourceError(f"nothing answers at https://{SECRET}@head:1")).text
    )


def test_neither_the_command_nor_the_code_changes_reveal_a_secret(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(
        "sys.argv",
        ["boxseg", "train", "exp.yaml", "--set", f"tracking.uri=https://me:{SECRET}@host"],
    )
    assert own_command() == "boxseg train exp.yaml --set tracking.uri=https://***@host"
    checkout = tmp_path / "checkout"
    (checkout / "boxseg").mkdir(parents=True)
    for name, text in (
        ("boxseg/__init__.py", ""),
        ("exp.yaml", "name: x\n"),
        ("settings.ini", "a = 1\n"),
    ):
        (checkout / name).write_text(text)
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -qm a"):
        subprocess.run(["git", "-C", str(checkout), *command.split()], check=True)
    monkeypatch.setattr("boxseg.__file__", str(checkout / "boxseg" / "__init__.py"))
    (checkout / "exp.yaml").write_text(
        f"name: y\ntracking: {{uri: 'postgresql://me:{SECRET}@db/x'}}\n"
    )
    (checkout / "settings.ini").write_text(f"a = 2\npassword = {SECRET}\n")
    folder = RunFolder(tmp_path / "run")
    folder.create(
        RunStatus("run", "toy", tags={"git_dirty": "true"}, **own_process()), "name: toy\n"
    )
    write_changes(folder)
    patch = (folder.path / "changes.diff").read_text()
    assert "+name: y" in patch
    assert "+a = 2" in patch
    assert files_with_secret(folder.path) == []


def test_secrets_of_the_environment_stay_there(tmp_path: Path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for name in (
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "PGPASSWORD",
        "AWS_SECRET_ACCESS_KEY",
    ):
        monkeypatch.setenv(name, SECRET)
    Path("exp.yaml").write_text(EXPERIMENT)
    assert run(["train", "exp.yaml", "--json"]) == ExitCode.DONE
    output = capfd.readouterr()
    assert json.loads(output.out)["status"] == "finished"
    assert SECRET not in output.out + output.err
    assert files_with_secret(tmp_path) == [], "MLflow's store and artifacts lie here too"

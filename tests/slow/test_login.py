"""MLflow behind a login: the server as compose starts it, and a run that tracks there."""

import contextlib
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import yaml
from faulty_proxy import free_port

from orchestration.cli.app import run
from orchestration.record.find_runs import list_runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
PASSWORD = "only-in-the-environment-7f3a"
EXPERIMENT = """
name: login
data: {toy: {train_images: 4, val_images: 2, size: 64}}
model: {backbone: timm/test_resnet, weights: none, channels: 16, tower_convs: 1}
cond: {branch_channels: 16, branch_convs: 1}
train: {steps: 2, batch_size: 2, image_size: 64, eval_every: 2, panels: 0}
"""


def server_script(secrets: Path, place: Path, port: int) -> str:
    """What compose's service runs, with files in place of the database and of the object store."""
    compose = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())
    (script,) = compose["services"]["mlflow"]["command"]
    script = re.sub(r"python -c '.*?'\n", "", script, flags=re.DOTALL)  # makes the bucket
    for theirs, ours in (
        ("$$", "$"),
        ("/run/secrets", str(secrets)),
        ("/tmp/login.ini", str(place / "login.ini")),
        ("postgresql://mlflow@postgres/mlflow", f"sqlite:///{place}/mlflow.db"),
        ("s3://mlflow", str(place / "artifacts")),
        ("0.0.0.0", "127.0.0.1"),
        ("5000", str(port)),
        ("--workers 2", "--workers 1"),
    ):
        assert theirs in script, theirs
        script = script.replace(theirs, ours)
    return script


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    place = tmp_path_factory.mktemp("server")
    secrets = place / "secrets"
    secrets.mkdir()
    for name in ("postgres_password", "s3_password", "mlflow_key"):
        (secrets / name).write_text("0123456789abcdef")
    (secrets / "mlflow_password").write_text(PASSWORD)
    port = free_port()
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            ["sh", "-euc", server_script(secrets, place, port)],
            env={
                **os.environ,
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # has `mlflow`
            },
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 120
        while not is_up(port):
            assert process.poll() is None, (place / "log").read_text()
            assert time.monotonic() < deadline, (place / "log").read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def is_up(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
        return True
    return False


def test_nothing_is_visible_without_the_password(address):
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{address}/api/2.0/mlflow/experiments/search?max_results=1")


def test_a_run_tracks_behind_the_login_and_leaves_the_password_nowhere(
    address, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    file = tmp_path / "login.yaml"
    file.write_text(EXPERIMENT)
    storage = tmp_path / "runs"
    assert (
        run(["train", str(file), f"--set=storage={storage}", f"--set=tracking.uri={address}"]) == 0
    )
    [status] = list_runs(storage)
    assert status.mlflow_run_id is not None
    tracked = mlflow.MlflowClient(address).get_run(status.mlflow_run_id)
    assert tracked.info.status == "FINISHED"
    assert tracked.data.metrics["val/mask_ap"] == status.metrics["val/mask_ap"]
    kept = [path for path in storage.rglob("*") if path.is_file()]
    assert kept
    assert [path for path in kept if PASSWORD.encode() in path.read_bytes()] == []


def test_a_run_without_the_password_is_trained_and_says_what_tracking_needs(
    address, tmp_path, caplog, monkeypatch
):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "login.yaml"
    file.write_text(EXPERIMENT)
    storage = tmp_path / "runs"
    assert (
        run(["train", str(file), f"--set=storage={storage}", f"--set=tracking.uri={address}"]) == 0
    )
    assert "401" in caplog.text
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in caplog.text

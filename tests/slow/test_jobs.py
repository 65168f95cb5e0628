"""Jobs on a cluster of three nodes with a token: submitted, followed, stopped; refused without one, no trace of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from local_cluster import LocalCluster, can_hide_folders, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

TINY = {
    "name": "tiny",
    "data": {"toy": {"train_images": 4, "val_images": 2, "size": 64}},
    "model": {"backbone": "timm/test_resnet", "weights": "none", "channels": 16, "tower_convs": 1},
    "cond": {"branch_channels": 16, "branch_convs": 1},
    "train": {
        "steps": 100_000,
        "batch_size": 2,
        "image_size": 64,
        "report_every": 1,
        "panels": 0,
        "eval_every": 1.0,
    },
    "resources": {"runner": "inline"},
}


@pytest.fixture(scope="module")
def boxseg(cluster: LocalCluster) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A command of the user, in a git checkout with one experiment."""
    project = cluster.folder / "project"
    project.mkdir()
    (project / "tiny.yaml").write_text(json.dumps(TINY))
    subprocess.run(["git", "init", "--quiet", str(project)], check=True)
    subprocess.run(["git", "-C", str(project), "add", "tiny.yaml"], check=True)

    def call(*arguments: str, hidden: str = "") -> subprocess.CompletedProcess[str]:
        given = cluster.environment | {"RAY_ADDRESS": cluster.dashboard}
        environment = {name: value for name, value in given.items() if name != hidden}
        command = [sys.executable, "-m", "orchestration.cli", *arguments]
        return subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, timeout=250
        )

    return call


def submit(cluster: LocalCluster, *arguments: str) -> list[str]:
    return [
        "jobs",
        "submit",
        "--storage",
        str(cluster.storage),
        "--python",
        sys.executable,
        *arguments,
    ]


def test_a_job_is_followed_to_its_end_and_its_exit_code(cluster, boxseg):
    done = boxseg(
        *submit(
            cluster,
            "sweep",
            "tiny.yaml",
            "--plan",
            "--set",
            "sweep.space.qam.k_top={choice: [1, 5]}",
        )
    )
    assert done.returncode == 0, done.stderr
    assert "trials" in done.stdout
    assert "the largest: tiny.yaml" in done.stderr
    failed = boxseg(*submit(cluster, "train", "tiny.yaml", "--set", "model.weights=/none.pth"))
    assert failed.returncode == 2, failed.stderr
    assert "/none.pth: no such file" in failed.stdout
    listed = json.loads(boxseg("jobs", "ls", "--json").stdout)
    assert [(job["status"], job["exit_code"]) for job in listed] == [
        ("FAILED", 2),
        ("SUCCEEDED", 0),
    ]
    told = boxseg("jobs", "status", listed[0]["id"]).stdout
    assert "FAILED" in told
    assert "boxseg train tiny.yaml" in told
    kept = json.loads((Path(listed[0]["storage"]) / "job.json").read_text())
    assert (kept["status"], kept["exit_code"]) == ("failed", 2)
    kept_log = boxseg("jobs", "logs", listed[0]["id"], "--storage", str(cluster.storage)).stdout
    assert "/none.pth: no such file" in kept_log


def test_without_the_token_nothing_is_accepted(cluster, boxseg):
    refused = boxseg(*submit(cluster, "train", "tiny.yaml"), hidden="RAY_AUTH_TOKEN_PATH")
    assert refused.returncode == 5
    assert "wants a token" in refused.stderr


def test_a_stopped_job_has_saved_its_state_and_the_token_is_nowhere(cluster, boxseg):
    submitted = boxseg(*submit(cluster, "--no-wait", "train", "tiny.yaml"))
    assert submitted.returncode == 0, submitted.stderr
    id = submitted.stdout.strip()
    wait_for(
        lambda: list(cluster.storage.glob("tiny/*/metrics.jsonl")),
        what="the first report",
        seconds=200,
    )
    stopped = boxseg("jobs", "stop", id, "--json")
    assert json.loads(stopped.stdout)["status"] == "STOPPED", stopped.stderr
    [run] = cluster.storage.glob("tiny/*/")
    assert json.loads((run / "status.json").read_text())["status"] == "interrupted"
    assert (run / "checkpoints" / "last" / "about.json").exists()
    assert json.loads((cluster.storage / ".jobs" / id / "job.json").read_text())["exit_code"] == 75
    followed = boxseg("jobs", "logs", id, "--follow")
    assert followed.returncode == 75
    assert "step 1/100000" in followed.stdout

    assert (cluster.storage / "mlflow.db").exists(), "the look below covers what MLflow holds"
    holding = [path for path in cluster.folder.rglob("*") if holds(path, cluster.token)]
    assert holding == [cluster.folder / "token"]
    commands = [
        " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])
    ]
    assert not [command for command in commands if cluster.token in command]


@pytest.mark.skipif(not can_hide_folders(), reason="needs root, or another right to mount folders")
def test_a_sweep_is_refused_where_a_node_sees_another_folder(cluster, boxseg):
    elsewhere = cluster.folder / "elsewhere"
    elsewhere.mkdir()
    cluster.add_node("blind", instead_of_storage=elsewhere)
    space = "sweep.space.qam.k_top={choice: [1, 5]}"
    refused = boxseg(*submit(cluster, "sweep", "tiny.yaml", "--set", space))
    assert refused.returncode == 5, refused.stderr
    assert f"{cluster.storage} is not the same folder on every node" in refused.stdout
    assert refused.stdout.count("has another folder there") == 1
    assert not list(cluster.storage.glob(".seen-*")) + list(elsewhere.iterdir())


def holds(path: Path, text: str) -> bool:
    return path.is_file() and not path.is_symlink() and text.encode() in path.read_bytes()

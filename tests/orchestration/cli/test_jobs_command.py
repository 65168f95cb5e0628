"""`boxseg jobs`: what is refused before anything is uploaded. Jobs on a real Ray are among the slow tests."""

from __future__ import annotations

import http.server
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestration.cli.app import run


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a checkout with one experiment; no token, no cluster named."""
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "exp.yaml").write_text("name: t\nsweep: {space: {qam.k_top: {choice: [1, 5]}}}\n")
    (root / "untracked.yaml").write_text("name: u\n")
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    subprocess.run(["git", "-C", str(root), "add", "exp.yaml"], check=True)
    monkeypatch.chdir(root)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return root


@pytest.fixture
def dashboard() -> Iterator[list[dict[str, str]]]:
    """A server that wants the token `right`; gives the headers that it got, and its address under `at`."""
    seen: list[dict[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(dict(self.headers))
            self.send_response(403 if "Authorization" in self.headers else 401)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    seen.append({"at": f"http://127.0.0.1:{server.server_port}"})
    yield seen
    server.shutdown()
    server.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_nothing_at_the_address_is_exit_5_in_seconds(capsys: pytest.CaptureFixture[str]):
    began = time.monotonic()
    assert run(["jobs", "ls", "--address", f"127.0.0.1:{free_port()}"]) == 5
    assert time.monotonic() - began < 10
    assert "no Ray dashboard answers" in capsys.readouterr().err


def test_a_silent_address_is_exit_5_in_seconds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("orchestration.jobs.client.ANSWER_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert run(["jobs", "ls", "--address", f"http://127.0.0.1:{silent.getsockname()[1]}"]) == 5


def test_a_cluster_elsewhere_without_a_token_is_not_even_asked(capsys: pytest.CaptureFixture[str]):
    assert run(["jobs", "ls", "--address", "http://192.0.2.1:8265"]) == 5
    assert "RAY_AUTH_TOKEN_PATH" in capsys.readouterr().err


def test_a_missing_and_a_wrong_token_give_different_messages_and_are_never_shown(
    dashboard, monkeypatch, capsys
):
    address = dashboard[0]["at"]
    assert run(["jobs", "ls", "--address", address]) == 5
    assert "wants a token" in capsys.readouterr().err
    assert "Authorization" not in dashboard[1]
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hush-hush")
    assert run(["jobs", "ls", "--address", address]) == 5
    shown = capsys.readouterr()
    assert "does not know our token" in shown.err
    assert "hush" not in shown.err + shown.out
    assert dashboard[2]["Authorization"] == "Bearer hush-hush"


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://user:pass@127.0.0.1:1"])
def test_other_kinds_of_addresses_are_refused(address: str, capsys: pytest.CaptureFixture[str]):
    assert run(["jobs", "ls", "--address", address]) == 2
    assert "dashboard" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["sweep", "exp.yaml", "--set", "qam.k_topp=1"], "did you mean qam.k_top"),
        (["sweep", "exp.yaml", "--nonsense"], "--nonsense"),
        (["train", "untracked.yaml"], "git add"),
        (["train", "--from-run", "best:t"], "train names no experiment file, and a job needs one"),
        (["jobs", "ls"], "cannot run as a job"),
        (["predict", "best:t", "images"], "--storage"),
    ],
)
def test_wrong_commands_are_refused_before_contacting_the_cluster(command, told, capsys):
    assert run(["jobs", "submit", "--address", f"127.0.0.1:{free_port()}", *command]) == 2
    assert told in capsys.readouterr().err


def test_a_manifest_needs_an_experiment_file(capsys: pytest.CaptureFixture[str]):
    assert run(["jobs", "manifest", "train", "--from-run", "best:t"]) == 2
    assert "name one, such as a copy of that run's config.yaml" in capsys.readouterr().err


def test_storage_in_the_uploaded_folder_is_refused_for_a_cluster_elsewhere(monkeypatch, capsys):
    monkeypatch.setattr("orchestration.jobs.client._check_access", lambda *_: None)
    monkeypatch.setattr("orchestration.jobs.client._make_client", lambda *_: None)
    assert (
        run(
            [
                "jobs",
                "submit",
                "--address",
                "http://192.0.2.1:8265",
                "--insecure",
                "sweep",
                "exp.yaml",
            ]
        )
        == 2
    )
    assert "--storage DIR" in capsys.readouterr().err


class Client:
    """Stands in for Ray's client; its job never ends."""

    def stop_job(self, id: str) -> None:
        self.asked = id

    def list_jobs(self) -> list[SimpleNamespace]:
        unknown = dict.fromkeys(
            ("metadata", "start_time", "end_time", "driver_exit_code", "message")
        )
        return [
            SimpleNamespace(
                submission_id="t-1", status="RUNNING", entrypoint="boxseg train", **unknown
            )
        ]

    def get_job_logs(self, id: str) -> str:
        raise RuntimeError("no agent")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    found = Client()
    monkeypatch.setattr("orchestration.jobs.client._check_access", lambda *_: None)
    monkeypatch.setattr("orchestration.jobs.client._make_client", lambda *_: found)
    return found


def test_a_job_that_does_not_stop_is_exit_5(client, monkeypatch, capsys):
    monkeypatch.setattr("orchestration.jobs.client.STOP_S", -30)
    assert run(["jobs", "stop", "t-1"]) == 5
    assert client.asked == "t-1"
    assert (
        "t-1 is still RUNNING 0 s after it should have stopped; see `boxseg jobs logs t-1`"
        in capsys.readouterr().err
    )


def test_requests_that_a_cluster_does_not_serve_are_reported_with_its_address_and_a_way_out(
    client, capsys
):
    assert run(["jobs", "logs", "t-1", "--address", "http://127.0.0.1:7"]) == 5
    assert (
        "cluster at http://127.0.0.1:7 did not do it: no agent; `boxseg jobs ls`"
        in capsys.readouterr().err
    )


def test_state_and_log_are_read_from_the_storage_without_a_cluster(tmp_path, capsys):
    folder = tmp_path / "runs" / ".jobs" / "t-1"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(
        json.dumps({"id": "t-1", "status": "finished", "exit_code": 0})
    )
    (folder / "log.txt").write_text("step 1\n")
    assert run(["jobs", "status", "t-1", "--storage", str(tmp_path / "runs"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exit_code"] == 0
    assert run(["jobs", "logs", "t", "--storage", str(tmp_path / "runs")]) == 0
    assert capsys.readouterr().out == "step 1\n"
    assert run(["jobs", "logs", "other", "--storage", str(tmp_path / "runs")]) == 2

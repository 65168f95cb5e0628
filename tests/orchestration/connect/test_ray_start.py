"""A Ray that boxseg starts: it may start late, and says why if it does not start at all."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestration.config.spec import RunSpec
from orchestration.connect import ray_start
from orchestration.connect.ray_start import LOOPBACK, SETTINGS, embedded_ray
from orchestration.connect.session import ENVIRONMENT, start_ray
from orchestration.errors import ResourceError
from orchestration.execute.run import train_run
from orchestration.record.find_runs import list_runs

FATAL = (
    "[2026-11-28 17:46:21,529 C 10379 10379] (raylet) node_manager.cc:3588:  An unexpected system state has occurred. "
    "You have likely discovered a bug in Ray. Please report it. Check failed: statussetor3588.has_value() Timed out "
    "waiting for file {session}/metrics_agent_port_ac54fd\n*** StackTrace Information ***\n/lib/libc.so.6 [0x7f60]\n"
)


class FakeRay:
    """Stands in for `ray.init`: it fails some times, with the logs of a node that waited in vain."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.asked: list[dict[str, Any]] = []

    def init(self, **arguments: Any) -> None:
        self.asked.append(arguments)
        if len(self.asked) <= self.failures:
            session = Path(arguments["_temp_dir"], "session_2026-11-28_17-46-04_1_2")
            (session / "logs").mkdir(parents=True)
            (session / "logs" / "raylet.err").write_text(FATAL.format(session=session))
            raise Exception("The current node timed out during startup.")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Changes of the environment are undone, and folders for temporary files are looked for in a folder of the test."""
    for name in (
        *ENVIRONMENT,
        *SETTINGS,
        *LOOPBACK,
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN_PATH",
        "RAY_ADDRESS",
    ):
        monkeypatch.setenv(name, "")  # so that the variable is put back afterwards
        monkeypatch.delenv(name)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(ray_start, "PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr("ray.shutdown", lambda: None)
    return


def fail(monkeypatch: pytest.MonkeyPatch, times: int) -> FakeRay:
    fake = FakeRay(times)
    monkeypatch.setattr("ray.init", fake.init)
    return fake


def test_a_ray_that_starts_late_is_tried_again_without_waiting_for_its_agents(
    monkeypatch, tmp_path, caplog
):
    import ray._private.parameter as parameter

    known = parameter.RayParams
    fake = fail(monkeypatch, 1)
    with embedded_ray(dashboard=False, logs=tmp_path / "logs"):
        pass
    assert [each["_metrics_export_port"] is None for each in fake.asked] == [True, False]
    assert {each["include_dashboard"] for each in fake.asked} == {False}
    assert parameter.RayParams is known
    assert (
        "Ray did not start (raylet: Timed out waiting for file metrics_agent_port_ac54fd)"
        in caplog.text
    )
    assert "Check failed" in (tmp_path / "logs/ray-start-1/raylet.err").read_text()
    assert not list((tmp_path / "t").iterdir())


def test_the_second_try_gives_ray_all_ports_that_it_would_wait_for(monkeypatch):
    import ray._private.parameter as parameter
    import ray._private.services as services

    started: list[list[str]] = []
    monkeypatch.setattr(
        services, "start_ray_process", lambda command, *_, **__: started.append(command)
    )
    with ray_start._late_agents_allowed() as metrics:
        params = parameter.RayParams(metrics_export_port=metrics)
        services.start_ray_process(["raylet"], "raylet", fate_share=True)
        services.start_ray_process(["gcs"], "gcs_server", fate_share=True)
    ports = {
        params.metrics_agent_port,
        params.runtime_env_agent_port,
        params.dashboard_agent_listen_port,
        metrics,
    }
    assert len(ports) == 4
    assert all(ports)
    assert started == [
        ["raylet", f"--dashboard_agent_listen_port={params.dashboard_agent_listen_port}"],
        ["gcs"],
    ]


def test_a_ray_that_never_starts_is_reported_in_one_line_with_existing_logs(monkeypatch, tmp_path):
    fail(monkeypatch, 3)
    logs = tmp_path / "logs"
    with pytest.raises(ResourceError) as told, start_ray(RunSpec(), logs=logs):
        pass
    text = str(told.value)
    assert (
        "tried 3 times: raylet: Timed out waiting for file metrics_agent_port_ac54fd (all that Ray wrote: "
        in text
    )
    assert "`boxseg doctor`" in text
    assert "\n" not in text
    named = re.findall(r"(?<!\S)/[^\s)]+", text)
    assert named == [str(logs / "ray-start-3")]
    assert (logs / "ray-start-3" / "raylet.err").read_text().startswith("[2026-11-28")
    assert not list((tmp_path / "t").iterdir())


def test_a_run_whose_ray_never_started_has_failed_with_the_cause(monkeypatch, tmp_path):
    fail(monkeypatch, 3)
    values = {
        "name": "late",
        "storage": tmp_path / "runs",
        "data": {"toy": {"train_images": 2, "val_images": 1, "size": 64}},
        "resources": {"runner": "ray_train"},
    }
    with pytest.raises(ResourceError, match="Timed out waiting"):
        train_run(RunSpec.model_validate(values))
    [status] = list_runs(tmp_path / "runs")
    assert (status.status, status.step) == ("failed", 0)
    assert (
        "Ray does not start on this machine, tried 3 times: raylet: Timed out"
        in status.failure.summary
    )
    assert Path(status.folder, "logs", "ray-start-1", "raylet.err").is_file()


def test_an_error_without_logs_is_shown_itself(monkeypatch):
    def refuse(**_: Any) -> None:
        raise OSError("no ports left")

    monkeypatch.setattr("ray.init", refuse)
    with (
        pytest.raises(ResourceError, match=r"tried 3 times: no ports left; .* `boxseg doctor`"),
        embedded_ray(dashboard=False),
    ):
        pass


def test_after_a_stop_signal_ray_is_not_started_again(monkeypatch):
    fake = fail(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt), embedded_ray(dashboard=False, give_up=lambda: True):
        pass
    assert len(fake.asked) == 1


def test_a_dashboard_is_asked_for_only_where_ray_train_needs_it(monkeypatch, tmp_path):
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
    fake = fail(monkeypatch, 0)
    for runner in ("auto", "inline", "ray_train"):
        with start_ray(
            RunSpec.model_validate({"resources": {"runner": runner}}), logs=tmp_path / runner
        ):
            pass
    assert [each["include_dashboard"] for each in fake.asked] == [False, False, True]


def test_logs_of_ray_are_kept_after_a_failure(monkeypatch, tmp_path):
    fake = fail(monkeypatch, 0)

    def use() -> None:
        written = Path(fake.asked[0]["_temp_dir"], "session_2026", "logs")
        written.mkdir(parents=True)
        (written / "raylet.err").write_text("a node died")
        (written / "worker-1.out").write_text("said a worker")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), embedded_ray(dashboard=False, logs=tmp_path / "logs"):
        use()
    assert (tmp_path / "logs/ray-session/raylet.err").read_text() == "a node died"
    assert [path.name for path in (tmp_path / "logs/ray-session").iterdir()] == ["raylet.err"]
    assert (tmp_path / "logs/workers/worker-1.out").read_text() == "said a worker"


def test_only_processes_of_a_failed_start_are_ended_including_orphans(tmp_path):
    script = "import time; time.sleep(60)"
    named = [sys.executable, "-c", script, f"--session={tmp_path}/ray1/session"]
    ours = subprocess.Popen(named)
    leave = f"{shlex.join(named)} >/dev/null 2>&1 & echo $!"
    orphan = int(
        subprocess.run(["sh", "-c", leave], capture_output=True, text=True, check=True).stdout
    )
    other = subprocess.Popen([sys.executable, "-c", script])
    try:
        ray_start._end_processes(tmp_path / "ray1")
        ours.wait(timeout=10)
        assert (
            not psutil.pid_exists(orphan)
            or psutil.Process(orphan).status() == psutil.STATUS_ZOMBIE
        )
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()

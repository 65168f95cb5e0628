"""The end of a run or sweep is announced once, in one line; a failing announcement changes nothing."""

import contextlib
import http.server
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from boxseg.errors import ConfigError, DataError
from orchestration.cli.app import run
from orchestration.config.notify import NotifyConfig
from orchestration.config.resolved import dump_resolved, params_of, parse_resolved
from orchestration.config.spec import RunSpec, SweepSpec, load_sweep
from orchestration.execute import notify
from orchestration.execute import supervise as supervise_module
from orchestration.execute.notify import notify_end
from orchestration.execute.supervise import supervise
from orchestration.planning.preflight import find_faults
from orchestration.record.run_folder import RunFolder, RunStatus, own_process

WRITE = """
import json, sys
with open(sys.argv[1], "a") as file:
    file.write(json.dumps(sys.argv[2:]) + "\\n")
"""
SWEEP = {
    "search": "grid",
    "space": {"qam.k_top": {"choice": [1, 5, 10]}},
}


class Told:
    """A program that writes down its arguments."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.command = [sys.executable, "-c", WRITE, str(path)]

    @property
    def words(self) -> list[list[str]]:
        """Arguments of each call."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [json.loads(line) for line in lines]

    @property
    def lines(self) -> list[str]:
        return [arguments[-1] for arguments in self.words]


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path / "told.txt")


def make_spec(tmp_path: Path, **notify) -> RunSpec:
    values = {"name": "toy", "storage": tmp_path / "runs", "notify": notify}
    return RunSpec.model_validate(values)


def make_run(spec: RunSpec, **changes) -> RunFolder:
    """A run of 100 steps that has ended at 90 s with mask AP 0.25, unless `changes` say otherwise."""
    folder = RunFolder(spec.storage / spec.name / "20260101-000000-aaaa")
    about = {"status": "finished", "step": 100, "steps": 100}
    about |= {"created": 1000.0, "started": 1000.0, "ended": 1090.0}
    about |= {"best": {"val/mask_ap": 0.25}, **own_process(), **changes}
    return folder.create(RunStatus(folder.path.name, spec.name, **about), dump_resolved(spec))


@contextlib.contextmanager
def server(code: int = 200, wait_s: float = 0.0) -> Iterator[tuple[str, list[dict]]]:
    """An address on this machine, and what was posted there."""
    posted: list[dict] = []
    may_answer = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            kind = self.headers["Content-Type"]
            posted.append({"path": self.path, "kind": kind} | json.loads(self.rfile.read(length)))
            may_answer.wait(wait_s)
            with contextlib.suppress(OSError):  # nobody may wait any more
                self.send_response(code)
                self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}", posted
        finally:
            may_answer.set()
            listening.shutdown()
            thread.join()


def test_a_program_gets_the_line_as_it_is_and_no_shell_reads_it(tmp_path, told, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = make_spec(tmp_path, command=[*told.command, "to me"])
    failure = {"kind": "DataError", "text": "$(touch x); `touch x`\nline 2"}
    notify_end(make_run(spec, status="failed", failure=failure), spec)
    line = (
        "run toy 20260101-000000-aaaa failed: data: $(touch x); `touch x`; "
        "best val/mask_ap 0.2500; step 100 of 100; 2 min"
    )
    assert told.words == [["to me", line]]
    assert not (tmp_path / "x").exists()


def test_a_web_address_gets_the_line_as_json(tmp_path, monkeypatch):
    with server() as (address, posted):
        monkeypatch.setenv("MY_TOPIC", "s3cret")
        spec = make_spec(tmp_path, url=f"{address}/${{MY_TOPIC}}")
        notify_end(make_run(spec), spec)
    line = "run toy 20260101-000000-aaaa finished: best val/mask_ap 0.2500; step 100 of 100; 2 min"
    about = {"path": "/s3cret", "kind": "application/json"}
    assert posted == [about | {"text": line, "content": line}]


def test_a_sweeps_message_has_its_best_trial_and_the_number_of_each_end(tmp_path, told):
    values = {"name": "toy", "storage": tmp_path / "runs", "sweep": SWEEP}
    spec = SweepSpec.model_validate(values | {"notify": {"command": told.command}})
    sweep = make_run(
        spec, kind="sweep", steps=3, best={"val/mask_ap": 0.5}, best_run="20260101-000000-aaaa-01"
    )
    for number, status in enumerate(("finished", "finished", "failed")):
        trial = RunFolder(sweep.path / f"{sweep.path.name}-{number:02d}")
        about = {"status": status, "description": f"k_top={number}", **own_process()}
        trial.create(RunStatus(trial.path.name, "toy", parent="..", **about), "")
    notify_end(sweep, spec)
    assert told.lines == [
        "sweep toy 20260101-000000-aaaa finished: best val/mask_ap 0.5000 with k_top=1; "
        "2 finished, 1 failed of 3 trials; 2 min"
    ]


@pytest.mark.parametrize("what", ["away", "answers 500", "too slow", "no variable"])
def test_an_unreachable_address_is_reported_once_without_secrets(
    what, tmp_path, caplog, monkeypatch
):
    slow = 5.0 if what == "too slow" else 0.0
    with server(code=500, wait_s=slow) as (address, _):
        if what == "away":
            address = "http://127.0.0.1:9"
        path = "${NO_SUCH_VARIABLE}" if what == "no variable" else "s3cret"
        monkeypatch.setattr(notify, "WAIT_S", 0.3 if slow else 5)
        spec = make_spec(tmp_path, url=f"{address}/{path}")
        began = time.monotonic()
        notify_end(make_run(spec), spec)
        assert time.monotonic() - began < 3
    (record,) = caplog.records
    reasons = {
        "away": "ConnectionRefusedError",
        "answers 500": "the address answered 500",
        "too slow": "TimeoutError",
        "no variable": "notify.url: the environment has no NO_SUCH_VARIABLE",
    }
    assert reasons[what] in record.getMessage()
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["/nowhere/program"], "FileNotFoundError"),
        (["sh", "-c", "echo one; echo two >&2; exit 3"], "ended with 3"),
        (["sh", "-c", "sleep 5 & sleep 5"], "TimeoutExpired"),
    ],
)
def test_a_failing_or_hanging_program_is_reported_once(
    command, reason, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(notify, "WAIT_S", 0.3)
    spec = make_spec(tmp_path, command=command)
    began = time.monotonic()
    notify_end(make_run(spec), spec)
    assert time.monotonic() - began < 3
    (record,) = caplog.records
    assert reason in record.getMessage()


class NoTracker:
    """Stands in for MLflow, which takes seconds to load."""

    def __init__(self, *_: object, **__: object) -> None: ...
    def add(self, folder: RunFolder) -> None: ...
    def start(self) -> None: ...
    def close(self, timeout_s: float = 0.0) -> None: ...


@pytest.mark.parametrize("how", ["well", "error", "signal", "second signal", "storage gone"])
def test_each_end_is_notified_exactly_once(how, tmp_path, told, monkeypatch):
    monkeypatch.setattr(supervise_module, "Tracker", NoTracker)
    spec = make_spec(tmp_path, command=told.command)
    folder = make_run(spec, status="created", ended=None)

    def work(supervisor) -> None:
        if how == "error":
            raise DataError("no such image")
        if how == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
            assert supervisor.signals.has_received()
            return
        if how == "second signal":
            raise KeyboardInterrupt
        if how == "storage gone":
            (tmp_path / "runs").rename(tmp_path / "elsewhere")
            raise DataError("no such image")
        folder.finish("finished")

    with contextlib.suppress(BaseException), supervise(folder, spec) as supervisor:
        work(supervisor)
    ends = {
        "well": "finished:",
        "error": "failed: data: no such image",
        "signal": "interrupted:",
        "second signal": "interrupted:",
        "storage gone": "failed: disk_full:",
    }
    (line,) = told.lines
    assert line.startswith(f"run toy 20260101-000000-aaaa {ends[how]}")
    if how == "signal":  # a run that goes on has another end
        with supervise(folder, spec):
            folder.finish("finished")
        assert [line.split()[3] for line in told.lines] == ["interrupted:", "finished:"]


def test_a_run_does_not_store_whom_it_notifies(tmp_path):
    spec = SweepSpec.model_validate(
        {
            "storage": tmp_path,
            "sweep": SWEEP,
            "notify": {"url": "https://ntfy.example.org/s3cret", "command": ["tell", "s3cret"]},
        }
    )
    assert "s3cret" not in dump_resolved(spec)
    assert not [
        name for name in params_of(parse_resolved(dump_resolved(spec))) if "notify" in name
    ]
    assert spec.trial({"qam.k_top": 5}, seed=0).notify == NotifyConfig()


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("url: ntfy.example.org/mine", "is not a web address"),
        ("url: file:///etc/passwd", "is not a web address"),
        ("url: https://hooks.slack.com/services/T0/B0/s3cret", "looks like a key or token"),
        ("url: https://me:s3cret@example.org/", "has a password in its address"),
        ("command: mail me", "it must be a list"),
        ("command: []", "at least 1 value"),
    ],
)
def test_impossible_notify_settings_are_refused(setting, reason, tmp_path):
    file = tmp_path / "exp.yaml"
    file.write_text(f"notify:\n  {setting}\nsweep: {json.dumps(SWEEP)}\n")
    with pytest.raises(ConfigError) as raised:
        load_sweep(file)
    assert reason in str(raised.value)
    assert f"{file}:2" in str(raised.value)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"url": "${NO_SUCH_VARIABLE}"}, "the environment has no NO_SUCH_VARIABLE"),
        ({"url": "${HOME}"}, "is not a web address"),
        ({"command": ["no-such-program"]}, "no-such-program is no program"),
    ],
)
def test_unreachable_notify_targets_are_found_before_the_start(setting, reason, tmp_path):
    (fault,) = find_faults(make_spec(tmp_path, **setting))
    assert reason in str(fault)


def test_a_plan_sends_no_notification(tmp_path):
    file = tmp_path / "exp.yaml"
    touch = {"command": ["sh", "-c", f"touch {tmp_path}/told"]}
    file.write_text(json.dumps({"storage": str(tmp_path), "sweep": SWEEP, "notify": touch}))
    assert run(["sweep", str(file), "--plan"]) == 0
    assert not (tmp_path / "told").exists()

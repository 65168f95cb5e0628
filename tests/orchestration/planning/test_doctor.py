"""`boxseg doctor`: each fault has a way out, and only what hinders work ends with an error."""

import json
from pathlib import Path

import pytest

from orchestration.cli.app import run
from orchestration.planning import doctor

RUN_PYTHON = doctor._run_python


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """No packages are loaded, and the home folder is empty."""
    monkeypatch.setattr(doctor, "_run_python", lambda program, limit_s=0: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.chdir(tmp_path)


def findings(storage=Path("runs")):
    return {each.what: each for each in doctor.examine(storage)}


def test_a_sound_machine_has_no_fault(capsys):
    assert run(["doctor", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {"python", "storage", "torch", "ray", "mlflow", "gpu", "ray access"} <= {
        each["what"] for each in shown
    }


def test_a_package_that_is_missing_old_or_broken_is_a_fault(monkeypatch, capsys):
    versions = {"torch": "2.9.1", "ray": None}
    known = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: versions.get(name, known(name)))
    monkeypatch.setattr(
        doctor, "_run_python", lambda program, limit_s=0: "boom" if "mlflow" in program else None
    )
    found = findings()
    assert "older than 2.10" in found["torch"].found
    assert found["ray"].found == "not installed"
    assert found["mlflow"].found == "boom"
    assert found["torchvision"].fix is None
    assert run(["doctor"]) == 1
    assert "pip install" in capsys.readouterr().out


def test_storage_that_cannot_be_written_is_a_fault(tmp_path):
    (tmp_path / "file").write_text("")
    assert findings(tmp_path / "file")["storage"].fix is not None
    assert findings(tmp_path / "not/yet/there")["storage"].fix is None


def test_insecure_settings_are_reported(monkeypatch, tmp_path):
    (tmp_path / ".ray").mkdir()
    token = tmp_path / ".ray/auth_token"
    token.write_text("secret")
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "chmod 600" in findings()["ray token"].fix
    assert "run code" in findings()["ray access"].fix
    token.chmod(0o600)
    assert findings()["ray token"].fix is None


def test_a_failing_program_is_reported_with_its_last_line():
    assert RUN_PYTHON("raise ValueError('no luck')") == "ValueError: no luck"
    assert RUN_PYTHON("pass") is None
    assert RUN_PYTHON("import time; time.sleep(9)", 0.1) == "takes longer than 0 s"


def test_a_ray_that_does_not_start_is_a_fault_with_its_cause(monkeypatch, capsys):
    def refuse(program, limit_s=0):
        return (
            "orchestration.errors.ResourceError: Ray does not start: why"
            if "start_briefly" in program
            else None
        )

    monkeypatch.setattr(doctor, "_run_python", refuse)
    finding = findings()["ray starts"]
    assert finding.found == "Ray does not start: why"
    assert "works without Ray" in finding.fix
    assert run(["doctor"]) == 1
    assert "Ray does not start: why" in capsys.readouterr().out


def test_variables_of_batch_systems_and_company_networks_are_checked(monkeypatch, tmp_path):
    long = tmp_path / ("batch-system-" * 4)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    found = findings()
    assert "too long for sockets" in found["temporary files"].found
    assert found["temporary files"].fix is None
    assert found["web proxy"].found.startswith("HTTPS_PROXY; ")
    assert found["RAY_ADDRESS"].fix is not None
    assert "HOST:6379" in found["RAY_ADDRESS"].fix
    monkeypatch.setattr(doctor, "read_quota", lambda: 1.5)
    assert "quota of its container (1.5)" in findings()["CPU cores"].found

"""When a token is asked for, and where it is taken from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestration.connect.access import choose_mode, is_loopback, read_token
from orchestration.errors import ResourceError


@pytest.fixture(autouse=True)
def no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "")  # so that the variable is put back afterwards
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:8265", "localhost:6379", "auto", "ray://[::1]:10001", "127.9.9.9"],
)
def test_this_machine_is_known_by_its_addresses(address: str):
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address", ["http://10.0.0.1:8265", "head:6379", "localhost.example.org:1", "https://0.0.0.0"]
)
def test_all_other_addresses_are_elsewhere(address: str):
    assert not is_loopback(address)


def test_the_environment_wins_over_the_named_file_and_that_over_the_home_folder(
    tmp_path: Path, monkeypatch
):
    assert read_token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("home\n")
    assert read_token() == "home"
    (tmp_path / "named").write_text("named\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "named"))
    assert read_token() == "named"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "environment")
    assert read_token() == "environment"


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ResourceError, match=r"RAY_AUTH_TOKEN_PATH.*none"):
        read_token()


def test_a_cluster_elsewhere_needs_a_token(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ResourceError, match="--insecure"):
        choose_mode("http://10.0.0.1:8265")
    assert choose_mode("http://10.0.0.1:8265", insecure=True) == "disabled"
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert choose_mode("http://10.0.0.1:8265") == "token"
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_this_machine_needs_none():
    assert choose_mode("127.0.0.1:6379") == "disabled"

from pathlib import Path

import pytest

from boxseg.errors import ConfigError
from orchestration.cli.app import run
from orchestration.record.run_folder import RunFolder, RunStatus
from orchestration.store.places import address_of, shown, storage_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BOXSEG_CACHE", str(tmp_path))
    return tmp_path / "stores"


@pytest.mark.parametrize("address", ["s3://b/runs", "gs://b/a/b", "az://box", "s3://b.c/v=1+2"])
def test_an_address_has_a_folder_from_which_it_can_be_read(address: str, cache: Path):
    folder = storage_folder(address)
    assert folder == cache / address.replace("://", "/")
    assert address_of(folder) == shown(folder) == address
    assert address_of(folder / "name" / "id") == f"{address}/name/id"


def test_a_slash_at_the_end_changes_nothing(cache: Path):
    assert storage_folder("s3://b/runs/") == storage_folder("s3://b/runs")


def test_buckets_of_other_servers_have_other_folders_of_the_same_address(cache, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://who:secret@minio.local:9000")
    folder = storage_folder("s3://b/runs")
    assert folder == cache / "s3-minio.local-9000" / "b" / "runs"
    assert address_of(folder) == "s3://b/runs"
    assert storage_folder("gs://b/runs") == cache / "gs" / "b" / "runs"


def test_paths_are_left_as_they_are(cache: Path):
    assert storage_folder("runs/here") == Path("runs/here")
    assert address_of(Path("runs/here")) is None
    assert shown(Path("runs")) == str(Path.cwd() / "runs")
    assert address_of(cache / "s3") is None, "a store without a bucket is none"


@pytest.mark.parametrize(
    "address",
    ["http://b/runs", "s3://", "s3://b/../../etc", "s3://b//a", "s3://b/a?x=1", "s3://u:p@b/a"],
)
def test_other_addresses_are_refused_with_those_that_would_do(address: str):
    with pytest.raises(ConfigError, match=r"use s3://BUCKET/PREFIX, gs://.* or a folder"):
        storage_folder(address)


def test_a_link_above_the_folders_changes_nothing(tmp_path: Path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setenv("BOXSEG_CACHE", str(tmp_path / "link"))
    assert address_of((tmp_path / "real/stores/s3/b/runs").resolve()) == "s3://b/runs"
    assert address_of(storage_folder("s3://b/runs")) == "s3://b/runs"


def test_runs_of_a_store_are_listed_by_their_address(monkeypatch, capsys):
    folder = storage_folder("s3://bucket/runs") / "toy" / "20260101-000000-aaaa"
    RunFolder(folder).create(RunStatus(folder.name, "toy", status="finished"), "")
    # the store itself is not asked
    monkeypatch.setattr("orchestration.record.find_runs.refresh", lambda storage: None)
    monkeypatch.setattr("orchestration.record.find_runs.pull_tree", lambda path: None)
    assert run(["runs", "show", folder.name, "--storage", "s3://bucket/runs"]) == 0
    assert f"s3://bucket/runs/toy/{folder.name}" in capsys.readouterr().out

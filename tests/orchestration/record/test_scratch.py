"""The folder of a living process is never removed, not even from another container."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from orchestration.errors import ResourceError
from orchestration.record.scratch import OWNER, scratch_folder


@pytest.fixture(autouse=True)
def own_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The folder for temporary files is empty, and ours."""
    (tmp_path / "t").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))


OWNER_PROGRAM = """
import sys, tempfile, time
tempfile.tempdir = sys.argv[1]
from orchestration.record.scratch import scratch_folder
with scratch_folder('x') as folder:
    print(folder, flush=True)
    time.sleep(60)
"""


def own(place: Path, *around: str) -> tuple[subprocess.Popen[str], Path]:
    """A process that holds such a folder under `place`, and the folder."""
    command = [*around, sys.executable, "-c", OWNER_PROGRAM, str(place)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def kill(process: subprocess.Popen[str]) -> None:
    for each in (*psutil.Process(process.pid).children(recursive=True), process):
        each.kill()
    process.communicate()


@pytest.mark.parametrize(
    "around", [(), ("unshare", "--pid", "--fork")], ids=["here", "another container"]
)
def test_a_folder_is_removed_only_once_its_owner_is_gone_even_from_another_container(
    monkeypatch, tmp_path, around
):
    if around and subprocess.run([*around, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this account may not make a namespace of processes")
    # numbers of another container say nothing here
    monkeypatch.setattr("psutil.pid_exists", lambda _: False)
    owner, folder = own(tmp_path / "t", *around)
    try:
        with scratch_folder("x") as beside:
            assert folder.is_dir()
            assert beside.stat().st_mode & 0o777 == 0o700
        assert not beside.exists()
    finally:
        kill(owner)
    assert folder.is_dir(), "it was killed"
    with scratch_folder("x"):
        assert not folder.exists()


def test_folders_that_may_still_be_in_use_are_kept(tmp_path):
    place = tmp_path / "t"
    (place / "boxseg-x-1-beginning").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / OWNER).touch()
    (place / "boxseg-x-2-link").symlink_to(tmp_path / "mine")
    linked = place / "boxseg-x-3-linked"
    linked.mkdir()
    (linked / OWNER).symlink_to(tmp_path / "mine" / OWNER)
    with scratch_folder("x"):
        pass
    assert sorted(path.name for path in place.iterdir()) == [
        "boxseg-x-1-beginning",
        "boxseg-x-2-link",
        "boxseg-x-3-linked",
    ]
    assert (tmp_path / "mine" / OWNER).exists()


def test_sockets_of_ray_get_a_short_place_where_tmpdir_is_a_long_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    long = tmp_path / ("batch-system-" * 4)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with scratch_folder("x", for_ray=True) as folder:
        assert len(str(folder)) + len("/ray1") < 50
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()
    with scratch_folder("x") as folder:
        assert folder.parent == long  # files have no such limit


def test_a_missing_place_for_sockets_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    monkeypatch.setattr("orchestration.record.scratch.SHORT_PLACES", ("/nowhere",))
    with (
        pytest.raises(ResourceError, match=r"TMPDIR .*; set TMPDIR to a path of \d+ letters"),
        scratch_folder("x", for_ray=True),
    ):
        pass

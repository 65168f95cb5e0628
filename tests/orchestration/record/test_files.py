"""Files stay whole when the disk fails, and the message names the path and the way out."""

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from boxseg.errors import ConfigError, StorageError
from boxseg.files import writing as files
from boxseg.files.writing import read_plain, write_atomic
from orchestration.errors import ExitCode, exit_code_for
from orchestration.record.files import append_line, file_lock, log_to_file
from orchestration.record.records import read_lines


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "the disk is full; make room"),
        (errno.EDQUOT, "the quota is used up"),
        (errno.EFBIG, "files may not be that large here"),
        (errno.EROFS, "the disk is read-only; mount it for writing"),
        (errno.ESTALE, "the network folder is gone"),
    ],
)
def test_a_fault_of_the_disk_leaves_the_old_file_and_names_the_way_out(
    tmp_path, monkeypatch, number, reason
):
    path = tmp_path / "status.json"
    write_atomic(path, "old")

    def fail(descriptor: int) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=f"status.json cannot be written .*{reason}") as raised:
        write_atomic(path, "new")
    assert exit_code_for(raised.value) == ExitCode.RESOURCES
    assert [each.name for each in tmp_path.iterdir()] == ["status.json"]
    assert path.read_text() == "old"


def test_a_vanished_folder_is_named_and_not_created_again(tmp_path):
    for write in (lambda path: write_atomic(path, "x"), lambda path: append_line(path, {})):
        with pytest.raises(StorageError, match="the folder is gone; mount or restore it"):
            write(tmp_path / "unmounted" / "file")
    assert not list(tmp_path.iterdir())


def test_other_faults_keep_their_class(tmp_path):
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path, "x")


def test_a_synced_line_is_read_back(tmp_path):
    append_line(tmp_path / "lines", {"a": 1})
    append_line(tmp_path / "lines", {"a": 2})
    assert [line["a"] for line in read_lines(tmp_path / "lines", dict[str, Any])[0]] == [1, 2]


def test_a_lock_held_by_another_is_refused_at_once_if_asked_not_to_wait(tmp_path):
    with (
        file_lock(tmp_path / "lock"),
        pytest.raises(BlockingIOError),
        file_lock(tmp_path / "lock", wait=False),
    ):
        pass
    with file_lock(tmp_path / "lock", wait=False):
        pass


def test_a_lock_keeps_the_content_of_its_file_and_follows_no_link(tmp_path):
    (tmp_path / "lock").write_text("kept")
    with file_lock(tmp_path / "lock"):
        pass
    assert (tmp_path / "lock").read_text() == "kept"
    (tmp_path / "precious").write_text("of somebody else")
    for target in ("precious", "missing"):
        (tmp_path / target[0]).symlink_to(tmp_path / target)
        told = f"{target[0]} is a link to '.*{target}'; .* remove the link"
        with pytest.raises(ConfigError, match=told) as raised, file_lock(tmp_path / target[0]):
            pass
        assert exit_code_for(raised.value) == ExitCode.USAGE
    assert (tmp_path / "precious").read_text() == "of somebody else"
    assert not (tmp_path / "missing").exists()


def test_a_log_that_cannot_be_written_is_ignored(tmp_path, capsys):
    logger = logging.getLogger("somebody.else")
    for path in (Path("/dev/full"), tmp_path / "logs" / "its.log"):
        log_to_file(path, ["somebody.else"])
        if path.parent.name == "logs":
            path.parent.rmdir()  # before the first line is written
        logger.error("no room for this")
    assert capsys.readouterr().err == ""
    with pytest.raises(FileNotFoundError):
        log_to_file(tmp_path / "unmounted" / "logs" / "its.log", ["somebody.else"])
    assert not list(tmp_path.iterdir())


def test_a_file_that_only_grows_follows_no_link(tmp_path):
    (tmp_path / "precious").write_text("of somebody else\n")
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(ConfigError, match=r"is a link to .*precious"):
        append_line(tmp_path / "metrics.jsonl", {"step": 1})
    assert (tmp_path / "precious").read_text() == "of somebody else\n"


def test_a_file_that_is_replaced_while_somebody_opens_it_is_read_whole(tmp_path, monkeypatch):
    path, look = tmp_path / "status.json", files.plain_size
    write_atomic(path, "short")

    def look_and_be_overtaken(path: Path) -> int:
        size = look(path)
        write_atomic(path, "a longer one")
        return size

    monkeypatch.setattr(files, "plain_size", look_and_be_overtaken)
    assert read_plain(path) == b"a longer one"

"""Prints of files: a copy has the same, a change another."""

import os
import shutil
from pathlib import Path

import pytest

from boxseg.files.prints import take_prints


def test_a_copy_has_the_same_print_and_a_changed_file_another(tmp_path: Path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    contents = {"short": b"x", "none": b"", "long": bytes(range(256)) * 4}
    for name, content in contents.items():
        (first / name).write_bytes(content)
    shutil.copytree(first, second)
    os.utime(second / "long", (0, 0))
    names = list(contents)
    before = take_prints(first, names)
    assert list(before) == names
    assert before["long"].startswith("1024-")
    assert take_prints(second, names) == before
    for place in (0, 512, 1023):
        changed = bytearray(contents["long"])
        changed[place] ^= 1
        (second / "long").write_bytes(changed)
        after = take_prints(second, names)
        assert {name for name in names if after[name] != before[name]} == {"long"}


def test_only_files_have_a_print_and_a_pipe_is_not_waited_for(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert take_prints(tmp_path, ["folder", "pipe", "gone", "nul\0"]) == {}


@pytest.mark.parametrize(("count", "chosen"), [(0, ""), (3, "012"), (4, "02"), (7, "036")])
def test_only_some_of_many_files_are_looked_at(tmp_path: Path, count: int, chosen: str):
    names = [str(number) for number in range(count)]
    for name in names:
        (tmp_path / name).touch()
    assert "".join(take_prints(tmp_path, names, most=3)) == chosen

"""Files that are read are plain, of bounded size, and hold what they should; all else is refused at once."""

import io
import json
import os
import pickle
import socket
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boxseg.coco.segmentations import MAX_PIXELS
from boxseg.errors import DataError
from boxseg.files import reading
from boxseg.files.reading import (
    is_deep,
    plain_file,
    read_bytes,
    read_json,
    read_picture,
    read_text,
    read_yaml,
)

RULE = "a test needs a file"
pytestmark = pytest.mark.timeout(60)  # a pipe that is opened would wait for ever


@pytest.fixture
def odd(tmp_path: Path) -> dict[str, Path]:
    """Paths of each kind that is no plain file."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(tmp_path)  # addresses of sockets have to be short
        listener.bind("socket")
        os.chdir(here)
    return {
        "a pipe": tmp_path / "link",
        "a socket": tmp_path / "socket",
        "a device": Path("/dev/zero"),
        "a folder": tmp_path,
        "does not exist": tmp_path / "none",
        "null byte": tmp_path / "a\0b",
        "File name too long": tmp_path / ("n" * 300),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "a pipe",
        "a socket",
        "a device",
        "a folder",
        "does not exist",
        "null byte",
        "File name too long",
    ],
)
@pytest.mark.parametrize(
    "read", [read_bytes, read_text, read_json, read_yaml, plain_file, read_picture]
)
def test_anything_but_a_plain_file_is_refused_before_it_is_opened(odd, kind, read):
    arguments = (Image.Image.load,) if read is read_picture else (RULE,)
    with pytest.raises(DataError, match=kind):
        read(odd[kind], *arguments)


def test_unreadable_files_are_named_in_other_processes_too(odd):
    with pytest.raises(DataError) as told:
        plain_file(odd["a pipe"], RULE)
    assert str(pickle.loads(pickle.dumps(told.value))) == str(told.value)


def test_a_file_that_says_it_is_empty_is_not_waited_for():
    assert read_bytes(Path("/proc/self/mounts"), RULE) == b""


def test_a_file_larger_than_allowed_is_refused(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(2**41)
    for read in (read_bytes, read_text, read_json, read_yaml):
        with pytest.raises(DataError, match="MB are allowed; a test needs a file"):
            read(path, RULE)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 101 + "]" * 101, "nest more than 100 times"),
        ("[" * 1_000_000, "nest more than 100 times"),
        ('{"a":' * 500 + "1" + "}" * 500, "nest more than 100 times"),
        ("9" * 5000, "is not JSON: Exceeds the limit"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is given twice"),
        ("", "is not JSON"),
        ('{"a": "\x01"}', "is not JSON: Invalid control character"),
    ],
)
def test_json_that_cannot_be_used_is_named(tmp_path, text, told):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(
        DataError, match=rf"a\.json: .*{told}.*; a test needs a file \(export it again\)"
    ):
        read_json(tmp_path / "a.json", RULE)


def test_brackets_in_texts_do_not_nest():
    assert not is_deep(json.dumps(['["' * 500, "]" * 500, "\\"]).encode())
    assert not is_deep(b"[" * 100 + b"]" * 100)
    assert is_deep(b'["]]]]",' * 101)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: &a [1]\nb: [*a, *a]", "it has an alias; write the value out"),
        ("a: 1\na: 2", "'a' is given twice"),
        ("[" * 2000, "is not YAML that can be used"),
        ("a: \x01", "is not YAML that can be used"),
        ("a: [", "is not YAML that can be used"),
        ("a: !!python/object/apply:os.system [ls]\n? [1]\n: 2", "unhashable"),
    ],
)
def test_yaml_that_cannot_be_used_is_named(tmp_path, text, told):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(DataError, match=rf"a\.yaml: .*{told}"):
        read_yaml(tmp_path / "a.yaml", RULE)


def test_values_of_yaml_are_text_as_written(tmp_path):
    (tmp_path / "a.yaml").write_text("names: [no, 010, 1e3, 2020-01-01]\nval:\n")
    assert read_yaml(tmp_path / "a.yaml", RULE) == {
        "names": ["no", "010", "1e3", "2020-01-01"],
        "val": "",
    }


def test_the_largest_picture_is_the_largest_that_pil_opens():
    assert Image.MAX_IMAGE_PIXELS is not None
    assert 2 * Image.MAX_IMAGE_PIXELS == MAX_PIXELS


def test_a_small_file_of_too_many_pixels_is_refused(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (8, 8)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    header = bytes(data[12:29])
    data[29:33] = struct.pack(">I", zlib.crc32(header))
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"bomb\.png: is too large: .*exceeds limit"):
        read_picture(path, Image.Image.load)


def test_the_command_for_a_picture_that_is_too_large_makes_a_smaller_copy(tmp_path, monkeypatch):
    path = tmp_path / "a wide view.png"
    Image.new("L", (9000, 10)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="too large") as raised:
        read_picture(path, Image.Image.load)
    _, command = str(raised.value).removesuffix(")").split("shrink it: ")
    assert subprocess.run(command, shell=True, check=False).returncode == 0
    monkeypatch.undo()
    assert Image.open(tmp_path / "a wide view-small.png").size == (8000, 9)


def test_a_drawing_that_would_start_a_program_is_no_picture(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    with pytest.raises(DataError, match="cannot identify image file"):
        read_picture(tmp_path / "a.eps", Image.Image.load)


@pytest.mark.parametrize(
    "form", sorted(reading.FORMATS & {"BMP", "GIF", "JPEG", "PNG", "PPM", "TGA", "TIFF", "WEBP"})
)
def test_common_formats_are_read(tmp_path, form):
    Image.fromarray(np.full((8, 6, 3), 200, dtype=np.uint8)).save(tmp_path / "picture", form)
    assert read_picture(tmp_path / "picture", lambda picture: picture.size) == (6, 8)


def test_the_first_of_several_pictures_is_read(tmp_path):
    first, second = Image.new("L", (6, 8), 10), Image.new("L", (6, 8), 200)
    for form in ("GIF", "WEBP", "TIFF"):
        file = io.BytesIO()
        first.save(file, form, save_all=True, append_images=[second], lossless=True)
        (tmp_path / "several").write_bytes(file.getvalue())
        assert (
            read_picture(
                tmp_path / "several", lambda picture: picture.convert("L").getpixel((3, 3))
            )
            == 10
        )


def test_pipes_among_images_are_reported_and_not_waited_for(tmp_path):
    from boxseg.predict.files import read_pictures  # loads torch

    os.mkfifo(tmp_path / "a.png")
    (picture,) = read_pictures([tmp_path / "a.png"])
    assert "is a pipe, not a file" in str(picture.pixels)

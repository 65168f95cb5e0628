"""Damage of JPEG files is found, and nothing that other threads print is lost meanwhile."""

import os

import numpy as np
from PIL import Image

from boxseg.files import jpeg


def test_what_others_print_meanwhile_is_printed_afterwards(tmp_path, capfd):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2] + b"\xff\xd9")
    with jpeg._captured_stderr() as read_output:
        os.write(2, b"3/9 images\nCorrupt JPEG data: premature end of data segment\n")
        assert "Corrupt" in read_output()
    assert capfd.readouterr().err == "3/9 images\n"
    assert jpeg.find_damage(tmp_path / "a.jpg")
    assert capfd.readouterr().err == ""

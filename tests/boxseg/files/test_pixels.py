from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from boxseg.files.pixels import rgb_pixels
from boxseg.files.reading import UnreadableError


def grey(*values: int, dtype: type = np.uint16) -> list[int]:
    """How values in one row of a grey picture are read."""
    pixels = rgb_pixels(Image.fromarray(np.array([values], dtype=dtype)))
    assert pixels.dtype == np.uint8
    assert (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0].tolist()


@pytest.mark.parametrize(
    ("largest", "bits"),
    [
        (0, 8),
        (255, 8),
        (256, 10),
        (1023, 10),
        (1024, 12),
        (4095, 12),
        (4096, 14),
        (16384, 16),
        (65535, 16),
    ],
)
def test_of_grey_pictures_the_bits_in_use_count(largest, bits):
    half = 1 << (bits - 1)
    assert grey(0, min(half, largest), largest) == [
        0,
        min(half, largest) >> (bits - 8),
        largest >> (bits - 8),
    ]


def test_what_16_bits_cannot_hold_is_cut_off():
    assert grey(-5, 0x8000, 70_000, dtype=np.int32) == [0, 0x80, 0xFF]


def test_colours_of_8_bits_are_as_stored():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert np.array_equal(rgb_pixels(Image.fromarray(pixels)), pixels)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [0, bytes([0, 128])])
def test_transparency_of_a_palette_is_ignored_in_silence(tmp_path, transparency):
    palette = Image.new("P", (2, 1))
    palette.putpixel((1, 0), 1)
    palette.putpalette([9, 8, 7, 60, 50, 40])
    palette.save(tmp_path / "a.png", transparency=transparency)
    with Image.open(tmp_path / "a.png") as picture:
        assert rgb_pixels(picture).tolist() == [[[9, 8, 7], [60, 50, 40]]]


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("alpha", [[], [0xFFFF]])
def test_of_colours_of_16_bits_the_bits_in_use_count(tmp_path, ending, alpha):
    path = str(tmp_path / f"a.{ending}")
    red, green, blue = 0xFFF, 0x800, 0x10
    cv2.imwrite(path, np.full((2, 3, 3 + len(alpha)), [blue, green, red, *alpha], dtype=np.uint16))
    with Image.open(path) as picture:
        pixels = rgb_pixels(picture)
    assert (pixels == [0xFF, 0x80, 0x01]).all()
    assert pixels.shape == (2, 3, 3)


def test_colours_that_use_all_16_bits_are_as_pil_reads_them(tmp_path):
    path = str(tmp_path / "a.png")
    values = np.random.default_rng(0).integers(0, 2**16, (9, 7, 3), dtype=np.uint16)
    cv2.imwrite(path, values)
    with Image.open(path) as picture:
        assert np.array_equal(rgb_pixels(picture), values[..., ::-1] >> 8)


def test_damaged_colours_of_16_bits_are_refused(tmp_path):
    path: Path = tmp_path / "a.png"
    values = np.random.default_rng(0).integers(0, 2**12, (64, 64, 3), dtype=np.uint16)
    cv2.imwrite(str(path), values)
    path.write_bytes(path.read_bytes()[:5000])
    with Image.open(path) as picture, pytest.raises(OSError, match="truncated"):
        rgb_pixels(picture)


def write_tiff(
    path: Path, pixels: np.ndarray, *, photometric: int, planes: bool = False, orientation: int = 1
) -> None:
    """A TIFF of 16 bits, as PIL cannot write them; `pixels` are (h, w, channels), or (channels, h, w) in planes."""
    height, width, channels = np.moveaxis(pixels, 0, -1).shape if planes else pixels.shape
    data = pixels.astype("<u2").tobytes()
    depths = np.array([16] * channels, dtype="<u2").tobytes().ljust(4, b"\0")
    part = len(data) // channels if planes else len(data)
    num_parts = channels if planes else 1
    starts = np.arange(8, 8 + len(data), part, dtype="<u4").tobytes()
    lengths = np.array([part] * num_parts, dtype="<u4").tobytes()
    lists = [depths, starts, lengths]
    places = np.cumsum([8 + len(data), *map(len, lists)]).tolist()
    # a list that fits in four bytes takes the place of its address
    values = [
        int.from_bytes(each, "little") if len(each) == 4 else place
        for each, place in zip(lists, places, strict=False)
    ]
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, values[0])]
    tags += [(259, 3, 1, 1), (262, 3, 1, photometric), (273, 4, num_parts, values[1])]
    tags += [(274, 3, 1, orientation)]
    tags += [(277, 3, 1, channels), (278, 3, 1, height), (279, 4, num_parts, values[2])]
    tags += [(284, 3, 1, 2 if planes else 1)]
    entries = b"".join(
        np.array([tag, kind], "<u2").tobytes() + np.array([count, value], "<u4").tobytes()
        for tag, kind, count, value in tags
    )
    start = np.array([places[-1]], dtype="<u4").tobytes()
    count = np.array([len(tags)], dtype="<u2").tobytes()
    path.write_bytes(b"II*\0" + start + data + b"".join(lists) + count + entries + b"\0" * 4)


def test_inks_of_16_bits_are_left_to_pil(tmp_path, capfd):
    path = tmp_path / "a.tif"
    Image.new("CMYK", (3, 2), (0, 0xFF, 0xFF, 0)).save(path)
    with Image.open(path) as picture:
        usual = rgb_pixels(picture)
    write_tiff(path, np.full((2, 3, 4), [0, 0xFFFF, 0xFFFF, 0]), photometric=5)
    with Image.open(path) as picture:
        assert picture.mode == "CMYK"
        assert np.array_equal(rgb_pixels(picture), usual)
    assert capfd.readouterr().err == ""


def test_colours_of_16_bits_in_planes_are_refused_as_no_library_reads_them_right(tmp_path):
    path = tmp_path / "a.tif"
    values = np.random.default_rng(0).integers(0, 2**16, (9, 7, 3))
    write_tiff(path, values, photometric=2)
    with Image.open(path) as picture:
        assert np.array_equal(rgb_pixels(picture), values >> 8)
    write_tiff(path, np.moveaxis(values, -1, 0), photometric=2, planes=True)
    with Image.open(path) as picture, pytest.raises(UnreadableError, match=r"a\.tif: has colours"):
        rgb_pixels(picture)


@pytest.mark.parametrize("largest", [0xFFF, 0xFFFF])
def test_grey_of_16_bits_where_0_is_white_is_turned_around(tmp_path, largest):
    path = tmp_path / "a.tif"
    write_tiff(path, np.array([[[0], [largest // 2 + 1], [largest]]]), photometric=0)
    with Image.open(path) as picture:
        assert rgb_pixels(picture)[0, :, 0].tolist() == [0xFF, 0x7F, 0]


def test_colours_of_16_bits_that_opencv_cannot_read_are_read_by_pil_in_silence(tmp_path, capfd):
    path = tmp_path / "a.tif"
    values = np.random.default_rng(0).integers(0, 2**16, (9, 7, 3))
    write_tiff(path, values, photometric=2, orientation=6)
    with Image.open(path) as picture:
        assert np.array_equal(rgb_pixels(picture), np.rot90(values, -1) >> 8)
    assert capfd.readouterr().err == ""

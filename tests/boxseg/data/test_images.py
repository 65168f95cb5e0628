import numpy as np
import pytest
import torch
from PIL import Image

from boxseg.data.images import read_image


@pytest.mark.parametrize(
    "how", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1, "quality": 20}]
)
def test_a_jpeg_is_decoded_as_pil_decodes_it(tmp_path, how):
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((53, 37)).save(tmp_path / "a.jpg", **how)
    with Image.open(tmp_path / "a.jpg") as picture:
        expected = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert (read_image(tmp_path / "a.jpg").int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode, suffix):
    if (mode, suffix) == ("CMYK", "png"):
        suffix = "jpg"
    if (mode, suffix) == ("LA", "tiff"):
        suffix = "webp"
    pixels = np.zeros((6, 8, 3), dtype=np.uint8)
    pixels[:, 4:] = 255
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).convert(mode).save(path)
    image = read_image(path).float()
    assert image.shape == (3, 6, 8)
    assert image[..., :2].max() < 30
    assert image[..., 6:].min() > 225


def test_colours_behind_transparency_stay(tmp_path):
    pixels = np.full((4, 4, 4), 200, dtype=np.uint8)
    pixels[..., 3] = 0
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == 200).all()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 0x4000], [0x8000, 0xFFFF]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0].tolist() == [[0, 0x40], [0x80, 0xFF]]


def test_exif_rotation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (3, 4, 8)

"""Images as the predictor takes them."""

import numpy as np
import pytest
import torch
from PIL import Image

from boxseg.errors import DataError, ShapeError
from boxseg.predict import read_image


def test_a_file_of_16_bits_is_read_as_in_training(tmp_path):
    Image.fromarray(np.array([[0, 0x4000], [0x8000, 0xFFFF]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0].tolist() == [[0, 0x40], [0x80, 0xFF]]


def test_an_array_equals_its_tensor():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert torch.equal(read_image(pixels), read_image(torch.from_numpy(pixels).permute(2, 0, 1)))


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (2, 4, 4, 3)])
def test_an_array_of_another_shape_is_refused(shape):
    with pytest.raises(ShapeError, match="uint8 RGB"):
        read_image(np.zeros(shape, dtype=np.uint8))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.png"):
        read_image(str(tmp_path / "none.png"))

"""Pictures as a served model gets them."""

import base64

import numpy as np
import pytest
import torch
from PIL import Image

from boxseg.errors import DataError
from boxseg.predict.predictor import as_image
from orchestration.tracking.served import _open


def test_a_picture_of_16_bits_is_the_same_as_base64_and_as_a_file(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[0, 0x4000], [0x8000, 0xFFFF]], dtype=np.uint16)).save(path)
    sent = base64.b64encode(path.read_bytes()).decode()
    assert as_image(path)[0].tolist() == [[0, 0x40], [0x80, 0xFF]]
    assert torch.equal(_open(sent), as_image(path))
    assert torch.equal(_open(str(path)), as_image(path))


def test_what_is_no_picture_is_named_as_it_was_sent():
    eps = base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n").decode()
    with pytest.raises(DataError, match=rf"^image '{eps[:40]}': the image cannot be read"):
        _open(eps)
    with pytest.raises(DataError, match="neither the path of a picture nor a picture as base64"):
        _open("street")

"""Pictures with several pages or frames are counted, copies of a smaller size are not."""

import numpy as np
import pytest
from PIL import Image

from boxseg.files.images import count_pages, describe_paged


def pictures(*sides):
    generator = np.random.default_rng(0)
    return [
        Image.fromarray(generator.integers(0, 255, (side, side, 3), np.uint8)) for side in sides
    ]


@pytest.mark.parametrize(
    ("name", "sides", "pages"),
    [
        ("stack.tif", (16, 16, 16), 3),
        ("scan.tif", (16, 15), 2),
        ("pyramid.tif", (16, 8, 4), 1),
        ("plain.tif", (16,), 1),
        ("moving.gif", (16, 16), 2),
        ("moving.png", (16, 16), 2),
        ("moving.webp", (16, 16), 2),
        ("plain.png", (16,), 1),
        ("stereo.mpo", (16, 16), 1),
    ],
)
def test_pages_and_frames_are_counted_and_the_first_is_kept(tmp_path, name, sides, pages):
    first, *others = pictures(*sides)
    first.save(tmp_path / name, save_all=True, append_images=others)
    with Image.open(tmp_path / name) as picture:
        assert count_pages(picture) == pages
        assert (picture.tell(), picture.size) == (0, (16, 16))
    told = describe_paged([tmp_path / name])
    assert (told is None) == (pages == 1 or name == "stereo.mpo")
    if told:
        assert f"1 pictures, such as {tmp_path / name} with {pages}, have several pages" in told

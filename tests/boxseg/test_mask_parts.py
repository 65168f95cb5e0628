"""Masks in the rectangles around them are the masks in their frames."""

import numpy as np
import pytest

from boxseg.mask_parts import NO_MASK, MaskPart, place_masks


@pytest.fixture
def masks():
    """Masks (5, 20, 30): scattered, full, one pixel at a corner, empty, a disc."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:20, :30]
    found = np.zeros((5, 20, 30), dtype=np.bool_)
    found[0, 3:11, 5:21] = generator.random((8, 16)) < 0.3
    found[1] = True
    found[2, 19, 29] = True
    found[4] = (x - 12) ** 2 + (y - 9) ** 2 < 50
    return found


def test_trimmed_masks_come_back_to_their_places(masks):
    parts = [MaskPart(mask).trimmed() for mask in masks]
    assert [part.area for part in parts] == masks.sum(axis=(1, 2)).tolist()
    assert sum(part.pixels.size for part in parts) < masks.size / 2
    assert (place_masks(parts, (20, 30)) == masks).all()


def test_empty_masks_can_be_placed():
    assert place_masks([NO_MASK], (4, 5)).sum() == 0
    assert place_masks([], (4, 5)).shape == (0, 4, 5)

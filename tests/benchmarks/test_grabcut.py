"""GrabCut by hand, which labels are compared with."""

import tracemalloc

import numpy as np
import pytest
import torch

from benchmarks.grabcut import from_grabcut
from boxseg.label.cut import ROUNDS, grabcut
from boxseg.structures import Sample


def test_grabcut_finds_a_plain_object_and_leaves_a_box_without_background(tmp_path):
    image = torch.full((3, 40, 40), 30, dtype=torch.uint8)
    image[:, 12:28, 12:28] = torch.tensor([250, 40, 40], dtype=torch.uint8)[:, None, None]
    boxes = torch.tensor([[8.0, 8, 32, 32], [0, 0, 40, 40]])
    sample = Sample(image, boxes, torch.zeros(2, dtype=torch.int64), 1, (40, 40))
    (found,) = from_grabcut([(sample, [1, 2])])
    assert found.mask[0].sum() == 16 * 16
    assert found.mask[1].all()
    assert found.quality[0] == pytest.approx((16 / 24) ** 2)


def test_grabcut_looks_at_the_surroundings_of_a_box_alone():
    image = torch.full((3, 3000, 4000), 30, dtype=torch.uint8)
    image[:, 700:720, 900:930] = torch.tensor([250, 40, 40], dtype=torch.uint8)[:, None, None]
    sample = Sample(
        image,
        torch.tensor([[895.0, 695, 935, 725]]),
        torch.zeros(1, dtype=torch.int64),
        1,
        (3000, 4000),
    )
    tracemalloc.start()
    (found,) = from_grabcut([(sample, [1])])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.parts[0].bounds() == (900, 700, 930, 720)
    assert found.parts[0].pixels.all()
    assert peak < 2 * 3000 * 4000  # bytes; the picture alone has three for each pixel


def test_grabcut_of_a_small_photograph_is_that_of_all_its_pixels():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 90, (3, 120, 160), generator=generator, dtype=torch.uint8)
    image[:, 40:80, 50:100] += 120
    sample = Sample(
        image,
        torch.tensor([[45.0, 35, 105, 85]]),
        torch.zeros(1, dtype=torch.int64),
        1,
        (120, 160),
    )
    regions = np.zeros((120, 160), dtype=np.uint8)  # sure background
    regions[35:85, 45:105] = 3  # probably the object
    expected = grabcut(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), regions, ROUNDS)[0]
    (found,) = from_grabcut([(sample, [1])])
    assert (found.mask[0].numpy() == expected).all()

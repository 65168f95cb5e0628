from functools import partial

import pytest
import torch
from torch import Generator

from boxseg.data.transforms import make_view
from boxseg.data.windows import MAX_ENLARGEMENT, cut_window, place_window, random_window
from boxseg.ops.masks import tight_boxes
from boxseg.structures import DrawnMasks, Sample


def sample_of(*boxes, height=200, width=300):
    """White boxes on black, each with its drawn mask."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for row, (x1, y1, x2, y2) in enumerate(boxes):
        image[:, y1:y2, x1:x2] = 255
        masks[row, y1:y2, x1:x2] = True
    drawn = DrawnMasks(masks, torch.ones(len(boxes), dtype=torch.bool))
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Sample(image, boxes, torch.arange(len(boxes)), 7, (height, width), drawn)


@pytest.mark.parametrize(
    "box", [(100, 80, 140, 100), (0, 0, 6, 9), (292, 190, 300, 200), (10, 5, 290, 190)]
)
@pytest.mark.parametrize("shift", [(0.5, 0.5), (0.0, 1.0)])
def test_the_longer_side_gets_the_wanted_size_and_the_box_is_inside_the_window(box, shift):
    sample = sample_of(box)
    window = place_window(sample.boxes[0], (200, 300), side=160, object_size=96, shift=shift)
    view, kept = cut_window(sample, window)
    longest = max(box[2] - box[0], box[3] - box[1])
    assert float((view.boxes[0, 2:] - view.boxes[0, :2]).max()) == pytest.approx(
        min(96, MAX_ENLARGEMENT * longest), abs=1.5
    )
    assert kept.tolist() == [0]
    assert max(view.size) <= 160
    assert 0 <= window.left <= window.left + window.width <= 300
    assert 0 <= window.top <= window.top + window.height <= 200


def test_pixels_masks_and_boxes_of_a_window_agree():
    sample = sample_of((100, 80, 140, 100), (135, 105, 155, 120))
    view, kept = cut_window(
        sample, place_window(sample.boxes[0], (200, 300), side=160, object_size=80)
    )
    assert kept.tolist() == [0, 1]
    assert view.original_size == (80, 80)
    torch.testing.assert_close(tight_boxes(view.drawn.mask), view.boxes, atol=1.5, rtol=0)
    white = view.weak().float().mean(dim=0) > 127
    torch.testing.assert_close(
        tight_boxes(white[None] & view.drawn.mask[:1]), view.boxes[:1], atol=1.5, rtol=0
    )


def test_boxes_that_are_cut_end_at_the_window_and_those_hardly_in_it_are_left_out():
    half_in, hardly_in = (130, 80, 170, 100), (148, 40, 300, 60)
    sample = sample_of((90, 80, 110, 120), half_in, hardly_in)
    window = place_window(sample.boxes[0], (200, 300), side=100, object_size=40)
    assert (window.left, window.width) == (50, 100)
    view, kept = cut_window(sample, window)
    assert kept.tolist() == [0, 1]
    assert view.boxes[1].tolist() == [80, 30, 100, 50]
    assert view.labels.tolist() == [0, 1]


def views_of(sample):
    make = partial(
        make_view, sample, shape=partial(random_window, side=160, object_size=(40, 120)), flip=0.5
    )
    return [make(strong="none", generator=Generator().manual_seed(seed)) for seed in range(200)]


def test_sizes_are_drawn_over_the_whole_range():
    views = views_of(sample_of((120, 100, 160, 120)))
    sizes = torch.tensor([float((view.boxes[0, 2:] - view.boxes[0, :2]).max()) for view in views])
    assert 39 < sizes.min() < 42
    assert 115 < sizes.max() < 121
    assert float(sizes.log().median().exp()) == pytest.approx((40 * 120) ** 0.5, rel=0.1)


def test_every_box_gets_its_turn_and_equal_seeds_give_equal_views():
    sample = sample_of((20, 20, 60, 40), (200, 100, 230, 160))
    first, second = views_of(sample), views_of(sample)
    assert sum(view.labels.tolist() == [0] for view in first) > 50
    assert sum(view.labels.tolist() == [1] for view in first) > 50
    assert all(
        torch.equal(here.weak(), there.weak()) for here, there in zip(first, second, strict=True)
    )

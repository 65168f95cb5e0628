from dataclasses import replace
from functools import partial
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
import torch.multiprocessing  # teaches ForkingPickler about tensors
from torch import Generator
from torchvision.transforms.v2 import functional as F

from boxseg.data.colors import COLOR_CHANGES
from boxseg.data.transforms import make_view, random_size, resize_only, resized_shape
from boxseg.ops.masks import tight_boxes
from boxseg.structures import DrawnMasks, Sample


def square_sample(height=80, width=120, box=(30, 20, 60, 50)):
    """A white square on a dark, slightly coloured ground."""
    x1, y1, x2, y2 = box
    image = torch.full((3, height, width), 20, dtype=torch.uint8)
    image[0] = 60
    image[:, y1:y2, x1:x2] = 250
    boxes = torch.tensor([box], dtype=torch.float32)
    return Sample(image, boxes, torch.tensor([2]), image_id=7, original_size=(height, width))


def view_of(sample, seed=0, **changes):
    sizes = {
        name: changes.pop(name, default)
        for name, default in (("short_sides", [160]), ("max_size", 1333))
    }
    options = {"flip": 0.0, "strong": "strong"} | changes
    return make_view(
        sample,
        shape=partial(random_size, **sizes),
        generator=Generator().manual_seed(seed),
        **options,
    )


def white_box(image):
    """Tight box of the pixels that are brighter than the middle between square and ground."""
    rows, columns = torch.nonzero(image.float().mean(dim=0) > 140, as_tuple=True)
    return [
        columns.min().item(),
        rows.min().item(),
        columns.max().item() + 1,
        rows.max().item() + 1,
    ]


@pytest.mark.parametrize(
    ("size", "short_side", "max_size", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),  # 640 · 800 / 480 = 1066.67
        ((640, 480), 800, 1333, (1067, 800)),
        ((300, 1000), 800, 1333, (400, 1333)),  # the long side decides
        ((100, 101), 50, 1333, (50, 51)),  # 50.5 is rounded up
        ((128, 128), 128, 1333, (128, 128)),
        ((1000, 2), 800, 1333, (1333, 3)),
        ((2000, 1), 100, 100, (100, 1)),
    ],
)
def test_the_short_side_is_scaled_and_the_long_side_limited(size, short_side, max_size, expected):
    assert resized_shape(size, short_side=short_side, max_size=max_size) == expected


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("short_side", [40, 80, 100, 160])
def test_the_box_stays_on_the_drawn_square(flip, short_side):
    view = view_of(square_sample(), short_sides=[short_side], flip=flip, strong="none")
    assert view.weak().shape[1:] == resized_shape((80, 120), short_side=short_side, max_size=1333)
    torch.testing.assert_close(
        torch.tensor(white_box(view.weak())).float(), view.boxes[0], atol=0.51, rtol=0
    )


def test_a_flip_mirrors_the_image_exactly():
    plain, flipped = (view_of(square_sample(), flip=flip, strong="none") for flip in (0.0, 1.0))
    assert torch.equal(plain.weak().flip(-1), flipped.weak())
    assert flipped.boxes.tolist() == [[120, 40, 180, 100]]


def test_flipping_happens_as_often_as_asked():
    count = sum(
        view_of(square_sample(8, 12, (1, 1, 4, 4)), seed, flip=0.3, strong="none").boxes[0, 0] > 50
        for seed in range(400)
    )
    assert 90 <= count <= 150


def test_every_short_side_is_drawn():
    sample = square_sample(16, 24, (3, 3, 9, 9))
    heights = {
        view_of(sample, seed, short_sides=[16, 20, 24], strong="none").weak().shape[1]
        for seed in range(60)
    }
    assert heights == {16, 20, 24}


def test_geometry_does_not_depend_on_the_colour_changes():
    for seed in range(6):
        options = {"short_sides": [80, 96, 112], "flip": 0.5}
        weak = [
            view_of(square_sample(), seed, strong=strong, **options).weak()
            for strong in COLOR_CHANGES
        ]
        assert all(torch.equal(weak[0], other) for other in weak[1:])


def test_the_same_generator_gives_the_same_views_and_the_global_one_is_untouched():
    state = torch.random.get_rng_state()
    first, second, other = (
        view_of(square_sample(), seed, flip=0.5, strong="strongv2") for seed in (3, 3, 4)
    )
    assert torch.equal(first.weak(), second.weak())
    assert first.recoloring == second.recoloring != other.recoloring
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_sample_is_left_unchanged():
    sample = square_sample()
    image, boxes = sample.image.clone(), sample.boxes.clone()
    view_of(sample, short_sides=[80], flip=1.0, strong="strongv2")
    assert torch.equal(sample.image, image)
    assert torch.equal(sample.boxes, boxes)


def test_boxes_are_clipped_and_empty_ones_removed():
    boxes = torch.tensor([[-5.0, 10, 500, 30], [10, 10, 10, 30], [130, 5, 140, 9]])
    sample = square_sample()
    sample = Sample(sample.image, boxes, torch.tensor([0, 1, 2]), 7, (80, 120))
    view = resize_only(sample, short_side=160, max_size=1333)
    assert view.boxes.tolist() == [[0, 20, 240, 60]]
    assert view.labels.tolist() == [0]


def test_an_image_without_boxes_works():
    sample = Sample(
        square_sample().image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 7, (80, 120)
    )
    view = view_of(sample, flip=1.0)
    assert view.boxes.shape == (0, 4)
    assert view.labels.shape == (0,)
    assert (view.image_id, view.original_size) == (7, (80, 120))


def test_tiny_boxes_survive_shrinking_so_that_masks_stay_aligned():
    boxes = torch.tensor([[0.0, 0, 0.4, 0.4], [119.5, 79.5, 120, 80]])
    sample = Sample(square_sample().image, boxes, torch.tensor([0, 1]), 7, (80, 120))
    assert len(resize_only(sample, short_side=32, max_size=1333).boxes) == 2


def test_the_wanted_size_leaves_pixels_as_they_are():
    sample = square_sample()
    assert torch.equal(resize_only(sample, short_side=80, max_size=1333).weak(), sample.image)


@pytest.mark.parametrize(("short_side", "travels"), [(40, (40, 60)), (160, (80, 120))])
def test_an_image_travels_as_small_as_it_can_and_is_resized_once(short_side, travels):
    sample = square_sample()
    view = view_of(sample, short_sides=[short_side], flip=1.0)
    assert view.pixels.shape[1:] == travels
    assert view.size == (short_side, short_side * 3 // 2)
    resized = F.resize(sample.image, list(view.size), antialias=True)
    assert torch.equal(view.weak(), resized.flip(-1))


def test_sending_a_view_to_another_process_does_not_move_the_image_to_shared_memory():
    sample = square_sample()
    view = view_of(sample, short_sides=[80])
    sent = ForkingPickler.dumps(view)  # as queues of loader processes do
    assert not sample.image.is_shared()
    assert torch.equal(ForkingPickler.loads(sent).pixels, view.pixels)


def with_drawn(sample):
    """The square's mask, and a second box without one."""
    x1, y1, x2, y2 = sample.boxes[0].int().tolist()
    mask = torch.zeros(2, *sample.image.shape[-2:], dtype=torch.bool)
    mask[0, y1:y2, x1:x2] = True
    boxes, labels = torch.cat([sample.boxes, torch.tensor([[0.0, 0, 9, 9]])]), torch.tensor([2, 1])
    return replace(
        sample, boxes=boxes, labels=labels, drawn=DrawnMasks(mask, torch.tensor([True, False]))
    )


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_drawn_masks_follow_the_image(flip):
    view = view_of(with_drawn(square_sample()), flip=flip)
    assert view.drawn.mask.shape == (2, *view.weak().shape[-2:])
    assert view.drawn.present.tolist() == [True, False]
    assert tight_boxes(view.drawn.mask)[0].tolist() == view.boxes[0].tolist()
    assert not view.drawn.mask[1].any()


def test_a_box_that_leaves_the_view_takes_its_mask_along():
    sample = with_drawn(square_sample())
    sample = replace(
        sample, boxes=torch.stack([torch.tensor([200.0, 20, 260, 50]), sample.boxes[1]])
    )
    view = resize_only(sample, short_side=80, max_size=1333)
    assert view.drawn.present.tolist() == [False]


def test_views_do_not_depend_on_drawn_masks():
    plain, drawn = (
        view_of(square_sample(), seed=3, flip=0.5),
        view_of(with_drawn(square_sample()), seed=3, flip=0.5),
    )
    assert plain.drawn is None
    assert torch.equal(plain.weak(), drawn.weak())
    assert plain.recoloring == drawn.recoloring

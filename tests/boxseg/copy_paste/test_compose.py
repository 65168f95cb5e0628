"""Occlusion, with numbers worked by hand for `docs/method.md#composition`."""

import pytest
import torch

from boxseg.copy_paste.compose import compose
from boxseg.errors import ShapeError
from boxseg.ops.masks import box_masks

SIZE = 96


def compose_one(box, paste, *, mask=None, stride=1, **limits):
    """One destination box and one pasted region (rows, columns)."""
    image = torch.full((3, SIZE, SIZE), 10, dtype=torch.uint8)
    pasted = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    pasted[(0, *paste)] = True
    boxes = torch.tensor([box])
    masks = box_masks(boxes, SIZE, SIZE, stride=stride) if mask is None else mask
    return compose(
        image,
        masks,
        boxes,
        torch.tensor([4]),
        torch.full((3, SIZE, SIZE), 200, dtype=torch.uint8),
        pasted,
        torch.tensor([6]),
        **limits,
    )


FAR = (slice(90, 96), slice(90, 96))


def test_an_unoccluded_box_is_rounded_outward_by_the_reference_and_kept_by_the_repair():
    box = (50.4, 40.2, 90.3, 80.7)
    assert compose_one(box, FAR).boxes[0].tolist() == [50, 40, 91, 81]
    assert compose_one(box, FAR, keep_sides=True).boxes[0].tolist() == pytest.approx(box)


@pytest.mark.parametrize(
    ("paste", "expected"),
    [
        (FAR, (10, 10, 31, 41)),
        ((slice(0, 96), slice(25, 96)), (10, 10, 25, 41)),
        ((slice(0, 20), slice(25, 96)), (10, 10, 31, 41)),
    ],
)
def test_boxes_of_the_worked_examples(paste, expected):
    composition = compose_one((10.4, 10.6, 30.2, 40.9), paste)
    assert composition.boxes[0].tolist() == list(expected)


def test_the_repair_changes_only_the_side_that_the_paste_moved():
    composition = compose_one(
        (10.4, 10.6, 30.2, 40.9), (slice(0, 96), slice(25, 96)), keep_sides=True
    )
    assert composition.boxes[0].tolist() == pytest.approx([10.4, 10.6, 25, 40.9])


@pytest.mark.parametrize("stride", [1, 4])
def test_pixels_masks_labels_and_the_pasted_box(stride):
    paste = (slice(20, 60), slice(24, 64))
    composition = compose_one((8.0, 8, 40, 40), paste, stride=stride)
    assert composition.labels.tolist() == [4, 6]
    assert composition.boxes[1].tolist() == [24, 20, 64, 60]
    expected = torch.full((SIZE, SIZE), 10, dtype=torch.uint8)
    expected[paste] = 200
    assert torch.equal(composition.image, expected.expand(3, -1, -1))
    assert not bool((composition.masks[0] & composition.masks[1]).any())
    covered = composition.masks[0].sum() + composition.masks[1].sum()
    assert int(covered) * stride**2 == pytest.approx(
        33 * 33 + 40 * 40 - 21 * 17, rel=0.15 if stride == 4 else 0
    )


def test_an_instance_leaves_if_its_box_moves_and_little_of_its_mask_remains():
    # 10 columns of 31 rows stay visible
    box, paste = (10.0, 10, 40, 40), (slice(0, 96), slice(20, 96))
    assert compose_one(box, paste, min_area=309).kept.tolist() == [0]
    gone = compose_one(box, paste, min_area=310)
    assert gone.kept.tolist() == []
    assert gone.labels.tolist() == [6]
    assert compose_one(box, paste, min_area=310, box_shift_px=20).kept.tolist() == [0]


def test_an_instance_without_a_mask_depends_on_its_box():
    empty = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    assert compose_one((10.0, 10, 40, 40), FAR, mask=empty).kept.tolist() == [0]
    assert (
        compose_one((10.0, 10, 40, 40), (slice(0, 96), slice(20, 96)), mask=empty).kept.tolist()
        == []
    )


def test_a_covered_small_box_near_the_origin_stays_in_the_reference_and_leaves_in_the_repair():
    box, paste = (1.0, 1, 8, 8), (slice(0, 30), slice(0, 30))
    reference = compose_one(box, paste, keep_sides=True)
    assert reference.boxes[0].tolist() == [0, 0, 0, 0]
    repaired = compose_one(box, paste, drop_slivers=True)
    assert repaired.kept.tolist() == []


def test_a_box_that_was_thin_before_the_paste_is_no_sliver_of_it():
    thin = (10.2, 10.0, 10.8, 40.0)
    assert compose_one(thin, FAR, keep_sides=True, drop_slivers=True).kept.tolist() == [0]
    half = compose_one(
        (10.6, 10.0, 40.0, 40.0), (slice(0, 96), slice(11, 96)), keep_sides=True, box_shift_px=99
    )
    assert half.boxes[0, ::2].tolist() == pytest.approx([10.6, 11])
    gone = compose_one(
        (10.6, 10.0, 40.0, 40.0),
        (slice(0, 96), slice(11, 96)),
        keep_sides=True,
        drop_slivers=True,
        box_shift_px=99,
    )
    assert gone.kept.tolist() == []


def test_boxes_do_not_grow_into_the_padding():
    valid = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    valid[:64, :80] = True
    composition = compose_one((10.5, 10.5, 80.0, 64.0), (slice(0, 5), slice(0, 5)), valid=valid)
    assert composition.boxes[0].tolist() == [10, 10, 80, 64]


def test_nothing_is_written_on_the_arguments():
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    boxes, masks = torch.tensor([[1.5, 1.5, 9, 9]]), torch.ones(1, 16, 16, dtype=torch.bool)
    pasted = torch.ones(1, 16, 16, dtype=torch.bool)
    copies = [part.clone() for part in (image, boxes, masks)]
    compose(image, masks, boxes, torch.zeros(1).long(), image + 9, pasted, torch.zeros(1).long())
    for part, copy in zip((image, boxes, masks), copies, strict=True):
        assert torch.equal(part, copy)


def test_an_image_without_instances_gets_the_pasted_ones():
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    pasted = torch.zeros(2, 16, 16, dtype=torch.bool)
    pasted[0, :4, :4] = pasted[1, 8:, 8:] = True
    composition = compose(
        image,
        torch.zeros(0, 4, 4, dtype=torch.bool),
        torch.zeros(0, 4),
        torch.zeros(0).long(),
        image + 9,
        pasted,
        torch.tensor([1, 2]),
    )
    assert composition.boxes.tolist() == [[0, 0, 4, 4], [8, 8, 16, 16]]
    assert composition.masks.sum(dim=(1, 2)).tolist() == [1, 4]


def test_sizes_must_fit():
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    with pytest.raises(ShapeError, match="pasted_masks"):
        compose(
            image,
            torch.zeros(0, 4, 4, dtype=torch.bool),
            torch.zeros(0, 4),
            torch.zeros(0).long(),
            image,
            torch.zeros(1, 8, 8, dtype=torch.bool),
            torch.zeros(1).long(),
        )

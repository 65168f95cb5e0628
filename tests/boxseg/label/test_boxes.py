"""Masks for known boxes of one image."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torchvision.ops import clip_boxes_to_image

from boxseg.config.method import BoxSegConfig, TrainConfig
from boxseg.errors import ShapeError
from boxseg.label import boxes as label
from boxseg.label import maps as label_maps
from boxseg.label.boxes import label_boxes, label_together
from boxseg.mask_parts import MaskPart
from boxseg.ops.box_parts import own_box_iou
from boxseg.ops.masks import pixels_inside
from boxseg.predict import Predictor
from boxseg.structures import Candidates, Sample

BOXES = torch.tensor([[4.0, 6, 40, 50], [10, 10, 10, 30], [30.5, 2.2, 31, 60], [-9, 50, 90, 99]])


@pytest.fixture(scope="module")
def predictor(trained_run):
    return Predictor(trained_run.checkpoint)


@pytest.fixture(scope="module")
def image():
    return torch.randint(
        0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def offer(monkeypatch, *offers):
    """Let the network's attempts find, one after the other, in close-ups of these numbers, and in their mirror images,
    masks of probability 0.99 in the left half of the box."""
    left = [(numbers, False) for numbers in offers] + [(numbers, True) for numbers in offers]

    def pick(network, predictions, batch, view, config):
        numbers, mirrored = left.pop(0)
        found = []
        for number, boxes in enumerate(batch.boxes):
            wanted = number in numbers and len(boxes) > 0
            height, width = (side // 4 for side in batch.weak.shape[-2:])
            probs = torch.full((int(wanted), height, width), 0.001)
            if wanted:
                x1, y1, x2, y2 = (boxes[0] / 4).round().int().tolist()
                middle, half = (x1 + x2) // 2, (y1 + y2) // 2
                probs[:, y1:y2, x1:x2] = 0.999
                probs[:, y1:half, slice(x1, middle) if mirrored else slice(middle, x2)] = 0.001
            ones = torch.ones(len(probs))
            found.append(
                Candidates(probs, 0.8 * ones, ones, torch.zeros(len(probs), dtype=torch.int64))
            )
        return found

    monkeypatch.setattr(label_maps, "pick_candidates", pick)
    monkeypatch.setattr(label_maps, "COLOR_WEIGHT", 0.0)


@pytest.mark.parametrize("color_weight", [0.0, 2.0])
def test_labels_trust_colours_alike_whatever_the_run_learnt_from(color_weight):
    config = BoxSegConfig.model_validate({"qam": {"color_weight": color_weight}})
    asked = [settings.qam.color_weight for settings in label_maps.attempts(config)]
    assert asked == [1.0, 1.0, 1.0]


def test_every_box_with_an_area_gets_a_mask_inside_it(predictor, image):
    found = label_boxes(predictor, image, BOXES)
    assert found.mask.shape == (4, 64, 64)
    assert found.mask.flatten(1).any(dim=1).tolist() == [True, False, True, True]
    assert not (found.mask & ~pixels_inside(BOXES.clamp(0, 64), (64, 64))).any()
    assert ((found.quality >= 0) & (found.quality <= 1)).all()
    assert (found.quality[1], found.num_candidates[1]) == (0, 0)


def test_a_box_gets_the_same_mask_alone_and_among_others(predictor, image):
    boxes = torch.cat([BOXES, torch.tensor([[10.0, 10, 50, 60]])])
    together = label_boxes(predictor, image, boxes)
    alone = label_boxes(predictor, image, boxes[4:])
    assert torch.equal(together.mask[4], alone.mask[0])
    assert together.quality[4] != alone.quality[0]


def test_the_mirror_image_gets_mirrored_masks(predictor, image):
    plain, mirrored = (
        label_boxes(predictor, image, BOXES),
        label_boxes(predictor, image.flip(2), mirror(BOXES)),
    )
    both = (plain.mask & mirrored.mask.flip(2)).flatten(1).sum(dim=1)
    either = (plain.mask | mirrored.mask.flip(2)).flatten(1).sum(dim=1)
    # colours of noise, which a sample of the pixels decides
    assert (both / either.clamp(min=1))[[0, 2, 3]].min() > 0.6


def mirror(boxes):
    return torch.stack([64 - boxes[:, 2], boxes[:, 1], 64 - boxes[:, 0], boxes[:, 3]], dim=1)


def test_images_of_several_sizes_are_labelled_together_as_alone(predictor, image):
    images = [image, image[:, :40], image.flip(1), image[:, :, :30]]
    samples = []
    for k, each in enumerate(images):
        size = (each.shape[1], each.shape[2])
        boxes = clip_boxes_to_image(BOXES[:k], size)
        samples.append(
            Sample(each, boxes, torch.full((k,), label.UNKNOWN), image_id=k, original_size=size)
        )
    for each, found in zip(samples, label_together(predictor, samples), strict=True):
        alone = label_boxes(predictor, each.image, each.boxes)
        assert torch.equal(found.mask, alone.mask)
        torch.testing.assert_close(found.quality, alone.quality, atol=1e-5, rtol=0)


def shares_of_quarters(mask, box):
    """Share of set pixels in the upper left, upper right, lower left and lower right quarter."""
    x1, y1, x2, y2 = box.int().tolist()
    middle, half = (x1 + x2) // 2, (y1 + y2) // 2
    parts = [
        mask[rows, columns]
        for rows in (slice(y1, half), slice(half, y2))
        for columns in (slice(x1, middle), slice(middle, x2))
    ]
    return [float(part.float().mean()) for part in parts]


def test_candidates_of_a_close_up_and_its_mirror_image_make_the_mask(predictor, monkeypatch):
    offer(monkeypatch, [0])
    grey = torch.full((3, 64, 64), 90, dtype=torch.uint8)
    boxes = torch.tensor([[8.0, 8, 48, 48]])
    found = label_boxes(predictor, grey, boxes)
    shares = shares_of_quarters(found.mask[0], boxes[0])
    assert shares[1] < 0.3
    assert min(shares[0], shares[2], shares[3]) > 0.7
    assert found.num_candidates.tolist() == [2]


def test_boxes_without_candidates_get_the_nearest_one_and_then_what_colours_suggest(
    predictor, monkeypatch
):
    picture = torch.full((3, 64, 64), 60, dtype=torch.uint8)
    picture[:, 4:16, 4:16] = 220
    boxes = torch.tensor([[20.0, 20, 60, 60], [4, 4, 16, 16]])
    offer(monkeypatch, [], [], [0])
    found = label_boxes(predictor, picture, boxes[:1])
    assert found.num_candidates.tolist() == [2]
    offer(monkeypatch, [], [], [])
    found = label_boxes(predictor, picture, boxes[1:])
    assert found.num_candidates.tolist() == [0]
    assert found.mask[0, 4:16, 4:16].float().mean() > 0.8
    assert (found.quality > 0).all()


def test_a_mask_fits_its_box_as_far_as_it_reaches():
    masks = torch.zeros(3, 10, 10, dtype=torch.bool)
    masks[0, 2:6, 2:8] = masks[1, 2:4, 2:8] = True
    boxes = torch.tensor([[2.0, 2, 8, 6]] * 3)
    assert own_box_iou([MaskPart(mask) for mask in masks.numpy()], boxes).tolist() == [
        1.0,
        0.5,
        0.0,
    ]


def test_pixels_of_a_box_have_their_centre_in_it_and_there_is_at_least_one():
    inside = pixels_inside(
        torch.tensor([[1.0, 2, 3, 5], [0.6, 0.6, 0.9, 2.4], [5, 5, 5, 9]]), (6, 6)
    )
    assert inside.flatten(1).sum(dim=1).tolist() == [6, 1, 0]
    assert inside[0].nonzero().tolist() == [[y, x] for y in (2, 3, 4) for x in (1, 2)]


def test_no_boxes_give_no_masks(predictor, image):
    assert label_boxes(predictor, image, torch.zeros(0, 4)).mask.shape == (0, 64, 64)


def test_boxes_and_labels_of_other_lengths_are_refused(predictor, image):
    with pytest.raises(ShapeError, match="labels"):
        label_boxes(predictor, image, BOXES, torch.zeros(3, dtype=torch.int64))


def test_boxes_and_labels_may_be_arrays_lists_and_tensors_that_learn(predictor, image):
    labels = torch.tensor([0, -1, 0, 0])
    expected = label_boxes(predictor, image, BOXES, labels)
    learning = BOXES.clone().requires_grad_()
    for boxes in (BOXES.numpy(), BOXES.double().numpy(), BOXES.tolist(), learning):
        found = label_boxes(predictor, image, boxes, labels.tolist())
        assert torch.equal(found.mask, expected.mask)
        assert torch.equal(found.quality, expected.quality)
    assert torch.equal(label_boxes(predictor, image, BOXES, labels.numpy()).mask, expected.mask)
    assert label_boxes(predictor, image, [], []).mask.shape == (0, 64, 64)


@pytest.mark.parametrize("label", [99, -2, 0.5])
def test_a_label_that_is_no_class_is_refused(predictor, image, label):
    with pytest.raises(ShapeError, match=rf"label 1 is {label}; .* predictor\.class_names, 0 … "):
        label_boxes(predictor, image, BOXES[:2], [0, label])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_box_that_is_not_finite_is_refused(predictor, image, value):
    with pytest.raises(ShapeError, match=rf"box 0 is \[4\.0, 6\.0, {value}, 50\.0\]; .* finite"):
        label_boxes(predictor, image, [[4.0, 6, value, 50]])


def test_a_mask_of_another_tool_counts_as_one_candidate(predictor, monkeypatch):
    grey = torch.full((3, 64, 64), 90, dtype=torch.uint8)
    boxes = torch.tensor([[8.0, 8, 56, 56]])
    drawn = torch.zeros(1, 64, 64, dtype=torch.bool)
    drawn[0, 8:56, 8:56] = True
    drawn[0, 8:32, 8:32] = False
    others = label.BoxLabels(
        [MaskPart(drawn[0].numpy())], (64, 64), torch.tensor([1.0]), torch.tensor([1])
    )
    offer(monkeypatch, [])
    found = label_boxes(predictor, grey, boxes, others=others)
    assert found.num_candidates.tolist() == [2]
    shares = shares_of_quarters(found.mask[0], boxes[0])
    assert shares[0] < 0.3
    assert min(shares[1:]) > 0.7


def test_close_ups_that_do_not_fit_in_memory_together_are_processed_in_parts(
    predictor, image, monkeypatch
):
    boxes = torch.tensor([[4.0, 6, 34, 36], [10, 10, 40, 40], [20, 5, 50, 35]])
    together = label_boxes(predictor, image, boxes)
    forward, seen = predictor.network.forward, []

    def watch(batch, valid):
        if len(batch) > 1:
            raise torch.OutOfMemoryError("too little memory")
        seen.append(len(batch))
        return forward(batch, valid)

    monkeypatch.setattr(predictor.network, "forward", watch)
    found = label_boxes(predictor, image, boxes)
    assert seen == [1] * 6
    assert torch.equal(found.mask, together.mask)


@pytest.mark.parametrize(
    ("side", "closer", "shown"),
    [(50, 1.0, 163.2), (200, 1.0, 200), (400, 1.0, 230.4), (400, 1.5, 345.6)],
)
def test_boxes_are_shown_larger_where_the_image_has_the_pixels(side, closer, shown):
    train = TrainConfig(window=256, object_size=(64.0, 192.0), closer=closer)
    predictor = SimpleNamespace(config=SimpleNamespace(train=train))
    boxes = torch.tensor([[300.0, 300, 300 + side, 320]])
    image = torch.zeros(3, 1000, 1000, dtype=torch.uint8)
    sample = Sample(image, boxes, torch.tensor([0]), image_id=1, original_size=(1000, 1000))
    window = label_maps.take_close_up(predictor, sample, 0).window
    assert side * window.size[1] / window.width == pytest.approx(shown, rel=0.01)


def test_crossing_curves_of_one_colour_are_marked_as_doubtful(predictor):
    picture = np.full((96, 96, 3), 160, dtype=np.uint8)
    cv2.line(picture, (12, 12), (80, 80), (40, 40, 40), 6)
    alone = label_boxes(predictor, picture, torch.tensor([[9.0, 9, 84, 84]]))
    assert alone.quality[0] > 0.9
    cv2.line(picture, (12, 80), (80, 12), (40, 40, 40), 6)
    crossed = label_boxes(predictor, picture, torch.tensor([[9.0, 9, 84, 84]] * 2))
    assert (crossed.quality < 0.6).all()  # each has the pixels of both, so an IoU of about a half


def test_a_close_up_shows_not_much_more_than_the_box_however_large_the_picture(predictor):
    # Shrunk to what the network was trained on, the box would be a pixel in the least window.
    image = torch.zeros((3, 1500, 2000), dtype=torch.uint8)
    box = torch.tensor([[800.0, 700, 820, 712]])
    sample = Sample(image, box, torch.tensor([0]), image_id=1, original_size=(1500, 2000))
    window = label_maps.take_close_up(predictor, sample, 0).window
    assert max(window.width, window.height) == 20 * label_maps.CONTEXT

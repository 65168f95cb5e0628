"""Masks for known boxes of one image."""

import pytest
import torch
from torchvision.ops import clip_boxes_to_image

from boxseg import label
from boxseg.errors import ShapeError
from boxseg.label import LAST_RESORT, clash, fit, label_boxes, label_together, pixels_inside
from boxseg.predict import Predictor
from boxseg.structures import Candidates, Sample

BOXES = torch.tensor([[4.0, 6, 40, 50], [10, 10, 10, 30], [30.5, 2.2, 31, 60], [-9, 50, 90, 99]])


@pytest.fixture(scope="module")
def predictor(trained_run):
    return Predictor(trained_run.checkpoint)


@pytest.fixture(scope="module")
def image():
    return torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def no_color(monkeypatch):
    monkeypatch.setattr(label, "COLOR_WEIGHT", 0.0)


def offer(monkeypatch, *offers):
    """Let the network's attempts find, one after the other, masks of probability 0.9 for these boxes; in the mirror
    image the same."""
    left = [(index, False) for index in offers] + [(index, True) for index in offers]

    def pick(network, predictions, batch, view, *, teacher, qam, fcos):
        numbers, mirrored = left.pop(0)
        index = torch.tensor(numbers, dtype=torch.int64)
        probs = torch.zeros(len(index), 16, 16)
        probs[:, 4:10, 4:10] = 0.9
        probs = probs.flip(2) if mirrored else probs
        return [Candidates(probs, torch.full((len(index),), 0.8), torch.ones(len(index)), index)]

    monkeypatch.setattr(label, "pick_candidates", pick)


def test_every_box_with_an_area_gets_a_mask_inside_it(predictor, image):
    found = label_boxes(predictor, image, BOXES)
    assert found.mask.shape == (4, 64, 64)
    assert found.mask.flatten(1).any(dim=1).tolist() == [True, False, True, True]
    assert not (found.mask & ~pixels_inside(BOXES.clamp(0, 64), (64, 64))).any()
    assert ((found.quality >= 0) & (found.quality <= 1)).all()
    assert (found.quality[1], found.num_candidates[1]) == (0, 0)


def test_a_box_gets_the_same_mask_alone_and_among_others_but_is_trusted_less_where_masks_clash(predictor, image):
    together, alone = label_boxes(predictor, image, BOXES), label_boxes(predictor, image, BOXES[2:3])
    assert torch.equal(together.mask[2], alone.mask[0])
    share = clash(together.mask, together.num_candidates > 0)[2]
    assert float(share) > 0
    assert float(together.quality[2]) == pytest.approx(float(alone.quality[0] * (1 - share / 2).sqrt()), abs=1e-6)


def test_masks_clash_where_another_found_mask_claims_the_pixel():
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, :2], masks[1, 1:], masks[2] = True, True, True
    assert clash(masks, torch.tensor([True, True, False])).tolist() == pytest.approx([1 / 2, 1 / 3, 0])


def test_the_mirror_image_gets_mirrored_masks(predictor, image):
    plain, mirrored = label_boxes(predictor, image, BOXES), label_boxes(predictor, image.flip(2), mirror(BOXES))
    assert torch.equal(plain.mask, mirrored.mask.flip(2))
    torch.testing.assert_close(plain.quality, mirrored.quality)


def mirror(boxes):
    return torch.stack([64 - boxes[:, 2], boxes[:, 1], 64 - boxes[:, 0], boxes[:, 3]], dim=1)


def test_images_of_several_sizes_are_labelled_together_as_alone(predictor, image):
    images = [image, image[:, :40], image.flip(1), image[:, :, :30]]
    samples = []
    for k, each in enumerate(images):
        size = (each.shape[1], each.shape[2])
        boxes = clip_boxes_to_image(BOXES[:k], size)
        samples.append(Sample(each, boxes, torch.full((k,), label.UNKNOWN), image_id=k, original_size=size))
    for each, found in zip(samples, label_together(predictor, samples, [None] * 4), strict=True):
        alone = label_boxes(predictor, each.image, each.boxes)
        assert torch.equal(found.mask, alone.mask)
        torch.testing.assert_close(found.quality, alone.quality, atol=1e-5, rtol=0)


def test_candidates_make_the_mask_and_its_quality(predictor, image, monkeypatch, no_color):
    offer(monkeypatch, [0, 0])
    boxes = torch.tensor([[8.0, 8, 48, 48]])
    found = label_boxes(predictor, image, boxes, scale=1.0)
    rows, columns = found.mask[0].any(dim=1).nonzero()[:, 0], found.mask[0].any(dim=0).nonzero()[:, 0]
    assert abs(int(rows[0]) - 16) <= 1
    assert abs(int(columns[-1]) - 39) <= 1
    trust = 0.9  # sqrt((0.8 + 1) / 2 * 0.9)
    assert float(found.quality[0]) == pytest.approx(trust * float(fit(found.mask, boxes)[0]) ** 0.25, abs=1e-4)
    assert found.num_candidates.tolist() == [4]  # two of the image, two of its mirror image


def test_boxes_without_candidates_get_the_nearest_and_then_the_box(predictor, image, monkeypatch, no_color):
    boxes = torch.tensor([[8.0, 8, 48, 48], [0, 0, 20, 20], [0, 0, 60, 60]])
    offer(monkeypatch, [0], [], [1])  # the third attempt numbers the boxes that are left: 1 and 2
    found = label_boxes(predictor, image, boxes, scale=1.0)
    trust = fit(found.mask, boxes)[2] ** 0.25 * (1 - clash(found.mask, found.num_candidates > 0)[2] / 2).sqrt()
    assert float(found.quality[2]) == pytest.approx(LAST_RESORT * 0.9 * float(trust), abs=1e-4)
    assert found.num_candidates.tolist() == [2, 0, 2]
    assert float(found.quality[1]) == 0
    assert torch.equal(found.mask[1], pixels_inside(boxes, (64, 64))[1])


def test_a_mask_fits_its_box_as_far_as_it_reaches():
    masks = torch.zeros(3, 10, 10, dtype=torch.bool)
    masks[0, 2:6, 2:8] = masks[1, 2:4, 2:8] = True
    assert fit(masks, torch.tensor([[2.0, 2, 8, 6]] * 3)).tolist() == [1.0, 0.5, 0.0]


def test_pixels_of_a_box_have_their_middle_in_it_and_are_one_at_least():
    inside = pixels_inside(torch.tensor([[1.0, 2, 3, 5], [0.6, 0.6, 0.9, 2.4], [5, 5, 5, 9]]), (6, 6))
    assert inside.flatten(1).sum(dim=1).tolist() == [6, 1, 0]
    assert inside[0].nonzero().tolist() == [[y, x] for y in (2, 3, 4) for x in (1, 2)]


def test_no_boxes_give_no_masks(predictor, image):
    assert label_boxes(predictor, image, torch.zeros(0, 4)).mask.shape == (0, 64, 64)


def test_boxes_and_labels_of_other_lengths_are_refused(predictor, image):
    with pytest.raises(ShapeError, match="labels"):
        label_boxes(predictor, image, BOXES, torch.zeros(3, dtype=torch.int64))


def test_a_mask_of_another_tool_counts_as_one_candidate(predictor, image, monkeypatch, no_color):
    boxes = torch.tensor([[8.0, 8, 48, 48], [0, 0, 20, 20]])
    drawn = torch.zeros(2, 64, 64, dtype=torch.bool)
    drawn[0, 16:40, 16:28] = True  # the left half of what the network says
    drawn[1, 4:16, 4:16] = True
    others = label.BoxLabels(drawn, torch.tensor([1.0, 1.0]), torch.tensor([1, 1]))
    offer(monkeypatch, [0])
    found = label_boxes(predictor, image, boxes, scale=1.0, others=others)
    assert found.num_candidates.tolist() == [4, 2]
    iou = (found.mask & drawn).flatten(1).sum(1) / (found.mask | drawn).flatten(1).sum(1)
    assert float(iou[1]) > 0.7  # alone it is the mask, as far as cells of 4 px can tell
    assert found.mask[0, 20:36, 18:26].all()

"""Detections as files, at the size of the pictures."""

import numpy as np
import torch
from PIL import Image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from boxseg.evaluation.panels import COLOURS, OPACITY
from boxseg.mask_parts import MaskPart
from boxseg.predict import files
from boxseg.predict.files import coco_annotations, draw_overlay, remove_earlier
from boxseg.structures import Detections

SIZE = (60, 90)


def detections(count):
    """Ellipses that overlap, more than there are colours."""
    generator = np.random.default_rng(1)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    masks, boxes = [], []
    for _ in range(count):
        middle_x, middle_y = generator.uniform(10, 80), generator.uniform(10, 50)
        width, height = generator.uniform(5, 20, 2)
        masks.append(((x - middle_x) / width) ** 2 + ((y - middle_y) / height) ** 2 < 1)
        boxes.append([middle_x - width, middle_y - height, middle_x + width, middle_y + height])
    return Detections(
        boxes=torch.tensor(boxes).reshape(-1, 4).clamp(0, 60),
        scores=torch.linspace(0.9, 0.1, count),
        labels=torch.zeros(count, dtype=torch.int64),
        parts=[MaskPart(mask) for mask in np.array(masks).reshape(-1, *SIZE)],
        size=SIZE,
    )


def test_an_overlay_has_the_pixels_that_torchvision_draws_where_masks_are_alone(tmp_path):
    image = torch.randint(
        256, (3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    found = detections(12)
    draw_overlay(image, found, ["thing"] * 12, tmp_path / "overlay.png")
    colours = [COLOURS[number % len(COLOURS)] for number in range(12)]
    expected = draw_segmentation_masks(image, found.masks, alpha=OPACITY, colors=colours)
    told = [f"thing {score:.2f}" for score in found.scores.tolist()]
    expected = draw_bounding_boxes(expected, found.boxes, labels=told, colors=colours)
    drawn = np.array(Image.open(tmp_path / "overlay.png"))
    is_shared = found.masks.sum(dim=0).numpy() > 1
    assert 0 < is_shared.sum() < is_shared.size / 2
    assert (drawn == expected.permute(1, 2, 0).numpy())[~is_shared].all()


def test_an_image_without_detections_is_its_own_overlay(tmp_path):
    image = torch.full((3, *SIZE), 77, dtype=torch.uint8)
    draw_overlay(image, detections(0), [], tmp_path / "overlay.png")
    assert (np.array(Image.open(tmp_path / "overlay.png")) == 77).all()


def test_annotations_have_the_area_of_their_masks():
    found = detections(5)
    annotations = coco_annotations(found, [7], image_id=3, first_id=11)
    assert [each["area"] for each in annotations] == found.masks.sum(dim=(1, 2)).tolist()
    assert [each["id"] for each in annotations] == [11, 12, 13, 14, 15]


def test_annotations_have_the_scores_and_boxes_of_the_detections_to_the_last_digit():
    found = detections(
        40
    )  # rounded, scores would tie and boxes move, so that AP would not be that of the run
    annotations = coco_annotations(found, [7], image_id=3, first_id=11)
    assert [each["score"] for each in annotations] == found.scores.tolist()
    boxes = torch.tensor([each["bbox"] for each in annotations], dtype=torch.float64)
    boxes[:, 2:] += boxes[:, :2]
    torch.testing.assert_close(boxes, found.boxes.double(), atol=1e-9, rtol=0)


def test_two_calls_may_remove_earlier_pictures_at_once(tmp_path, monkeypatch):
    for name in ("1.png", "2.png"):
        draw_overlay(torch.zeros(3, *SIZE, dtype=torch.uint8), detections(0), [], tmp_path / name)
    read_picture = files.read_picture

    def read_as_another_call_removes(path, read):
        content = read_picture(path, read)
        path.unlink()
        return content

    monkeypatch.setattr(files, "read_picture", read_as_another_call_removes)
    remove_earlier(tmp_path, ())
    assert not list(tmp_path.iterdir())

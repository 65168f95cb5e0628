"""Masks of detections that are looked at again as if their boxes were known."""

import numpy as np
import pytest
import torch

from boxseg.errors import ShapeError
from boxseg.label.boxes import label_boxes
from boxseg.label.refined import RefiningPredictor
from boxseg.predict import Predictor
from boxseg.predict import predictor as predict


@pytest.fixture(scope="module")
def plain(trained_run):
    return Predictor(trained_run.checkpoint)


@pytest.fixture(scope="module")
def refining(trained_run):
    return RefiningPredictor(trained_run.checkpoint)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    sizes = [(128, 128), (100, 140), (128, 128)]  # which the network sees at half their size
    return [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes
    ]


@pytest.fixture
def confident(plain, refining, images, monkeypatch):
    """The least score of objects that are looked at again, about half of them."""
    scores = torch.cat([found.scores for found in plain(images)])
    monkeypatch.setattr(refining, "min_score", float(scores.median()))
    return float(scores.median())


def same(part, other) -> bool:
    place = (part.top, part.left) == (other.top, other.left)
    return place and np.array_equal(part.pixels, other.pixels)


def test_confident_objects_get_the_masks_of_known_boxes(plain, refining, images, confident):
    changed = 0
    for image, before, after in zip(images, plain(images), refining(images), strict=True):
        for name in ("boxes", "scores", "labels"):
            torch.testing.assert_close(getattr(after, name), getattr(before, name))
        known = int((before.scores >= confident).sum())
        wanted = label_boxes(refining, image, before.boxes[:known], before.labels[:known]).parts
        assert len(before.parts) > known > 0
        for row, part in enumerate(after.parts):
            as_before = row >= known or not wanted[row].area
            assert same(part, before.parts[row] if as_before else wanted[row])
            changed += not same(part, before.parts[row])
    assert changed, "no mask was refined, so nothing was tested"


def test_images_are_refined_alike_in_batches_and_alone(refining, images, confident, monkeypatch):
    alone = refining(images)  # on a CPU one by one
    monkeypatch.setitem(predict.BATCH_SIZE, "cpu", 2)
    together = refining(iter(images))
    assert (
        [found.image_id for found in together] == [found.image_id for found in alone] == [0, 1, 2]
    )
    for here, there in zip(together, alone, strict=True):
        assert (here.masks != there.masks).float().mean() < 1e-3


def test_objects_below_the_score_keep_their_masks(plain, refining, images, monkeypatch):
    monkeypatch.setattr(refining, "min_score", 1.1)
    for before, after in zip(plain(images), refining(images), strict=True):
        assert all(map(same, before.parts, after.parts))


def test_images_that_are_not_shrunk_keep_their_masks(plain, refining, images, monkeypatch):
    monkeypatch.setattr(refining, "min_score", 0.0)
    small = [image[:, ::2, ::2] for image in images]
    for before, after in zip(plain(small), refining(small), strict=True):
        assert before.parts
        assert all(map(same, before.parts, after.parts))


def test_a_single_image_is_refused_as_by_every_predictor(refining, images):
    with pytest.raises(ShapeError, match=r"write \[image\]"):
        refining(images[0])

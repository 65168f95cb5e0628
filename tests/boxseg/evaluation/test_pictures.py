"""Tables and pictures of an evaluation, from detections of known goodness."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from boxseg.coco.masks import encode_rle
from boxseg.data.dataset import CocoBoxes
from boxseg.data.ground_truth import coco_ground_truth
from boxseg.data.mask_files import MaskFile
from boxseg.evaluation.ap import coco_scores
from boxseg.evaluation.objects import read_objects
from boxseg.evaluation.panels import place_numbers, scale_picture
from boxseg.evaluation.pictures import (
    _small_masks,
    draw_evaluation,
    draw_precision_recall,
)
from boxseg.ops.masks import resize_bool


@pytest.fixture
def data(trained_run):
    return CocoBoxes(trained_run.val, train=False)


@pytest.fixture
def results(data):
    """The drawn masks themselves; nothing is found in the third image."""
    found = read_objects(MaskFile.read(data.source.annotations), data)
    third = found[2]
    found[2] = replace(
        third,
        boxes_xywh=third.boxes_xywh[:0],
        scores=third.scores[:0],
        labels=third.labels[:0],
        rles=[],
    )
    return found


@pytest.fixture
def scores(data, results):
    ids = [result.image_id for result in results]
    return coco_scores(
        coco_ground_truth(data.source), results, image_ids=ids, category_ids=data.category_ids
    )


def test_each_image_has_an_ap_of_its_own(data, results, scores):
    aps = [scores.image_ap[result.image_id] for result in results]
    assert aps == pytest.approx([1, 1, 0, 1])


def test_the_last_evaluation_leaves_tables_and_pictures(data, results, scores, tmp_path):
    draw_evaluation(data, results, scores, tmp_path / "evaluation")
    pictures = {"precision_recall.png", "worst.png"}
    assert {path.name for path in (tmp_path / "evaluation").iterdir()} == {
        "classes.csv"
    } | pictures
    for name in pictures:
        assert len(np.unique(np.asarray(Image.open(tmp_path / "evaluation" / name)))) > 2, (
            f"{name} is blank"
        )
    header, *lines = (tmp_path / "evaluation/classes.csv").read_text().splitlines()
    assert header == "class,mask_ap,mask_ap50,mask_ap75,box_ap,box_ap50,box_ap75"
    assert [line.split(",")[0] for line in lines] == list(data.class_names)
    means = [float(line.split(",")[1]) for line in lines if line.split(",")[1]]
    assert np.mean(means) == pytest.approx(scores.metrics["mask_ap"], abs=1e-4)


def test_the_legend_of_precision_and_recall_covers_no_line_and_names_boxes(data, scores):
    figure = draw_precision_recall(scores, data.class_names)
    figure.canvas.draw()
    assert [axes.get_title() for axes in figure.axes] == ["masks", "boxes"]
    for axes in figure.axes:
        assert axes.get_legend().get_window_extent().y1 <= axes.get_window_extent().y0


def test_numbers_cover_neither_small_masks_nor_one_another():
    masks = np.zeros((4, 100, 100), dtype=bool)
    masks[0, 10:90, 10:90] = True
    masks[1, 14:60, 14:60] = True  # its number would stand in that of the first
    masks[2, 50:60, 50:60] = True  # smaller than its number
    masks[3, 60:95, 60:95] = True
    assert place_numbers(list(masks), [0.5, 0.6, 0.7, 0.8]) == [
        ((10, 10), "0.50"),
        ((60, 60), "0.80"),
    ]


def test_small_masks_are_those_of_the_whole_frame():
    generator = np.random.default_rng(0)
    for height, width in generator.integers(1, 500, (20, 2)).tolist():
        mask = generator.random((height, width)) < 0.8
        mask[: generator.integers(height)] = False
        mask[:, generator.integers(width) :] = False
        picture = Image.new("RGB", (width, height))
        small = scale_picture(picture, min(64 / max(height, width), 1.0))
        shown = _small_masks([encode_rle(mask)], small)
        frame = torch.from_numpy(mask[None])
        assert torch.equal(shown, resize_bool(frame, (small.height, small.width)))

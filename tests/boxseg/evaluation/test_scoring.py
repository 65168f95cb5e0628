"""Metrics of detections of known goodness: those that repeat the drawn masks."""

import json
from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from boxseg.config.method import CocoSource
from boxseg.data.dataset import CocoBoxes
from boxseg.data.mask_files import MaskFile
from boxseg.errors import ConfigError, DataError
from boxseg.evaluation.objects import find_objects, read_objects
from boxseg.evaluation.pictures import panel_row
from boxseg.evaluation.scoring import boundary_rle, box_fit_metrics, score_detections
from boxseg.predict import Predictor


@pytest.fixture
def data(trained_run):
    return CocoBoxes(trained_run.val, train=False)


@pytest.fixture
def perfect(data):
    return read_objects(MaskFile.read(data.source.annotations), data)


def bent(data, folder, change):
    content = json.loads(data.source.annotations.read_text())
    change(content)
    (folder / "bent.json").write_text(json.dumps(content))
    return CocoBoxes(
        CocoSource(images=data.source.images, annotations=folder / "bent.json"), train=False
    )


def without_masks(content):
    for annotation in content["annotations"]:
        del annotation["segmentation"]


def test_the_drawn_masks_themselves_score_one(data, perfect):
    scores = score_detections(data, perfect)
    for name in ("mask_ap", "boundary_ap", "box_ap", "mask_ap75", "boundary_ap50"):
        assert scores.metrics[name] == pytest.approx(1)
    classes = [scores.of_class(label) for label in range(len(data.class_names))]
    assert {name for each in classes for name in each if name.endswith("_ap")} == {
        "box_ap",
        "mask_ap",
        "boundary_ap",
    }


def test_blurred_outlines_cost_more_boundary_ap_than_mask_ap(data, perfect):
    def shrink(rle):
        mask = mask_utils.decode(rle).astype(bool)
        mask[:, 1:] &= mask[:, :-1].copy()
        return mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))

    shrunk = [replace(result, rles=[shrink(rle) for rle in result.rles]) for result in perfect]
    metrics = score_detections(data, shrunk).metrics
    assert metrics["boundary_ap"] < metrics["mask_ap"] < 1
    assert metrics["box_ap"] == pytest.approx(1)


def test_the_boundary_of_a_square_is_its_rim():
    mask = np.zeros((100, 100), dtype=np.uint8)
    mask[20:80, 0:60] = 1
    rim = mask_utils.decode(boundary_rle(mask_utils.encode(np.asfortranarray(mask)))).astype(bool)
    # 2 % of the diagonal are 3 px; the image border is an outline too
    assert rim.sum() == 60 * 60 - 54 * 54


def test_boxes_without_masks_give_no_mask_ap(data, perfect, tmp_path):
    boxes_only = bent(data, tmp_path, without_masks)
    scores = score_detections(boxes_only, perfect)
    assert set(scores.precision) == {"box"}
    assert not any("mask" in name or "boundary" in name for name in scores.metrics)
    fit = box_fit_metrics(boxes_only, perfect)
    assert fit["box_recall"] == 1
    assert fit["box_tightness"] > 0.95


def test_box_recall_is_zero_where_nothing_is_found(data, perfect):
    nothing = [
        replace(
            each,
            boxes_xywh=each.boxes_xywh[:0],
            scores=each.scores[:0],
            labels=each.labels[:0],
            rles=[],
        )
        for each in perfect
    ]
    assert box_fit_metrics(data, nothing) == {"box_recall": 0}
    assert panel_row(data, 0, nothing[0]).quality.tolist() == [0.0] * len(data.annotation_ids(0))


def test_classes_are_matched_by_name(data, trained_run, tmp_path):
    def rename(content):
        for category in content["categories"]:
            category["name"] = f"other {category['name']}"

    with pytest.raises(ConfigError, match="other"):
        next(find_objects(Predictor(trained_run.checkpoint), bent(data, tmp_path, rename)))
    results = list(find_objects(Predictor(trained_run.checkpoint), data))
    assert [result.image_id for result in results] == [
        data.image_id(index) for index in range(len(data))
    ]


def test_a_file_with_unknown_classes_is_refused(data, tmp_path):
    def renumber(content):
        content["annotations"][0]["category_id"] = 99

    other = bent(data, tmp_path, lambda content: None)
    path = tmp_path / "found.json"
    content = json.loads(data.source.annotations.read_text())
    renumber(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="category id 99"):
        read_objects(MaskFile.read(path), other)

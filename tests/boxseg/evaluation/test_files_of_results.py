"""Files of detections that do not mean what they say are refused or reported, not scored in silence."""

import json

import pytest

from boxseg.config.method import CocoSource
from boxseg.data.dataset import CocoBoxes
from boxseg.data.mask_files import MaskFile
from boxseg.errors import DataError
from boxseg.evaluation.objects import read_objects

BOXES = [[4, 4, 16, 12], [30, 6, 20, 14]]


def entry(bbox, category_id=1, **fields):
    x, y, width, height = bbox
    polygon = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    own = {"image_id": 1, "category_id": category_id, "bbox": bbox, "segmentation": polygon}
    return own | fields


@pytest.fixture
def data(tmp_path):
    annotations = [entry(box) | {"id": i, "iscrowd": 0} for i, box in enumerate(BOXES, start=1)]
    image = {"id": 1, "file_name": "a.png", "width": 64, "height": 48}
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"images": [image], "annotations": annotations, "categories": categories}
    (tmp_path / "gt.json").write_text(json.dumps(content))
    source = CocoSource(images=tmp_path, annotations=tmp_path / "gt.json")
    return CocoBoxes(source, train=False)


@pytest.fixture
def read(data, tmp_path):
    def call(entries):
        (tmp_path / "results.json").write_text(json.dumps(entries))
        return read_objects(MaskFile.read(tmp_path / "results.json"), data)

    return call


def test_sound_results_are_read_without_a_warning(read, caplog):
    (found,) = read([entry(box, score=0.9 - i / 10) for i, box in enumerate(BOXES)])
    assert found.boxes_xywh.tolist() == BOXES
    assert not caplog.messages


def test_crowds_beside_detections_are_left_out(read, caplog):
    (found,) = read([entry(BOXES[0], score=0.9), entry(BOXES[1], iscrowd=1)])
    assert found.boxes_xywh.tolist() == BOXES[:1]
    assert "1 of 2 entries are crowds (iscrowd 1)" in caplog.text


def test_a_detection_that_is_marked_as_a_crowd_counts(read):
    (found,) = read([entry(box, score=0.9, iscrowd=1) for box in BOXES])
    assert found.boxes_xywh.tolist() == BOXES


def test_a_file_of_crowds_alone_is_refused_and_says_so(read, caplog):
    with pytest.raises(DataError, match="has no mask for any image"):
        read([entry(box, iscrowd=1) for box in BOXES])
    assert "2 of 2 entries are crowds" in caplog.text


def test_boxes_that_are_corners_of_their_masks_are_refused(read):
    corners = [[4, 4, 20, 16], [30, 6, 50, 20]]
    entries = [entry(box, score=0.9) for box in BOXES]
    for each, box in zip(entries, corners, strict=True):
        each["bbox"] = box
    with pytest.raises(
        DataError, match=r"such as \[4.0, 4.0, 20.0, 16.0\], fit their masks as x1"
    ):
        read(entries)


def test_run_lengths_that_are_counted_along_the_rows_are_refused(read):
    entries = [entry(box, score=0.9) for box in BOXES]
    # The first of 16 x 12 px at 4, 4: 4 rows of 64 px and 4 px before it, 48 between its rows.
    rows = [4 * 64 + 4, *[16, 48] * 11, 16]
    entries[0]["segmentation"] = {"size": [48, 64], "counts": [*rows, 48 * 64 - sum(rows)]}
    rows = [6 * 64 + 30, *[20, 44] * 13, 20]
    entries[1]["segmentation"] = {"size": [48, 64], "counts": [*rows, 48 * 64 - sum(rows)]}
    with pytest.raises(
        DataError, match="2 of 2 masks fit their boxes only if run lengths are cou"
    ):
        read(entries)


def test_masks_away_from_their_boxes_are_reported(read, caplog):
    entries = [entry(box, score=0.9) for box in BOXES]
    first, second = (each["bbox"] for each in entries)
    entries[0]["bbox"], entries[1]["bbox"] = second, first
    read(entries)
    assert "2 of 2 masks are away from their boxes" in caplog.text


def test_loose_boxes_of_a_detector_are_accepted(read, caplog):
    entries = [entry(box, score=0.9) for box in BOXES]
    entries[0]["bbox"] = [0, 0, 60, 40]
    assert read(entries)[0].boxes_xywh[0].tolist() == [0, 0, 60, 40]


def test_repeated_detections_are_reported(read, caplog):
    read([entry(box, score=0.9) for box in BOXES] * 2)
    assert "2 of 4 entries repeat another" in caplog.text


def test_a_file_without_scores_is_reported(read, caplog):
    read([entry(box) for box in BOXES])
    assert "no entry has a score" in caplog.text


def test_classes_that_are_counted_differently_are_reported(read, caplog):
    read([entry(box, category_id=2, score=0.9) for box in BOXES])
    assert "2 of 2 objects are only found as another class" in caplog.text
    caplog.clear()
    # One of two may be a mistake of the network.
    read([entry(box, category_id=1 + i, score=0.9) for i, box in enumerate(BOXES)])
    assert "another class" not in caplog.text


def detections_of_classes(names):
    entries = [entry(box, category_id=i, score=0.9) for i, box in enumerate(BOXES, start=1)]
    images = [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}]
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    return {"images": images, "annotations": entries, "categories": categories}


def test_classes_that_the_data_lacks_are_left_out(read, caplog):
    (found,) = read(detections_of_classes(["cat", "bird"]))
    assert found.labels.tolist() == [0]
    assert "1 classes of the file are not in these data and are left out: bird" in caplog.text
    assert (
        "1 classes that the file lacks, or that share a name, count as never found: dog"
        in caplog.text
    )


def test_a_file_without_any_class_of_the_data_is_refused(read):
    with pytest.raises(DataError, match=r"an entry has category id 1, which .* lacks"):
        read(detections_of_classes(["fish", "bird"]))


def test_a_class_that_neither_the_file_nor_the_data_lists_is_refused(read):
    with pytest.raises(DataError, match=r"an entry has category id 2, which .* lacks"):
        read(detections_of_classes(["cat"]))


def test_an_image_that_may_be_either_of_two_is_refused(data, tmp_path):
    content = json.loads((tmp_path / "gt.json").read_text())
    size = {"width": 64, "height": 48}
    content["images"] = [{"id": i, "file_name": f"{i}/1.png"} | size for i in (1, 2)]
    (tmp_path / "gt.json").write_text(json.dumps(content))
    theirs = detections_of_classes(["cat", "dog"])
    theirs["images"] = [{"id": 1, "file_name": "1.png"}]
    (tmp_path / "results.json").write_text(json.dumps(theirs))
    file = MaskFile.read(tmp_path / "results.json")
    with pytest.raises(DataError, match=r"its image '1.png' may be '1/1.png' or '2/1.png'"):
        read_objects(file, CocoBoxes(data.source, train=False))

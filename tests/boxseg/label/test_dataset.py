"""Masks for the boxes of a whole data set: sources, resuming, and what is written."""

import json
import resource
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from boxseg.coco.masks import decode_segmentation
from boxseg.config.method import CocoSource
from boxseg.data.dataset import CocoBoxes
from boxseg.data.mask_files import MaskFile
from boxseg.errors import ConfigError, DataError
from boxseg.label import sources as label_sources
from boxseg.label.dataset import label_images, write_labels
from boxseg.label.journal import JOURNAL, Journal
from boxseg.label.maps import UNKNOWN
from boxseg.predict import Predictor

WRITTEN = ("labels.coco.json", "labels.polygons.json", JOURNAL)


@pytest.fixture
def data(trained_run):
    return CocoBoxes(trained_run.val, train=False)


@pytest.fixture
def drawn(data):
    return label_sources.from_file(MaskFile.read(data.source.annotations), data)


BOXES = label_sources.from_boxes


def label_all(data, source, folder):
    journal = Journal(folder, {"source": "test"})
    list(label_images(data, source, journal, batch_size=3))
    return write_labels(data, journal, folder)


def read(path):
    return json.loads(path.read_text())


def bent(data, folder, change):
    """The data set with a changed annotation file."""
    content = read(data.source.annotations)
    change(content)
    (folder / "bent.json").write_text(json.dumps(content))
    return CocoBoxes(
        CocoSource(images=data.source.images, annotations=folder / "bent.json"), train=False
    )


def test_every_annotation_keeps_its_fields_and_gets_a_mask_and_a_quality(
    data, trained_run, tmp_path
):
    label_all(data, label_sources.from_run(Predictor(trained_run.checkpoint), data), tmp_path)
    before, after = read(data.source.annotations), read(tmp_path / "labels.coco.json")
    assert [each["id"] for each in after["annotations"]] == [
        each["id"] for each in before["annotations"]
    ]
    for old, new in zip(before["annotations"], after["annotations"], strict=True):
        assert new["drawn_segmentation"] == old.pop("segmentation")
        assert new["area"] == decode_segmentation(new["segmentation"], (64, 64)).sum()
        del old["area"]
        assert {key: new[key] for key in old} == old
        assert 0 <= new["quality"] <= 1
        assert set(new["checks"]) == {"outside", "gap", "fill", "pieces"}
    assert {key: after[key] for key in ("images", "categories")} == {
        key: before[key] for key in ("images", "categories")
    }
    assert (
        COCO(tmp_path / "labels.coco.json").anns.keys()
        == COCO(data.source.annotations).anns.keys()
    )


def test_new_masks_of_reviewed_labels_are_neither_accepted_nor_drawn(data, tmp_path):
    label_all(data, BOXES, tmp_path / "first")
    labels = read(tmp_path / "first/labels.coco.json")["annotations"]

    def review(content):
        content["annotations"] = labels
        labels[0]["review"] = "accept"
        labels[1]["review"] = "reject"
        del labels[1]["segmentation"]

    label_all(bent(data, tmp_path, review), BOXES, tmp_path / "second")
    for old, new in zip(
        labels, read(tmp_path / "second/labels.coco.json")["annotations"], strict=True
    ):
        assert "review" not in new
        assert (
            new["drawn_segmentation"] == old["drawn_segmentation"]
        )  # of the person, not of the first labels


def test_masks_of_a_file_come_through_unchanged_in_every_format(data, drawn, tmp_path):
    summary = label_all(data, drawn, tmp_path)
    assert summary["without_candidates"] == 0
    true = {each["id"]: each for each in read(data.source.annotations)["annotations"]}
    for name in ("labels.coco.json", "labels.polygons.json"):
        for each in read(tmp_path / name)["annotations"]:
            found = decode_segmentation(each["segmentation"], (64, 64))
            assert np.array_equal(
                found, decode_segmentation(true[each["id"]]["segmentation"], (64, 64))
            )


def test_labelling_after_a_kill_ends_with_the_same_files(data, drawn, tmp_path):
    label_all(data, drawn, tmp_path / "whole")
    label_all(data, drawn, tmp_path / "torn")
    journal = tmp_path / "torn" / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    # killed while it wrote the third image
    journal.write_bytes(b"".join(lines[:3]) + lines[3][: len(lines[3]) // 2])
    (tmp_path / "torn/labels.coco.json").unlink()
    assert len(Journal(tmp_path / "torn", {"source": "test"}).done) == 2
    label_all(data, drawn, tmp_path / "torn")
    for name in WRITTEN:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "torn" / name).read_bytes()


def test_the_labels_of_other_data_are_not_mixed_in(data, drawn, tmp_path):
    label_all(data, drawn, tmp_path)
    with pytest.raises(ConfigError, match="another source"):
        Journal(tmp_path, {"source": "other"})


def test_an_image_that_cannot_be_read_is_skipped_and_named(data, tmp_path):
    def lose(content):
        content["images"][0]["file_name"] = "gone.png"
        content["images"][1]["file_name"] = "../outside.png"

    lost = bent(data, tmp_path, lose)
    summary = label_all(lost, BOXES, tmp_path / "out")
    assert len(summary["unreadable"]) == 2
    assert "gone.png" in summary["unreadable"][0]
    written = read(tmp_path / "out/labels.coco.json")
    gone = [
        each for each in written["annotations"] if each["image_id"] == written["images"][0]["id"]
    ]
    assert [each["quality"] for each in gone] == [0.0] * len(gone)
    assert all(decode_segmentation(each["segmentation"], (64, 64)).any() for each in gone)
    assert all(
        isinstance(each["segmentation"], list)
        for each in read(tmp_path / "out/labels.polygons.json")["annotations"]
    )


def test_an_image_that_could_not_be_read_is_tried_again(data, tmp_path):
    place = data.source.images / data.file_name(0)
    away = place.rename(tmp_path / place.name)
    assert len(label_all(data, BOXES, tmp_path / "out")["unreadable"]) == 1
    away.rename(place)
    assert label_all(data, BOXES, tmp_path / "out")["unreadable"] == []


def test_an_image_that_was_replaced_is_labelled_again(data, tmp_path):
    def watch(items):
        seen.extend(sample.image_id for sample, _ in items)
        return BOXES(items)

    seen = []
    images = shutil.copytree(data.source.images, tmp_path / "images")
    source = CocoSource(images=images, annotations=data.source.annotations)
    copied = CocoBoxes(source, train=False)
    label_all(copied, BOXES, tmp_path)
    Image.new("RGB", (64, 64), (10, 200, 30)).save(images / data.file_name(1))
    journal = Journal(tmp_path, {"source": "test"})
    assert journal.forget_changed(copied) == 1
    list(label_images(copied, watch, journal))
    assert seen == [data.image_id(1)]
    assert Journal(tmp_path, {"source": "test"}).forget_changed(copied) == 0


def test_an_image_that_is_replaced_while_it_is_read_is_labelled_again(data, tmp_path):
    class Replaced(CocoBoxes):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            Image.new("RGB", (64, 64), (10, 200, 30)).save(images / self.file_name(index))
            return sample

    images = shutil.copytree(data.source.images, tmp_path / "images")
    source = CocoSource(images=images, annotations=data.source.annotations)
    label_all(Replaced(source, train=False), BOXES, tmp_path)
    journal = Journal(tmp_path, {"source": "test"})
    assert journal.forget_changed(CocoBoxes(source, train=False)) > 0


@pytest.mark.parametrize("bbox", [[3, 3, 0, 5], [float("nan"), 1, 4, 4], [100, 100, 5, 5]])
def test_a_box_without_area_gets_an_empty_mask(data, tmp_path, bbox):
    def squash(content):
        content["annotations"][0]["bbox"] = bbox

    label_all(bent(data, tmp_path, squash), BOXES, tmp_path / "out")
    first = read(tmp_path / "out/labels.coco.json")["annotations"][0]
    assert first["quality"] == 0
    assert not decode_segmentation(first["segmentation"], (64, 64)).any()


def test_crowds_are_left_as_they_are(data, tmp_path):
    def crowd(content):
        content["annotations"][0]["iscrowd"] = 1

    label_all(bent(data, tmp_path, crowd), BOXES, tmp_path / "out")
    before, after = read(tmp_path / "bent.json"), read(tmp_path / "out/labels.coco.json")
    assert after["annotations"][0] == before["annotations"][0]


def test_yolo_files_have_a_line_per_box_and_links_to_the_images(data, drawn, tmp_path):
    label_all(data, drawn, tmp_path)
    content = read(data.source.annotations)
    for image in content["images"]:
        path = tmp_path / "yolo/labels" / image["file_name"]
        boxes = sum(each["image_id"] == image["id"] for each in content["annotations"])
        assert len(path.with_suffix(".txt").read_text().splitlines()) == boxes
        assert (tmp_path / "yolo/images" / image["file_name"]).samefile(
            data.source.images / image["file_name"]
        )
    # trainers then look beside the file
    assert "path:" not in (tmp_path / "yolo/data.yaml").read_text()


def test_classes_are_matched_by_name(data, trained_run, monkeypatch, tmp_path):
    seen = []

    def watch(predictor, samples, others):
        seen.extend(label for each in samples for label in each.labels.tolist())
        return label_sources.from_boxes([(each, []) for each in samples])

    def rename(content):
        content["categories"] = [
            each | {"name": each["name"].upper()} for each in content["categories"]
        ]
        content["categories"][0]["name"] = "stranger"

    renamed = bent(data, tmp_path, rename)
    monkeypatch.setattr(label_sources, "label_together", watch)
    list(
        label_images(
            renamed,
            label_sources.from_run(Predictor(trained_run.checkpoint), renamed),
            Journal(tmp_path / "o", {}),
        )
    )
    expected = torch.cat([renamed[index].labels for index in range(len(renamed))])
    assert seen == torch.where(expected == 0, UNKNOWN, expected).tolist()


def test_results_of_another_tool_are_matched_by_their_boxes(data, tmp_path):
    first = read(data.source.annotations)["annotations"][0]
    path = tmp_path / "results.json"
    entry = {
        "image_id": first["image_id"],
        "category_id": 1,
        "segmentation": first["segmentation"],
        "score": 0.75,
    }
    path.write_text(json.dumps([entry]))
    summary = label_all(data, label_sources.from_file(MaskFile.read(path), data), tmp_path / "out")
    assert summary["boxes"] - summary["without_candidates"] == 1
    assert read(tmp_path / "out/labels.coco.json")["annotations"][0]["quality"] == 0.75


@pytest.mark.parametrize(
    ("boxes", "masks", "expected"),
    [
        # one mask, two boxes that it overlaps by half: it is that of the better one
        ([[10, 10, 40, 40], [10, 10, 40, 50]], [[10, 10, 38, 40]], [0, None]),
        # the mask of the second box overlaps the first as well, which has one of its own
        ([[10, 10, 40, 40], [10, 10, 40, 50]], [[10, 10, 40, 49], [10, 10, 40, 38]], [1, 0]),
        # of two boxes in one place, each gets the mask of its class
        ([[10, 10, 40, 40], [10, 10, 40, 40, "cat"]], [[10, 10, 40, 40, "cat"]], [None, 0]),
        # ids that are the same by chance say nothing against a far better fit
        ([[10, 10, 40, 40], [10, 10, 40, 60]], [[10, 10, 40, 60], [10, 10, 40, 40]], [1, 0]),
        # of two objects in one place, ids tell which is which
        ([[10, 10, 40, 40]] * 2, [[10, 10, 40, 39], [10, 10, 40, 40]], [0, 1]),
    ],
)
def test_a_mask_of_a_file_is_that_of_one_box(tmp_path, boxes, masks, expected):
    names = ["dog", "cat"]
    Image.new("RGB", (100, 90)).save(tmp_path / "a.png")

    def entry(number, values):
        x, y, width, height, *name = values
        return {
            "id": number,
            "image_id": 1,
            "category_id": names.index(*name or ["dog"]) + 1,
            "bbox": [x, y, width, height],
            "segmentation": [[x, y, x + width, y, x + width, y + height, x, y + height]],
        }

    for name, objects in (("data", boxes), ("masks", masks)):
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 90}],
            "categories": [{"id": index + 1, "name": each} for index, each in enumerate(names)],
            "annotations": [entry(number, values) for number, values in enumerate(objects, 1)],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    data = CocoBoxes(CocoSource(images=tmp_path, annotations=tmp_path / "data.json"), train=False)
    source = label_sources.from_file(MaskFile.read(tmp_path / "masks.json"), data)
    parts = source([(data[0], data.annotation_ids(0))])[0].parts
    sizes = [None if index is None else masks[index][2] * masks[index][3] for index in expected]
    assert [part.area or None for part in parts] == sizes


def test_percentages_in_place_of_a_quality_are_refused(data, tmp_path):
    first = read(data.source.annotations)["annotations"][0]
    (tmp_path / "results.json").write_text(json.dumps([first | {"score": 85}]))
    with pytest.raises(DataError, match=r"score 85; .*divide percentages by 100"):
        label_sources.from_file(MaskFile.read(tmp_path / "results.json"), data)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"annotations": [{"segmentation": [[1]], "image_id": 1}]}', "[3]"]
)
def test_a_file_without_masks_is_refused(data, tmp_path, content):
    (tmp_path / "masks.json").write_text(content)
    with pytest.raises(DataError, match=r"masks\.json"):
        label_sources.from_file(MaskFile.read(tmp_path / "masks.json"), data)


@pytest.mark.parametrize(
    ("first", "second"), [("[1]", ""), ("rubbish", ""), ("{}", '{"image": 3}'), ("{}", "rubbish")]
)
def test_a_damaged_journal_is_reported_with_its_line(tmp_path, first, second):
    (tmp_path / JOURNAL).write_text(f"{first}\n{second}\n" if second else f"{first}\n")
    with pytest.raises(DataError, match=rf"labels\.jsonl:{2 if second else 1}: is damaged"):
        Journal(tmp_path, {})


def test_a_large_image_of_many_boxes_takes_no_frame_for_each(tmp_path):
    size, rng = (3000, 4000), np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    boxes = [
        [*rng.integers(0, 2000, 2).tolist(), *rng.integers(20, 600, 2).tolist()]
        for _ in range(100)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": size[1], "height": size[0]}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": 1, "bbox": box}
            for k, box in enumerate(boxes, 1)
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    data = CocoBoxes(CocoSource(images=tmp_path, annotations=tmp_path / "a.json"), train=False)
    before = resource.getrusage(resource.RUSAGE_SELF)
    label_all(data, label_sources.from_boxes, tmp_path / "out")
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_maxrss - before.ru_maxrss < 400_000  # KiB; 100 frames are 1,200,000
    assert after.ru_utime - before.ru_utime < 10  # 1.4 measured
    found = read(tmp_path / "out/labels.polygons.json")["annotations"]
    x, y, width, height = boxes[0]
    corners = {(x, y), (x + width, y), (x + width, y + height), (x, y + height)}
    assert set(zip(*[iter(found[0]["segmentation"][0])] * 2, strict=True)) == corners

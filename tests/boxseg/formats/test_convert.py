"""Converters on tiny files in the formats that the archives have."""

import os

import numpy as np
import pytest
import scipy.io
from PIL import Image
from pycocotools import mask as coco_mask

from boxseg.errors import DataError
from boxseg.formats import sbd
from boxseg.formats.convert import convert
from boxseg.formats.voc import VOC_CLASSES

OBJECT = """<object><name>{}</name><difficult>{}</difficult>
<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


def write_voc(root):
    """Image `a` is segmented and has a dog, a cat and a difficult person without a mask; `b` has a box alone."""
    for folder in (
        "Annotations",
        "ImageSets/Segmentation",
        "ImageSets/Main",
        "SegmentationObject",
        "SegmentationClass",
    ):
        (root / folder).mkdir(parents=True)
    numbers, classes = np.zeros((2, 40, 60), dtype=np.uint8)
    numbers[10:20, 30:50], classes[10:20, 30:50] = 1, VOC_CLASSES.index("cat") + 1
    numbers[2:12, 4:14], classes[2:12, 4:14] = 2, VOC_CLASSES.index("dog") + 1
    numbers[9, 28:52] = classes[9, 28:52] = 255
    for folder, pixels in (("SegmentationObject", numbers), ("SegmentationClass", classes)):
        picture = Image.fromarray(pixels, mode="P")
        picture.putpalette([value for index in range(256) for value in (index, index, index)])
        picture.save(root / folder / "a.png")
    objects = (("dog", 0, 5, 3, 14, 12), ("cat", 0, 31, 10, 50, 20), ("person", 1, 51, 1, 60, 10))
    write_xml(root, "a", *objects)
    write_xml(root, "b", ("car", 0, 1, 1, 60, 40))
    (root / "ImageSets/Segmentation/val.txt").write_text("a\n")
    (root / "ImageSets/Main/trainval.txt").write_text("a\nb\n")
    return root


def write_xml(root, stem, *objects):
    text = "".join(OBJECT.format(*each) for each in objects)
    size = "<size><width>60</width><height>40</height><depth>3</depth></size>"
    (root / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{size}{text}</annotation>")


def test_a_coco_file_is_taken_over_without_its_faults(content, write_source):
    content["annotations"].append(
        {"id": 99, "image_id": 10, "category_id": 77, "bbox": [1, 1, 2, 2]}
    )
    content["images"].append(content["images"][0] | {"id": 98, "file_name": "../out.png"})
    source = write_source(content)
    (split,) = convert(source.annotations, "coco").values()
    assert split.content["annotations"] == content["annotations"][:-1]
    assert split.content["images"] == content["images"][:-1]
    assert split.leave_out({"a"}) == 1
    assert "a.png" not in [image["file_name"] for image in split.content["images"]]


def described(split):
    names = {each["id"]: each["name"] for each in split.content["categories"]}
    return [
        (names[each["category_id"]], each["bbox"], each["iscrowd"])
        for each in split.content["annotations"]
    ]


def mask_of(annotation):
    return coco_mask.decode(annotation["segmentation"]).astype(bool)


def test_segmented_images_of_voc_have_masks_and_tight_boxes(tmp_path):
    split = convert(write_voc(tmp_path), "voc")["val"]
    assert split.images == tmp_path / "JPEGImages"
    assert split.content["images"] == [{"id": 1, "file_name": "a.jpg", "height": 40, "width": 60}]
    assert described(split) == [("cat", [30, 10, 20, 10], 0), ("dog", [4, 2, 10, 10], 0)]
    assert [each["area"] for each in split.content["annotations"]] == [200, 100]
    assert mask_of(split.content["annotations"][0])[10:20, 30:50].all()


def test_boxes_of_voc_count_from_one(tmp_path):
    split = convert(write_voc(tmp_path), "voc")["boxes_trainval"]
    assert described(split) == [
        ("dog", [4, 2, 10, 10], 0),
        ("cat", [30, 9, 20, 11], 0),
        ("person", [50, 0, 10, 10], 1),
        ("car", [0, 0, 60, 40], 0),
    ]
    assert [each["image_id"] for each in split.content["annotations"]] == [1, 1, 1, 2]


def test_images_can_be_left_out(tmp_path):
    splits = convert(write_voc(tmp_path), "voc")
    assert [split.leave_out({"a"}) for split in splits.values()] == [1, 1]
    assert [each["file_name"] for each in splits["boxes_trainval"].content["images"]] == ["b.jpg"]
    assert splits["val"].content["images"] == []


def write_sbd(root):
    (root / "inst").mkdir(parents=True)
    for stem, categories in (("a", [15, 7]), ("b", [3])):
        numbers = np.zeros((30, 20), dtype=np.uint8)
        numbers[5:10, 2:8] = 1
        if len(categories) > 1:
            numbers[20:30, 10:20] = 2
        truth = {
            "Segmentation": numbers,
            # sparse matrices, which nobody reads here
            "Boundaries": np.zeros((len(categories), 1)),
            "Categories": np.array(categories, dtype=np.float64)[:, None],
        }
        scipy.io.savemat(root / "inst" / f"{stem}.mat", {"GTinst": truth}, do_compression=True)
    (root / "train.txt").write_text("a\n")
    (root / "val.txt").write_text("b\n")
    return root


def test_sbd_has_masks_with_one_object_or_several(tmp_path):
    splits = convert(write_sbd(tmp_path), "sbd")
    assert described(splits["train"]) == [
        ("person", [2, 5, 6, 5], 0),
        ("car", [10, 20, 10, 10], 0),
    ]
    assert described(splits["val"]) == [("bird", [2, 5, 6, 5], 0)]
    assert [each["file_name"] for each in splits["trainval"].content["images"]] == [
        "a.jpg",
        "b.jpg",
    ]
    assert [each["image_id"] for each in splits["trainval"].content["annotations"]] == [1, 1, 2]
    assert splits["train"].images == tmp_path / "img"


@pytest.mark.parametrize("format_name", ["voc", "sbd"])
def test_a_folder_in_another_layout_is_refused_with_what_was_looked_for(tmp_path, format_name):
    with pytest.raises(DataError, match=r"has no .*train.*; the source is the"):
        convert(tmp_path, format_name)


def test_a_picture_of_far_too_many_pixels_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(
        DataError, match=r"a\.png: the picture is too large: .* \(unpack the archive"
    ):
        convert(write_voc(tmp_path), "voc")


def test_a_class_number_that_voc_does_not_have_is_named_with_its_picture(tmp_path):
    root = write_voc(tmp_path)
    Image.fromarray(np.full((40, 60), 21, dtype=np.uint8)).save(root / "SegmentationClass/a.png")
    with pytest.raises(
        DataError, match=r"SegmentationClass/a\.png: has an object of class number 21; .* out of"
    ):
        convert(root, "voc")


def test_broken_files_are_named(tmp_path):
    voc, sbd = write_voc(tmp_path / "voc"), write_sbd(tmp_path / "sbd")
    (sbd / "inst" / "b.mat").write_bytes(b"no matrix")
    with pytest.raises(DataError, match=r"inst/b.mat: is not an instance file of SBD"):
        convert(sbd, "sbd")
    write_xml(voc, "b", ("unicorn", 0, 1, 1, 60, 40))
    with pytest.raises(
        DataError,
        match=r"Annotations/b.xml: is not an annotation of VOC: class 'unicorn' is none of",
    ):
        convert(voc, "voc")
    (voc / "ImageSets/Main/trainval.txt").write_bytes(b"\xe9\n")
    with pytest.raises(DataError, match=r"trainval\.txt: is not UTF-8 text"):
        convert(voc, "voc")
    (voc / "SegmentationObject" / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"SegmentationObject/a.png: the picture cannot be read"):
        convert(voc, "voc")


@pytest.mark.parametrize(
    ("folder", "pixels", "told"),
    [
        (
            "SegmentationClass",
            np.zeros((40, 60, 3)),
            r"Class/a\.png: the picture has pixels of mode RGB",
        ),
        (
            "SegmentationObject",
            np.zeros((40, 60, 4)),
            r"Object/a\.png: the picture has pixels of mode RGBA",
        ),
        (
            "SegmentationObject",
            np.ones((40, 61)),
            "is 60 x 40 px, its namesake in SegmentationObject 61 x 40 px",
        ),
    ],
)
def test_masks_of_voc_without_numbers_or_of_another_size_are_named(tmp_path, folder, pixels, told):
    Image.fromarray(pixels.astype(np.uint8)).save(write_voc(tmp_path) / folder / "a.png")
    with pytest.raises(DataError, match=told):
        convert(tmp_path, "voc")


@pytest.mark.parametrize(
    ("truth", "told"),
    [
        (
            {"Segmentation": np.ones((8, 8)), "Categories": ["cat"]},
            r"Categories \['cat'\]",
        ),
        (
            {"Segmentation": np.ones((8, 8)), "Categories": [21]},
            r"Categories \[21\]; `GTinst` has",
        ),
        ({"Segmentation": np.ones((8, 8)), "Categories": [0.5]}, r"Categories \[0.5\]"),
        ({"Segmentation": np.ones((8, 8, 3)), "Categories": [1]}, r"\(8, 8, 3\)"),
        ({"Segmentation": "text", "Categories": [1]}, "a Segmentation of shape"),
        ({"Segmentation": np.ones((8, 8))}, "no field of name Categories"),
        (None, "is not an instance file"),
    ],
)
def test_files_of_sbd_that_hold_something_else_are_named(tmp_path, truth, told):
    root = write_sbd(tmp_path)
    scipy.io.savemat(root / "inst/a.mat", {"GTinst": truth} if truth else {"other": [1]})
    with pytest.raises(DataError, match=rf"inst/a\.mat: .*{told}"):
        convert(root, "sbd")


ENTITIES = '<!DOCTYPE a [<!ENTITY a "{}"><!ENTITY b "&a;&a;">]>'


def test_a_file_of_sbd_that_crashes_its_reader_is_named(tmp_path, monkeypatch):
    root = write_sbd(tmp_path)
    monkeypatch.setattr(sbd, "loadmat", lambda *_, **__: os._exit(139))  # as SciPy at some damage
    with pytest.raises(DataError, match=r"inst/a\.mat: is so damaged .*unpack the archive again"):
        convert(root, "sbd")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (ENTITIES.format("x" * 9) + "<annotation>&b;</annotation>", "it declares entities"),
        (
            '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation>&a;</annotation>',
            "it declares entities",
        ),
        ("<a>" * 300_000, "no element found"),
        ("", "no element found"),
        ("<annotation/>", "the file has no size/height"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "unknown encoding"),
        (
            "<annotation><size><height>0</height><width>60</width></size></annotation>",
            "size/height is 0, not 1 …",
        ),
        (
            "<annotation><size><height>nan</height><width>60</width></size></annotation>",
            "size/height is nan",
        ),
        (
            "<annotation><size><height>x</height><width>60</width></size></annotation>",
            "could not convert",
        ),
        (
            "<annotation><size><height>40</height><width>60</width></size><object><name>dog</name></object></annotation>",
            "an object or the file has no bndbox/xmin",
        ),
        (
            "<annotation><size><height>40</height><width>60</width></size><object><name>dog</name>"
            "<bndbox><xmin>1e308</xmin></bndbox></object></annotation>",
            r"bndbox/xmin is 1e\+308",
        ),
    ],
)
@pytest.mark.timeout(60)
def test_annotations_of_voc_that_hold_something_else_are_named(tmp_path, text, told):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(
        DataError,
        match=rf"a\.xml: is not an annotation of VOC: .*{told}.* \(correct or remove it\)",
    ):
        convert(tmp_path, "voc")


@pytest.mark.timeout(60)
def test_deeply_nested_annotations_of_voc_are_read(tmp_path):
    size = "<size><height>8</height><width>8</width></size>"
    deep = "<a>" * 300_000 + "</a>" * 300_000
    (tmp_path / "a.xml").write_text(f"<annotation>{size}{deep}</annotation>")
    assert described(convert(tmp_path, "voc")["all"]) == []


def test_difficult_objects_of_a_folder_without_lists_are_crowds_too(tmp_path):
    write_voc(tmp_path / "voc")
    write_xml(tmp_path / "voc", "a", ("dog", 0, 5, 3, 14, 12), ("cat", " 1 ", 31, 10, 50, 20))
    split = convert(tmp_path / "voc/Annotations", "voc")["all"]
    assert [(name, crowd) for name, _, crowd in described(split)] == [
        ("dog", 0),
        ("cat", 1),
        ("car", 0),
    ]

"""Folders that annotation tools write in VOC's format: which image an annotation file is of, and what is left out."""

import json

import pytest
from PIL import Image

from boxseg.formats.convert import convert
from boxseg.formats.find import import_boxes


def add_picture(root, name):
    path = root / "JPEGImages" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20)).save(path)


def add_annotation(root, name, file_name, class_name="cat"):
    path = root / "Annotations" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<annotation><filename>{file_name}</filename>"
        "<size><width>40</width><height>20</height></size>"
        f"<object><name>{class_name}</name><bndbox><xmin>10</xmin><ymin>5</ymin><xmax>30</xmax>"
        "<ymax>15</ymax></bndbox></object></annotation>"
    )


def classes_of_images(root):
    """File name of each image -> the classes of its objects."""
    content = convert(root, "voc")["all"].content
    names = {category["id"]: category["name"] for category in content["categories"]}
    found = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        found[annotation["image_id"]].append(names[annotation["category_id"]])
    return {image["file_name"]: found[image["id"]] for image in content["images"]}


def test_renamed_files_belong_together_though_they_name_others_inside(tmp_path, caplog):
    for stem in "abc":
        add_picture(tmp_path, f"{stem}.png")
    add_annotation(tmp_path, "a.xml", "b.png", "cat")
    add_annotation(tmp_path, "b.xml", "a.png", "dog")
    add_annotation(tmp_path, "c.xml", "a.png", "cow")
    assert classes_of_images(tmp_path) == {"a.png": ["cat"], "b.png": ["dog"], "c.png": ["cow"]}
    (message,) = caplog.messages
    assert "3 of 3 annotation files name the image of another one inside" in message
    assert "a.xml names b.png, and a.png is taken" in message


def test_the_name_inside_counts_where_no_image_has_the_name_of_the_file(tmp_path, caplog):
    add_picture(tmp_path, "photo 7.png")
    add_annotation(tmp_path, "000001.xml", "C:\\\\photos\\photo 7.png")
    assert classes_of_images(tmp_path) == {"photo 7.png": ["cat"]}
    assert not caplog.messages


def test_annotations_in_subfolders_and_in_upper_case_are_read(tmp_path):
    for name in ("train/a.png", "val/a.png", "b.png"):
        add_picture(tmp_path, name)
    add_annotation(tmp_path, "train/a.xml", "a.png", "cat")
    add_annotation(tmp_path, "val/a.XML", "a.png", "dog")
    add_annotation(tmp_path, "b.xml", "b.png", "cow")
    # What an editor and a Mac keep beside them.
    add_annotation(tmp_path, ".ipynb_checkpoints/b-checkpoint.xml", "b.png")
    (tmp_path / "Annotations/._b.xml").write_bytes(b"\0\5\26\7")
    found = {"b.png": ["cow"], "train/a.png": ["cat"], "val/a.png": ["dog"]}
    assert classes_of_images(tmp_path) == found


def test_images_without_an_annotation_file_are_counted(tmp_path, caplog):
    for stem in "abc":
        add_picture(tmp_path, f"{stem}.png")
    add_annotation(tmp_path, "b.xml", "b.png")
    assert classes_of_images(tmp_path) == {"b.png": ["cat"]}
    assert "2 of 3 images have no annotation file and are left out, such as a.png" in caplog.text


@pytest.mark.parametrize("ending", ["xml", "XML"])
def test_a_folder_with_annotations_beside_its_images_is_read_as_voc(tmp_path, ending):
    add_picture(tmp_path, "a.png")
    add_annotation(tmp_path, "a.xml", "a.png")
    (tmp_path / "Annotations/a.xml").rename(tmp_path / f"JPEGImages/a.{ending}")
    source = import_boxes(tmp_path / "JPEGImages", tmp_path / "made", None)
    (image,) = json.loads(source.annotations.read_text())["images"]
    assert image["file_name"] == "a.png"


def test_splits_of_a_tool_stay_apart_and_share_their_classes(tmp_path):
    for folder, class_name in (("train", "dog"), ("valid", "cat")):
        add_picture(tmp_path, f"{folder}/a.jpg")
        add_annotation(tmp_path, f"{folder}/a.xml", "a.jpg", class_name)
    splits = convert(tmp_path, "voc")
    listed = {name: classes_and_files(split.content) for name, split in splits.items()}
    assert listed == {"train": [(2, "train/a.jpg")], "val": [(1, "valid/a.jpg")]}
    # Beside other folders they are no splits.
    add_picture(tmp_path, "more/b.jpg")
    add_annotation(tmp_path, "more/b.xml", "b.jpg")
    assert list(convert(tmp_path, "voc")) == ["all"]


def test_files_named_like_splits_are_not_taken_for_splits(tmp_path):
    for stem in ("train", "test"):  # as photographs of a train may be
        add_picture(tmp_path, f"{stem}.jpg")
        add_annotation(tmp_path, f"{stem}.xml", f"{stem}.jpg")
    assert list(convert(tmp_path, "voc")) == ["all"]


def classes_and_files(content):
    names = {image["id"]: image["file_name"] for image in content["images"]}
    return [(entry["category_id"], names[entry["image_id"]]) for entry in content["annotations"]]


def test_a_box_that_begins_at_pixel_0_shows_that_a_tool_wrote_the_lists(tmp_path):
    add_picture(tmp_path, "a.jpg")
    add_annotation(tmp_path, "a.xml", "a.jpg", "person")
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\n")
    archive = convert(tmp_path, "voc")["boxes_train"]
    assert archive.content["annotations"][0]["bbox"] == [9, 4, 21, 11]
    path = tmp_path / "Annotations/a.xml"
    path.write_text(path.read_text().replace("<xmin>10<", "<xmin>0<"))
    of_a_tool = convert(tmp_path, "voc")["boxes_train"]
    assert of_a_tool.content["annotations"][0]["bbox"] == [0, 5, 30, 10]
    assert of_a_tool.class_names == ["person"]

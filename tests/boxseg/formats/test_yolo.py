"""YOLO folders and VOC files to COCO, and COCO to YOLO and back."""

import json
import os
import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

from boxseg.coco.masks import decode_segmentation
from boxseg.coco.writer import join_splits
from boxseg.errors import DataError
from boxseg.formats.convert import convert
from boxseg.formats.yolo_writer import split_names, write_yolo


@pytest.fixture
def folder(tmp_path):
    """Two images of 40 x 20 px, one of them with two boxes, one with a polygon."""
    root = tmp_path / "set"
    for name in ("train/a.png", "val/b.png"):
        (root / "images" / name).parent.mkdir(parents=True)
        (root / "labels" / name).parent.mkdir(parents=True)
        Image.new("RGB", (40, 20)).save(root / "images" / name)
    (root / "labels/train/a.txt").write_text("0 0.5 0.5 0.5 0.5\n\n1 0.25 0.5 0.1 0.2\n")
    (root / "labels/val/b.txt").write_text("1 0 0 0.5 0 0.5 0.5 0 0.5\n")
    (root / "data.yaml").write_text(
        yaml.safe_dump({"train": "../images/train", "val": "images/val", "names": ["cat", "dog"]})
    )
    return root


def test_boxes_and_polygons_are_read(folder):
    splits = convert(folder, "yolo")
    train, val = splits["train"].content, splits["val"].content
    assert train["images"] == [
        {"id": 1, "file_name": "images/train/a.png", "height": 20, "width": 40}
    ]
    assert [each["bbox"] for each in train["annotations"]] == [
        [10, 5, 20, 10],
        pytest.approx([8, 8, 4, 4]),
    ]
    assert [each["name"] for each in train["categories"]] == ["cat", "dog"]
    assert val["annotations"][0]["bbox"] == [0, 0, 20, 10]
    assert val["annotations"][0]["area"] == 200


def test_text_files_with_capital_endings_are_read(folder, caplog):
    expected = {name: split.content for name, split in convert(folder, "yolo").items()}
    for path in folder.rglob("*.txt"):
        path.rename(path.with_suffix(".TXT"))
    (folder / "val.TXT").write_text("images/val/b.png\n")
    layout = {"train": "images/train", "val": "val.TXT", "names": ["cat", "dog"]}
    (folder / "data.yaml").write_text(yaml.safe_dump(layout))
    splits = convert(folder, "yolo")
    assert {name: split.content for name, split in splits.items()} == expected
    (folder / "data.yaml").unlink()
    (folder / "labels/CLASSES.TXT").write_text("cat\ndog\n")
    (split,) = convert(folder, "yolo").values()
    assert len(split.content["annotations"]) == 3
    assert not caplog.records


def test_other_yaml_files_do_not_matter_beside_data_yaml(folder):
    (folder / "args.yaml").write_text("epochs: 3")
    assert list(convert(folder, "yolo")) == ["train", "val"]


def test_a_folder_without_yaml_names_its_classes_in_a_text_file(folder):
    (folder / "data.yaml").unlink()
    (folder / "classes.txt").write_text("cat\ndog\n")
    (split,) = convert(folder, "yolo").values()
    assert len(split.content["images"]) == 2
    assert len(split.content["annotations"]) == 3


def test_joined_splits_have_ids_of_their_own(folder):
    content = join_splits(list(convert(folder, "yolo").values())).content
    assert [each["id"] for each in content["annotations"]] == [1, 2, 3]
    assert [each["image_id"] for each in content["annotations"]] == [1, 1, 2]


@pytest.mark.parametrize(
    "line",
    [
        "0 0.5 0.5 0.5",
        "7 0.5 0.5 0.5 0.5",
        "cat 0.5 0.5 0.5 0.5",
        "0 nan 0.5 0.5 0.5",
        "0.5 0.5 0.5 0.5 0.5",
        "0",
    ],
)
def test_a_malformed_line_is_named(folder, line):
    (folder / "labels/train/a.txt").write_text(f"0 0.5 0.5 0.5 0.5\n{line}\n")
    with pytest.raises(DataError, match=r"a\.txt:2: .*a line is the class"):
        convert(folder, "yolo")


@pytest.mark.parametrize("name", ["data.yaml", "classes.txt", "labels/train/a.txt", "list.txt"])
def test_a_file_that_is_not_utf_8_is_named(folder, name):
    if name == "classes.txt":
        (folder / "data.yaml").unlink()
    if name == "list.txt":
        (folder / "data.yaml").write_text("names: [cat, dog]\ntrain: list.txt\n")
    (folder / name).write_bytes("größe".encode("latin-1"))
    with pytest.raises(DataError, match=rf"{name}: .*(UTF-8|utf-8)"):
        convert(folder, "yolo")


def test_a_picture_whose_name_is_not_utf_8_is_refused(folder):
    (folder / "images/val/b.png").rename(
        os.fsdecode(bytes(folder / "images/val") + b"/gr\xf6.png")
    )
    with pytest.raises(DataError, match=r"name is not UTF-8; .* `convmv -f latin1 -t utf8"):
        convert(folder, "yolo")


@pytest.mark.parametrize(
    "text", ["", "[", "names: 3", "names: {1: a}\ntrain: images", "names: [a]\ntrain: none"]
)
def test_a_malformed_yaml_is_named(folder, text):
    (folder / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=r"data\.yaml"):
        convert(folder, "yolo")


def test_images_outside_the_folder_are_refused(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (folder / "data.yaml").write_text("names: [a]\ntrain: ../elsewhere\n")
    with pytest.raises(DataError, match="inside"):
        convert(folder, "yolo")


@pytest.mark.parametrize("path", ["/content/set-1/images/train", r"C:\set\images\train"])
def test_a_path_from_another_machine_is_reported_with_the_part_that_exists_here(folder, path):
    (folder / "data.yaml").write_text(f"names: [cat, dog]\ntrain: {path}\n")
    with pytest.raises(DataError, match=r"data\.yaml names; images/train is there"):
        convert(folder, "yolo")


def test_damaged_images_are_left_out(folder, caplog):
    (folder / "images/train/a.png").write_bytes(b"no picture")
    assert convert(folder, "yolo")["train"].content["images"] == []
    assert "a.png" in caplog.text


def test_only_the_first_images_that_cannot_be_read_are_named(folder, caplog):
    for number in range(30):
        (folder / f"images/train/x{number}.png").write_bytes(b"no picture")
    assert len(convert(folder, "yolo")["train"].content["images"]) == 1
    assert len(caplog.messages) == 6
    assert caplog.messages[-1] == "left out: 25 more images that cannot be read"


def test_a_folder_of_which_no_image_can_be_read_is_refused(folder):
    (folder / "list.txt").write_text("data/a.png\n\ndata\\b.png\n")
    (folder / "data.yaml").write_text("names: [cat, dog]\ntrain: list.txt\n")
    with pytest.raises(
        DataError, match=r"none of 2 images can be read; the first: .*data/a\.png: does not exist"
    ):
        convert(folder, "yolo")
    (folder / "data.yaml").write_text("names: [cat, dog]\ntrain: images/train\n")
    for path in (folder / "images/train").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"images can be read; the first: .* file\)$"):
        convert(folder, "yolo")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "place", ["labels/train/a.txt", "images/train/b.png", "list.txt", "data.yaml"]
)
def test_a_pipe_is_not_waited_for(folder, place, caplog):
    (folder / "data.yaml").write_text(
        f"names: [cat, dog]\ntrain: [{place if 'list' in place else 'images/train'}]\n"
    )
    (folder / place).unlink(missing_ok=True)
    os.mkfifo(folder / place)
    if "images" in place:  # one bad picture of several
        assert len(convert(folder, "yolo")["train"].content["images"]) == 1
        assert "b.png: is a pipe, not a file" in caplog.text
    else:
        with pytest.raises(DataError, match=r"is a pipe, not a file"):
            convert(folder, "yolo")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("names: abc\ntrain: images", "`names` is no list"),
        ("names: [[a]]\ntrain: images", "`names` holds something else than texts"),
        ("names: {0: a, 2: b}\ntrain: images", "no mapping from 0 on"),
        ("names: [a]\ntrain: {a: b}", "`train` is no path"),
        ("names: [a]\ntrain: images\npath: [x]", "`path` is no path"),
        ("- names", "holds no mapping"),
        ("a: &a [x, x]\nnames: [*a, *a]", "has an alias"),
        ("names: [a]\nnames: [b]\ntrain: images", "'names' is given twice"),
        (f"names: [a]\ntrain: {'n' * 300}", "File name too long"),
    ],
)
def test_faults_of_a_yaml_file_are_named(folder, text, told):
    (folder / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=rf"data\.yaml: .*{told}.*; it needs `names`"):
        convert(folder, "yolo")


def test_classes_are_named_as_written(folder):
    (folder / "data.yaml").write_text("names: {0: no, 1: 1e3}\ntrain: images/train\nval:\n")
    (split,) = convert(folder, "yolo").values()
    assert [each["name"] for each in split.content["categories"]] == ["no", "1e3"]


def test_pixels_are_not_taken_for_fractions(folder):
    (folder / "labels/train/a.txt").write_text("0 20 10 10 5\n")
    with pytest.raises(DataError, match=r"a\.txt:1: 20 is no share of width or height"):
        convert(folder, "yolo")


@pytest.mark.parametrize("name", ["\U0001f43b bär", "no", 'a: "b" #c', "\u2028 \x85", "x " * 200])
def test_trainers_read_names_of_classes_as_they_are(trained_run, tmp_path, name):
    content = json.loads(trained_run.val.annotations.read_text())
    content["categories"][0]["name"] = name
    write_yolo(content, trained_run.val.images, tmp_path / "yolo")
    assert yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())["names"][0] == name


def test_masks_survive_a_round_trip_through_yolo(trained_run, tmp_path):
    original = json.loads(trained_run.val.annotations.read_text())
    write_yolo(original, trained_run.val.images, tmp_path / "yolo")
    splits = convert(tmp_path / "yolo", "yolo")
    assert {name: len(split.content["images"]) for name, split in splits.items()} == {
        "train": 3,
        "val": 1,
    }
    returned = join_splits(list(splits.values())).content
    assert [each["name"] for each in returned["categories"]] == [
        each["name"] for each in original["categories"]
    ]
    ours, theirs = COCO(), COCO()
    ours.dataset, theirs.dataset = original, returned
    ours.createIndex(), theirs.createIndex()
    ids = {Path(image["file_name"]).name: image["id"] for image in returned["images"]}
    for image in original["images"]:
        before = ours.loadAnns(ours.getAnnIds(image["id"]))
        after = theirs.loadAnns(theirs.getAnnIds(ids[image["file_name"]]))
        for old, new in zip(before, after, strict=True):
            masks = [decode_segmentation(each["segmentation"], (64, 64)) for each in (old, new)]
            assert np.array_equal(*masks)


def write_named(folder: Path, *names: str) -> dict[str, int]:
    """YOLO files of small images with these names, in `folder/yolo`."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    images = [
        {"id": id, "file_name": name, "width": 8, "height": 8} for id, name in enumerate(names)
    ]
    return write_yolo(
        {"images": images, "annotations": [], "categories": []}, folder, folder / "yolo"
    )


def listed(folder: Path, split: str) -> set[str]:
    return set((folder / f"yolo/{split}.txt").read_text().split())


def test_folders_of_images_decide_what_to_validate_on_and_do_not_nest(tmp_path):
    names = ("images/train/a.png", "images/val/b.png", "images/test/c.png")
    assert write_named(tmp_path, *names) == {"train": 1, "val": 1, "test": 1}
    assert listed(tmp_path, "val") == {"./images/val/b.png"}
    assert listed(tmp_path, "test") == {"./images/test/c.png"}
    for name in names:
        assert (tmp_path / "yolo" / name).is_file()
        assert (tmp_path / "yolo" / name.replace("images", "labels")).with_suffix(".txt").is_file()
    assert not (tmp_path / "yolo/images/images").exists()


def test_no_image_is_both_trained_and_validated_on_and_most_keep_their_split(tmp_path):
    names = [f"{number}.png" for number in range(50)]
    assert write_named(tmp_path, *names) == {"train": 40, "val": 10}
    train, val = listed(tmp_path, "train"), listed(tmp_path, "val")
    assert not train & val
    assert train | val == {f"./images/{name}" for name in names}
    fewer = split_names(names[:45])
    assert len({f"./images/{name}" for name in fewer["val"]} - val) <= 2
    held_out = split_names(["valid/a.png", "valid/b.png"])
    assert {split: len(names) for split, names in held_out.items()} == {"train": 1, "val": 1}


def test_a_single_image_is_not_validated_on(tmp_path):
    assert write_named(tmp_path, "a.png") == {"train": 1}
    assert "val" not in yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())


@pytest.mark.parametrize(("one", "other"), [("a.png", "a.jpg"), ("a.png", "images/a.png")])
def test_images_with_one_label_file_are_named_with_their_folder(tmp_path, one, other):
    told = f"{tmp_path}: {other} and {one} have one label file in YOLO"
    with pytest.raises(DataError, match=re.escape(told)):
        write_named(tmp_path, one, other)
    assert not (tmp_path / "yolo").exists()  # nothing half-written


def test_voc_files_of_annotation_tools_are_read(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    (tmp_path / "a.xml").write_text(
        "<annotation><filename>a.png</filename><size><width>40</width><height>20</height></size>"
        "<object><name>dog</name><bndbox><xmin>10</xmin><ymin>5</ymin><xmax>30</xmax><ymax>15</ymax></bndbox></object>"
        "<object><name>cat</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></object>"
        "</annotation>"
    )
    split = convert(tmp_path, "voc")["all"]
    assert split.images == tmp_path
    assert [each["bbox"] for each in split.content["annotations"]] == [
        [10, 5, 20, 10],
        [0, 0, 4, 4],
    ]
    assert [each["category_id"] for each in split.content["annotations"]] == [2, 1]
    (tmp_path / "b.xml").write_text(
        (tmp_path / "a.xml").read_text().replace("<name>cat</name>", "")
    )
    with pytest.raises(DataError, match=r"b\.xml: .* has no name"):
        convert(tmp_path, "voc")
    (tmp_path / "b.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"b\.xml"):
        convert(tmp_path, "voc")


def test_a_name_with_a_line_break_is_refused_as_lists_hold_a_name_a_line(tmp_path):
    with pytest.raises(DataError, match=r"'a\\nb\.png' has a line break; .*rename it"):
        write_named(tmp_path, "a\nb.png", "c.png")


def test_linked_folders_of_images_are_read_and_circular_links_are_not_followed_for_ever(
    folder, tmp_path
):
    (folder / "images/train").rename(tmp_path / "elsewhere")
    (folder / "images/train").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/again").symlink_to(folder / "images")
    assert len(convert(folder, "yolo")["train"].content["annotations"]) == 2
    (folder / "data.yaml").write_text("names: [cat, dog]\ntrain: images\n")
    (split,) = convert(folder, "yolo").values()
    names = [image["file_name"] for image in split.content["images"]]
    assert names == ["images/train/a.png", "images/val/b.png"]


def test_an_image_that_a_list_names_twice_is_taken_once(folder):
    (folder / "list.txt").write_text("images/train/a.png\nimages/val/b.png\nimages/train/a.png\n")
    (folder / "data.yaml").write_text("names: [cat, dog]\ntrain: list.txt\n")
    content = convert(folder, "yolo")["train"].content
    assert (len(content["images"]), len(content["annotations"])) == (2, 3)


def test_a_label_file_shared_by_two_images_is_reported(folder, caplog):
    Image.new("RGB", (40, 20)).save(folder / "images/train/a.jpg")
    convert(folder, "yolo")
    (message,) = caplog.messages
    assert "1 label files are read for several images (the first: " in message
    assert "labels/train/a.txt" in message


def test_boxes_with_a_confidence_and_a_track_id_are_no_outlines(folder):
    (folder / "labels/val/b.txt").write_text("1 0.5 0.5 0.2 0.2 0.9 1\n0 0.5 0.5 0.2 0.2 0.8 1\n")
    told = r"all 2 outlines have three points, fit as boxes and end in 1; .*track"
    with pytest.raises(DataError, match=told):
        convert(folder, "yolo")


def test_triangles_at_the_lower_edge_are_outlines(folder, caplog):
    lines = ["0 0.2 0.6 0.5 0.7 0.3 1", "1 0.6 0.5 0.9 0.5 0.8 1"]
    (folder / "labels/val/b.txt").write_text("\n".join(lines))
    convert(folder, "yolo")
    assert not any("end in 1" in message for message in caplog.messages)


@pytest.mark.parametrize("track_id", [2, 12])
def test_a_track_id_beyond_1_is_named_as_such(folder, track_id):
    triangle = "0 0.5 0.5 0.2 0.2 0.9 0.8"
    (folder / "labels/val/b.txt").write_text(f"{triangle}\n1 0.5 0.5 0.2 0.2 0.9 {track_id}\n")
    with pytest.raises(DataError, match=rf"b.txt:2: it ends in {track_id}, .*perhaps a track id"):
        convert(folder, "yolo")


def test_boxes_with_a_confidence_and_a_track_id_are_reported_among_outlines(folder, caplog):
    outline = "0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5"
    track = "1 0.5 0.5 0.2 0.2 0.9 1"
    triangle = "1 0.5 0.5 0.2 0.2 0.9 0.8"
    for lines, count in (([outline, track, outline], "1 of 1"), ([track, triangle], "1 of 2")):
        caplog.clear()
        (folder / "labels/val/b.txt").write_text("\n".join(lines))
        convert(folder, "yolo")
        assert any(
            f"{count} outlines of three points end in 1" in each for each in caplog.messages
        )


def test_files_that_macs_add_do_not_belong_to_a_data_set(folder, caplog):
    for name in ("._data.yaml", "labels/val/._b.txt", "images/val/._b.png"):
        (folder / name).write_bytes(b"\x00\x05\x16\x07\xff")
    (folder / "data.yaml").rename(folder / "names.yaml")
    splits = convert(folder, "yolo")
    assert len(splits["val"].content["annotations"]) == 1
    assert not caplog.messages


def test_a_data_set_that_was_copied_is_read_from_its_own_folder(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    layout = (folder / "data.yaml").read_text()
    (copy / "data.yaml").write_text(f"path: {folder}\n{layout}")
    assert convert(copy, "yolo")["val"].images == copy


def test_a_count_of_classes_that_differs_from_their_names_is_reported(folder, caplog):
    layout = (folder / "data.yaml").read_text()
    (folder / "data.yaml").write_text(f"nc: 2\n{layout}")
    convert(folder, "yolo")
    assert not caplog.messages
    (folder / "data.yaml").write_text(f"nc: 3\n{layout}")
    convert(folder, "yolo")
    assert any("nc is 3, and names holds 2" in each for each in caplog.messages)


@pytest.mark.parametrize("ending", ["jpg", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_turned_pictures_survive_a_round_trip_through_yolo(tmp_path, orientation, ending):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 20)).save(tmp_path / f"a.{ending}", exif=exif)
    # of a TIFF, PIL turns the pixels itself
    width, height = (20, 40) if ending == "tif" and orientation > 4 else (40, 20)
    outline = [2, 3, 10, 3, 10, 7, 2, 7]
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 8, 4]}
    content = {
        "images": [{"id": 1, "file_name": f"a.{ending}", "width": width, "height": height}],
        "annotations": [entry | {"segmentation": [outline]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    write_yolo(content, tmp_path, tmp_path / "yolo")
    x, y = map(float, (tmp_path / "yolo/labels/a.txt").read_text().split()[1:3])
    if orientation == 6 and ending == "jpg":
        assert max(x, y) > 0.8  # seen turned to the right, it is in the right upper corner
        assert y < 0.3
    (split,) = convert(tmp_path / "yolo", "yolo").values()
    (back,) = split.content["annotations"]
    assert back["bbox"] == pytest.approx([2, 3, 8, 4], abs=1e-3)


def test_classes_that_look_counted_from_1_are_reported(folder, caplog):
    for path in folder.glob("labels/*/*.txt"):
        path.write_text("1 0.5 0.5 0.2 0.2\n")
    convert(folder, "yolo")
    assert any("no object is of class 0" in each for each in caplog.messages)


def test_outlines_that_mostly_end_like_track_ids_are_reported(folder, caplog):
    outline = "0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5"
    for tracks, is_told in ((2, True), (1, False)):
        caplog.clear()
        lines = [outline, *[f"{outline} 0.9 1"] * tracks]
        (folder / "labels/val/b.txt").write_text("\n".join(lines))
        convert(folder, "yolo")
        told = [each for each in caplog.messages if "2 of 3 outlines end in 1; if these" in each]
        assert bool(told) == is_told


def test_a_label_file_belongs_to_its_image_however_its_accents_are_stored(folder, caplog):
    for form, other in (("NFC", "NFD"), ("NFD", "NFC")):
        name = f"caf\u00e9 {form}"
        Image.new("RGB", (40, 20)).save(
            folder / "images/train" / f"{unicodedata.normalize(form, name)}.png"
        )
        path = folder / "labels/train" / f"{unicodedata.normalize(other, name)}.txt"
        path.write_text("0 0.5 0.5 0.5 0.5\n")
    content = convert(folder, "yolo")["train"].content
    assert (len(content["images"]), len(content["annotations"])) == (3, 4)
    assert not caplog.messages


def test_an_image_in_two_splits_is_reported(folder, caplog):
    # as where train is the folder above val
    (folder / "data.yaml").write_text("names: [cat, dog]\ntrain: images\nval: images/val\n")
    splits = convert(folder, "yolo")
    assert [len(split.content["images"]) for split in splits.values()] == [2, 1]
    message = caplog.messages[0]
    assert "1 images are in several splits, such as " in message
    assert "b.png in train and val" in message
    assert "label files are read for several" not in caplog.text


def test_the_box_before_an_outline_is_no_part_of_it(folder):
    outline = "0.3 0.3 0.7 0.3 0.7 0.7"
    (folder / "labels/val/b.txt").write_text(f"1 0.5 0.5 0.4 0.4 {outline}\n1 {outline}\n")
    with_box, alone = convert(folder, "yolo")["val"].content["annotations"]
    assert with_box | {"id": 2} == alone

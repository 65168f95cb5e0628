"""What training and validation data share, and what the first lacks, is reported with numbers and examples."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from boxseg.coco.checks import check_source
from boxseg.config.method import CocoSource
from boxseg.data.misfits import find_shared, find_unlearnt


def source(folder, file, names):
    """A data set of 40 x 30 px pictures, each with a box; every new name is a new picture."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        if not (folder / name).exists():
            pixels = np.random.default_rng(number).integers(0, 255, (30, 40, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name)
    images = [
        {"id": number, "file_name": name, "width": 40, "height": 30}
        for number, name in enumerate(names, start=1)
    ]
    annotations = [
        {"id": image["id"], "image_id": image["id"], "category_id": 1, "bbox": [2, 3, 20, 20]}
        for image in images
    ]
    categories = [{"id": 1, "name": "thing"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content))
    return CocoSource(images=folder, annotations=file)


@pytest.fixture
def train(tmp_path):
    return source(tmp_path / "train", tmp_path / "train.json", ["a.png", "b.png", "c.png"])


def test_one_path_in_both_files_is_reported(train, tmp_path):
    val = source(tmp_path / "train", tmp_path / "val.json", ["c.png", "b.png"])
    (told,) = find_shared(train, val)
    assert told.startswith(
        "2 of the 2 pictures of data.val are in data.train as well, such as 'c.png'; "
    )


def test_a_copy_under_another_name_is_reported(train, tmp_path):
    (tmp_path / "val").mkdir()
    shutil.copy(tmp_path / "train/b.png", tmp_path / "val/z.png")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "val/new.png")
    val = source(tmp_path / "val", tmp_path / "val.json", ["z.png", "new.png"])
    (told,) = find_shared(train, val)
    assert told.startswith("1 of the 2 pictures of data.val")
    assert "such as 'z.png', there 'b.png'" in told


def test_other_pictures_of_the_same_names_and_one_file_for_both_are_not_reported(train, tmp_path):
    (tmp_path / "val").mkdir()
    Image.new("RGB", (40, 30), "red").save(tmp_path / "val/a.png")
    val = source(tmp_path / "val", tmp_path / "val.json", ["a.png"])
    assert list(find_shared(train, val)) == []
    assert list(find_shared(train, train)) == []


def test_copies_within_a_data_set_are_reported(train, tmp_path):
    shutil.copy(tmp_path / "train/a.png", tmp_path / "train/copy.png")
    names = ["a.png", "b.png", "copy.png", "missing.png"]
    doubled = source(tmp_path / "train", tmp_path / "train.json", names)
    (fault,) = check_source(doubled, training=True)
    assert not fault.fatal
    assert (
        fault.value
        == "has 1 pictures that are another one byte for byte, such as 'copy.png' and 'a.png'"
    )


def with_classes(source, classes):
    """The same data, whose boxes have these classes in turn."""
    content = json.loads(source.annotations.read_text())
    content["categories"] = [{"id": 7 + k, "name": name} for k, name in enumerate("abcdef")]
    for annotation, name in zip(content["annotations"], classes, strict=True):
        annotation["category_id"] = 7 + "abcdef".index(name)
    source.annotations.write_text(json.dumps(content))
    return source


def test_classes_that_are_only_validated_are_reported(train, tmp_path):
    val = source(tmp_path / "val", tmp_path / "val.json", [f"{n}.png" for n in range(6)])
    with_classes(train, "aab")
    (told,) = find_unlearnt(train, with_classes(val, "abcdef"))
    assert told.startswith(
        "data.train has no box of 'c', 'd', 'e' and 1 more, but data.val has 4: "
    )
    (told,) = find_unlearnt(train, with_classes(val, "abbccc"))
    assert told.startswith("data.train has no box of 'c', but data.val has 3: ")
    assert list(find_unlearnt(train, with_classes(val, "bbbbbb"))) == []

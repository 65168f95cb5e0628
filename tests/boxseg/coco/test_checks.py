import json
import os
import random
import subprocess
import sys
import time

import pytest
from PIL import Image

from boxseg.coco.checks import check_source, require_usable
from boxseg.coco.faults import LISTED_FAULTS, count_faults
from boxseg.config.method import CocoSource
from boxseg.errors import DataError
from boxseg.files.names import is_inside


def texts(source, *, training=True, decode=False):
    return [str(fault) for fault in check_source(source, training=training, decode=decode)]


def only_fault(source, **options):
    faults = check_source(source, training=True, **options)
    assert len(faults) == 1, [str(fault) for fault in faults]
    assert faults[0].fatal
    return faults[0]


def test_a_sound_source_has_no_faults(content, write_source):
    assert texts(write_source(content)) == []
    require_usable(write_source(content), training=True)


def test_the_toy_set_is_sound(toy):
    train, val = toy
    assert texts(train, decode=True) == []
    assert texts(val, training=False, decode=True) == []


def test_the_real_sets_are_sound(real_set):
    for path in sorted((real_set / "annotations").glob("*.json")):
        source = CocoSource(images=real_set / "images", annotations=path)
        assert texts(source, training="train" in path.name) == []


def test_a_message_names_place_value_rule_and_way_out(content, write_source):
    content["annotations"][1]["bbox"] = [1, 1, 0, 5]
    source = write_source(content)
    fault = only_fault(source)
    expected = (
        f"{source.annotations}: annotation 2 has width 0; "
        "boxes need a positive width (fix or remove it in the file, or take the copy that "
        "`boxseg data check --fix` writes)"
    )
    assert str(fault) == expected
    assert (fault.annotation_id, fault.image_id) == (2, 20)


@pytest.mark.parametrize(
    ("bbox", "found"),
    [
        ([1, 1, -4, 5], "has width -4"),
        ([1, 1, 4, 0], "has height 0"),
        ([1, 1, 4, -0.5], "has height -0.5"),
        ([1, float("nan"), 4, 4], "boxes need finite numbers"),
        ([1, 1, float("inf"), 4], "boxes need finite numbers"),
        ([50, 1, 12, 4], "ends 2 px beyond the right of its image"),
        ([1, 30, 12, 13.5], "ends 3.5 px beyond the bottom of its image"),
        ([-3, 1, 12, 4], "ends 3 px beyond the left of its image"),
        ([3, -1.5, 12, 4], "ends 1.5 px beyond the top of its image"),
        ([1, 2, 3], "a bbox is the four numbers x, y, width, height"),
        ([1, 2, 3, "4"], "a bbox is the four numbers x, y, width, height"),
    ],
)
def test_bad_boxes_are_faults(content, write_source, bbox, found):
    content["annotations"][0]["bbox"] = bbox
    fault = only_fault(write_source(content))
    assert found in str(fault)
    assert "annotation 1 " in str(fault)


@pytest.mark.parametrize("bbox", [[-1, -1, 62, 42], [0, 0, 60, 40], [59.5, 39.5, 1.5, 1.5]])
def test_a_box_may_reach_one_pixel_beyond_its_image(content, write_source, bbox):
    content["annotations"][0]["bbox"] = bbox
    assert texts(write_source(content)) == []


def test_boxes_of_crowds_are_not_looked_at(content, write_source):
    content["annotations"][3]["bbox"] = [0, 0, 0, 0]
    assert texts(write_source(content)) == []


@pytest.mark.parametrize(
    ("group", "index", "key", "value", "found"),
    [
        (
            "annotations",
            1,
            "id",
            1,
            "annotation 1 occurs 2 times; every entry of a list needs its own id",
        ),
        (
            "annotations",
            0,
            "image_id",
            99,
            "annotation 1 names image 99, which the file does not list",
        ),
        (
            "annotations",
            0,
            "category_id",
            5,
            "category id 5, which the file does not list; known ids are 3, 7",
        ),
        (
            "annotations",
            0,
            "category_id",
            "cat",
            "annotation 1 has category_id 'cat'; COCO wants a whole number",
        ),
        (
            "annotations",
            0,
            "id",
            None,
            "annotations[0] has id None; COCO wants a whole number there",
        ),
        ("categories", 0, "id", 3, "category id 3 occurs 2 times"),
        ("images", 0, "width", 0, "image 10 has width 0; images have a positive size"),
        (
            "images",
            0,
            "file_name",
            5,
            "image 10 has file_name 5; COCO wants a text there, in UTF-8",
        ),
    ],
)
def test_bad_entries_are_faults(content, write_source, group, index, key, value, found):
    source = write_source(content)
    content[group][index][key] = value
    source.annotations.write_text(json.dumps(content))
    assert any(found in text for text in texts(source))


def test_duplicate_image_ids_are_faults(content, write_source):
    content["images"][1] = {"id": 10, "file_name": "b.png", "width": 60, "height": 40}
    assert any(
        "image 10 occurs 2 times; every entry" in text for text in texts(write_source(content))
    )


def test_a_missing_key_is_named(content, write_source):
    del content["annotations"][0]["bbox"]
    assert "annotation 1 has no `bbox`; a bbox is the four numbers" in str(
        only_fault(write_source(content))
    )


def test_every_fault_is_found_not_only_the_first(content, write_source):
    content["annotations"][0]["bbox"] = [0, 0, 0, 1]
    content["annotations"][1]["category_id"] = 5
    source = write_source(content)
    (source.images / "b.png").unlink()
    assert len(texts(source)) == 3


def test_a_missing_annotation_file_is_a_fault(tmp_path):
    source = CocoSource(images=tmp_path, annotations=tmp_path / "no.json")
    assert "no.json: does not exist; a data source needs its COCO annotation file" in str(
        only_fault(source)
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{broken", "is not JSON: Expecting property name"),
        ("", "is not JSON"),
        ("[1]", "holds a list"),
        ('{"images": [], "categories": []}', "has no list `annotations`"),
        (
            '{"images": [1], "annotations": [], "categories": []}',
            "images[0] is 1; entries are objects",
        ),
    ],
)
def test_a_file_that_is_no_coco_file_is_a_fault(tmp_path, text, found):
    (tmp_path / "a.json").write_text(text)
    assert found in str(only_fault(CocoSource(images=tmp_path, annotations=tmp_path / "a.json")))


def test_a_file_of_binary_rubbish_is_a_fault(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\x89PNG\xff\xfe\x00")
    assert "is not JSON" in str(
        only_fault(CocoSource(images=tmp_path, annotations=tmp_path / "a.json"))
    )


def test_nothing_to_train_on_or_to_evaluate_is_a_fault(content, write_source):
    content["annotations"] = content["annotations"][3:]  # only the crowd
    source = write_source(content)
    assert "has no boxes that are not crowds; training needs at least one" in str(
        only_fault(source)
    )
    assert "evaluation needs at least one" in texts(source, training=False)[0]


def test_a_file_without_images_is_a_fault(content, write_source):
    content["images"] = content["annotations"] = []
    assert "lists no images" in str(only_fault(write_source(content)))


def test_missing_masks_are_a_hint_for_evaluation_and_nothing_for_training(content, write_source):
    source = write_source(content)
    (hint,) = check_source(source, training=False)
    assert "has no mask for 3 of 3 annotations" in str(hint)
    assert not hint.fatal
    assert texts(source, training=True) == []


@pytest.mark.parametrize(("drawn", "warned"), [(0, False), (1, True)])
def test_training_warns_of_missing_masks_only_where_some_are_drawn(
    content, write_source, caplog, drawn, warned
):
    for annotation in content["annotations"][:drawn]:
        x, y, width, height = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + width, y, x + width / 2, y + height]]
    (hint,) = require_usable(write_source(content), training=False)
    assert hint.rule == "mask AP needs drawn masks"
    assert ("has no mask for" in caplog.text) == warned


def test_a_missing_image_folder_is_one_fault(content, write_source, tmp_path):
    source = write_source(content)
    moved = CocoSource(images=tmp_path / "elsewhere", annotations=source.annotations)
    assert "elsewhere: is not a folder" in str(only_fault(moved))


def test_a_missing_image_is_a_fault(content, write_source):
    source = write_source(content)
    (source.images / "a.png").unlink()
    fault = only_fault(source)
    assert "a.png: image 10 does not exist; every listed image needs its file" in str(fault)
    assert fault.image_id == 10


def test_an_image_of_another_size_is_a_fault(content, write_source):
    source = write_source(content)
    Image.new("RGB", (61, 40)).save(source.images / "a.png")
    assert "image 10 is 61 x 40 px, but the annotation file says 60 x 40" in str(
        only_fault(source)
    )


def test_a_size_mismatch_by_exif_rotation_says_so(content, write_source):
    content["images"][0]["file_name"] = "a.jpg"
    source = write_source(content)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 60)).save(source.images / "a.jpg", exif=exif)
    told = str(only_fault(source))
    assert "asks viewers to rotate it by EXIF" in told
    assert "let `boxseg data check --fix` do it" in told


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_image_is_a_fault(content, write_source, suffix):
    content["images"][0]["file_name"] = f"a.{suffix}"
    source = write_source(content)
    path = source.images / f"a.{suffix}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert f"a.{suffix}: image 10 cannot be read" in str(only_fault(source))


def test_rubbish_behind_the_end_of_a_whole_jpeg_is_fine(content, write_source):
    content["images"][0]["file_name"] = "a.jpg"
    source = write_source(content)
    path = source.images / "a.jpg"
    path.write_bytes(path.read_bytes() + b"camera notes")
    assert texts(source) == []


def test_an_empty_file_and_a_text_file_are_no_images(content, write_source):
    source = write_source(content)
    (source.images / "a.png").write_bytes(b"")
    (source.images / "b.png").write_text("hello")
    assert ["cannot be read" in text for text in texts(source)] == [True, True]


def test_damage_in_the_middle_is_found_by_decoding(content, write_source):
    source = write_source(content)
    path = source.images / "a.png"
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = random.Random(0).randbytes(200)
    path.write_bytes(data)
    assert texts(source) == []
    assert "cannot be read" in str(only_fault(source, decode=True))


@pytest.mark.parametrize(
    "name", ["../a.png", "x/../../a.png", "/etc/passwd", "..\\a.png", "C:\\a.png", "\\a.png", ""]
)
def test_file_names_must_stay_inside_the_image_folder(content, write_source, name):
    source = write_source(content)
    content["images"][0]["file_name"] = name
    source.annotations.write_text(json.dumps(content))
    assert "file names are relative to the image folder and stay inside" in str(only_fault(source))


@pytest.mark.parametrize("name", ["a.png", "train/a.png", "a..b.png", "x:y.png", "...png"])
def test_ordinary_file_names_are_inside(name):
    assert is_inside(name)


def test_require_usable_gives_the_number_and_the_first_few(content, write_source):
    content["annotations"] = [
        {"id": i, "image_id": 10, "category_id": 3, "bbox": [0, 0, 0, 1], "iscrowd": 0}
        for i in range(1, 9)
    ]
    source = write_source(content)
    with pytest.raises(DataError) as caught:
        require_usable(source, training=True)
    message = str(caught.value)
    assert "8 faults" in message
    assert "annotation 5 has width 0" in message
    assert "annotation 6 " not in message
    assert "and 3 more" in message


def test_require_usable_with_one_fault_says_just_that(content, write_source):
    content["annotations"][0]["bbox"] = [0, 0, 0, 1]
    source = write_source(content)
    with pytest.raises(DataError) as caught:
        require_usable(source, training=True)
    assert str(caught.value) == texts(source)[0]


def test_tens_of_thousands_of_annotations_take_a_second(content, write_source):
    source = write_source(content)
    polygon = [[1.0, 2.0] * 30]
    content["annotations"] = [
        {
            "id": i,
            "image_id": 10,
            "category_id": 3,
            "bbox": [1, 1, 9, 9 + i / 30_000],
            "iscrowd": 0,
            "segmentation": polygon,
        }
        for i in range(30_000)
    ]
    source.annotations.write_text(json.dumps(content))
    start = time.process_time()
    assert texts(source) == []
    assert time.process_time() - start < 3


def test_checks_need_no_torch():
    program = "import sys, boxseg.coco.checks, boxseg.data.toy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        ([[1, 2]], "malformed segmentation"),
        ("abc", "malformed segmentation"),
        ({"size": [3, 3], "counts": [9]}, "mask of 3 x 3 px"),
        ({"size": [10, 20], "counts": [9]}, "add up to 9 for a mask of 20 x 10 px"),
        ([[1, 1, 1e9, 1, 1, 5]], "a polygon with the coordinate 1e+09"),
    ],
)
def test_masks_that_cannot_be_decoded_are_faults_of_an_evaluation_set_only(
    tmp_path, segmentation, expected
):
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    annotation = {
        "id": 7,
        "image_id": 1,
        "category_id": 1,
        "bbox": [1, 1, 5, 5],
        "segmentation": segmentation,
    }
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 10}],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    source = CocoSource(images=tmp_path, annotations=tmp_path / "a.json")
    (fault,) = check_source(source, training=False)
    assert fault.fatal
    assert expected in str(fault)
    assert "annotation 7" in str(fault)
    assert check_source(source, training=True) == []


def test_masks_to_train_with_must_be_there_and_sound(content, write_source):
    (fault,) = check_source(write_source(content), training=True, use_masks=True)
    assert fault.fatal
    assert "has no mask for 3 of 3 annotations; data.use_masks: where_present needs some" in str(
        fault
    )
    content["annotations"][0]["segmentation"] = {"size": [4, 4], "counts": [16]}
    (hint, broken) = check_source(write_source(content), training=True, use_masks=True)
    assert not hint.fatal
    assert "has no mask for 2 of 3 annotations" in str(hint)
    assert "has a mask of 4 x 4 px" in str(broken)


def test_the_first_ten_faults_of_a_kind_are_listed_and_the_rest_counted(content, write_source):
    source = write_source(content)
    content["annotations"] = [{}] * 20_000
    source.annotations.write_text(json.dumps(content))
    start = time.process_time()
    faults = check_source(source, training=True)
    assert time.process_time() - start < 4
    assert len(faults) == 4 * LISTED_FAULTS  # id, image_id, category_id, bbox
    assert count_faults(faults, fatal=True) == 80_000
    assert [fault.more for fault in faults if fault.more] == [20_000 - LISTED_FAULTS] * 4
    with pytest.raises(DataError, match=r"80000 faults(.|\n)*… and 79995 more"):
        require_usable(source, training=True)


def test_each_kind_of_fault_is_listed_by_itself(content, write_source):
    source = write_source(content)
    boxes = [[0, 0, 0, 1]] * 30 + [[0, 0, 1, 0]] * 3 + [[50, 0, 30, 1]] * 12
    content["annotations"] = [
        {"id": i, "image_id": (10, 20)[i % 2], "category_id": 3, "bbox": bbox}
        for i, bbox in enumerate(boxes)
    ]
    source.annotations.write_text(json.dumps(content))
    found = [(fault.rule, fault.more) for fault in check_source(source, training=True)]
    assert found.count(("boxes need a positive width", 20)) == 1
    assert found.count(("boxes need a positive width", 0)) == 9
    assert found.count(("boxes need a positive height", 0)) == 3
    assert found.count(("boxes lie inside their image", 2)) == 1


def test_an_image_of_more_pixels_than_are_opened_is_a_fault(content, write_source):
    content["images"][0] |= {"width": 1, "height": 1}
    source = write_source(content)
    content["images"][0] |= {"width": 65_535, "height": 65_535}
    source.annotations.write_text(json.dumps(content))
    assert "image 10 has 65535 x 65535 px; images have 178956970 px at most" in str(
        only_fault(source)
    )


def test_floats_as_pixels_are_a_fault(content, write_source):
    content["images"][0]["file_name"] = "a.tif"
    source = write_source({**content, "images": content["images"][1:]})
    Image.new("F", (60, 40)).save(source.images / "a.tif")
    source.annotations.write_text(json.dumps(content))
    assert "image 10 has floats as pixels" in str(only_fault(source))


@pytest.mark.timeout(60)
def test_a_pipe_in_the_folder_of_images_is_a_fault(content, write_source):
    source = write_source(content)
    (source.images / "a.png").unlink()
    os.mkfifo(source.images / "a.png")
    assert "a.png: image 10 is a pipe, not a file" in str(only_fault(source))


def test_pages_after_the_first_are_reported(content, write_source):
    source = write_source(content)
    name = content["images"][0]["file_name"]
    with Image.open(source.images / name) as picture:
        picture.save(source.images / name, save_all=True, append_images=[picture.rotate(180)])
    (fault,) = check_source(source, training=True)
    assert not fault.fatal
    assert fault.value == "has 2 pages or frames"

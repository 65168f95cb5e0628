import json
import math

import numpy as np
import pytest
from PIL import Image, ImageOps
from tiny_sets import KINDS, write_set

from boxseg.coco.entries import image_sizes
from boxseg.coco.odd_boxes import sign_of_corners
from boxseg.config.method import BoxSegConfig, CocoSource
from boxseg.data.fingerprint import Boxes, Colours, Fingerprint, Spread, take_fingerprint
from boxseg.data.misfits import color_threshold, find_misfits, find_misplaced


def fingerprint(*longer_px, image=(256, 320), per_image=5, contrast=40.0):
    """Boxes of these longer sides in images of (short, long) side."""
    longer = np.array(longer_px, dtype=np.float64)
    short, long = (np.full(len(longer), float(side)) for side in image)
    return Fingerprint(
        images=10,
        boxes=len(longer),
        classes=1,
        boxes_per_image=Spread(1, 2, per_image),
        image_px=Spread.of(short),
        object_px=Spread.of(longer),
        colours=Colours(contrasts=[contrast]),
        sides=Boxes(longer, short, long),
    )


def misfits(found, **settings):
    return list(find_misfits(BoxSegConfig.model_validate(settings), found))


def test_fitting_settings_give_no_warning():
    assert misfits(fingerprint(40, 60, 90), train={"image_size": 256}) == []
    assert misfits(fingerprint(8, 9, 10), train={"window": 160, "eval_size": 1024}) == []


def test_boxes_too_small_for_mask_cells_are_reported_with_the_size_to_set():
    (told,) = misfits(fingerprint(15, 16, 17), train={"image_size": 160})
    assert told == (
        "half of the boxes are under 10 px at train.image_size 160, where a mask cell is 4 px: 512 would give 32; "
        "train.window 256 trains on enlarged pieces"
    )


def test_the_limit_of_the_long_side_is_part_of_the_advice():
    (told,) = misfits(fingerprint(15, 16, 17), train={"image_size": 160, "max_size": 320})
    assert "512 with train.max_size 640 would give 32" in told


def test_for_boxes_that_no_size_helps_only_windows_are_suggested():
    (told,) = misfits(fingerprint(4, 4, 4, image=(1000, 1000)), train={"image_size": 256})
    assert "would give" not in told
    assert "train.window 256" in told


def test_objects_that_cannot_be_seen_are_reported_for_all_settings(tmp_path):
    source = write_set(tmp_path, KINDS["rings"], images=4)
    for path in source.images.iterdir():
        with Image.open(path) as picture:
            shape = picture.convert("L")
        # black, drawn by transparency
        Image.merge("LA", [shape.point(lambda _: 0), shape]).save(path)
    (told,) = find_misplaced(take_fingerprint(source))
    assert "differ by 0.0 or less from what is around them" in told
    assert "transparency, which is ignored" in told
    assert list(find_misplaced(fingerprint(40, contrast=1.0))) == []
    assert list(find_misplaced(fingerprint(40, contrast=math.nan))) == []


def test_evaluation_is_looked_at_where_it_has_a_size_of_its_own():
    (told,) = misfits(fingerprint(16, 16, 16), train={"window": 160, "eval_size": 128})
    assert told.startswith("half of the boxes are under 8 px at train.eval_size 128")


def test_more_boxes_than_training_or_detection_handles_are_reported():
    told = misfits(fingerprint(50, 60, 70, per_image=130), train={"image_size": 256})
    assert [each.rpartition(" ")[2] for each in told] == ["cond.max_per_image", "fcos.topk"]
    assert all("130 boxes or more" in each for each in told)


def test_little_contrast_asks_for_a_higher_threshold():
    (told,) = misfits(fingerprint(50, 60, 70, contrast=4.0), train={"image_size": 256})
    assert "boxinst.color_thr 0.3 takes for alike; 0.62 would not" in told
    assert (
        misfits(
            fingerprint(50, 60, 70, contrast=4.0),
            train={"image_size": 256},
            boxinst={"color_thr": 0.62},
        )
        == []
    )


def test_the_threshold_is_the_usual_one_where_contrast_is_plain_and_rises_below():
    assert color_threshold(40.0) == color_threshold(10.0) == pytest.approx(0.3)
    rising = [color_threshold(contrast) for contrast in (10, 8, 4, 1, 0)]
    assert rising == sorted(rising)
    assert rising[-1] < 1


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_boxes_around_their_objects_are_not_misplaced(tmp_path, kind):
    source = write_set(tmp_path, kind, images=24)
    assert list(find_misplaced(take_fingerprint(source))) == []


@pytest.mark.parametrize(
    ("moved", "looks"), [(0.5, "those of the middle"), (-0.5, "half a box too far left and up")]
)
@pytest.mark.parametrize("images", [8, 32])
def test_boxes_shifted_by_half_a_box_are_reported_even_inside_their_images(
    tmp_path, moved, looks, images
):
    source = write_set(tmp_path, KINDS["rings"], images=images)
    inside = change_boxes(source, lambda x, y, w, h: [x + moved * w, y + moved * h, w, h])
    assert 10 <= inside < 32 if images == 8 else inside >= 32
    (told,) = find_misplaced(take_fingerprint(source))
    assert looks in told


def test_corners_are_recognised_by_the_pictures_where_numbers_are_not_enough(tmp_path):
    source = write_set(tmp_path, KINDS["rings"], images=64)
    assert change_boxes(source, lambda x, y, w, h: [x, y, x + w, y + h]) >= 32
    content = json.loads(source.annotations.read_text())
    assert sign_of_corners(content["annotations"], image_sizes(content)) is None
    *_, told = find_misplaced(take_fingerprint(source))
    assert "if they were read as x1, y1, x2, y2" in told


def change_boxes(source, change):
    """Change all boxes, and leave out those that end beyond their image then; gives how many are left."""
    content = json.loads(source.annotations.read_text())
    size_of = {image["id"]: image["width"] for image in content["images"]}  # squares
    inside = []
    for entry in content["annotations"]:
        x, y, width, height = entry["bbox"] = change(*entry["bbox"])
        if min(x, y) >= 0 and max(x + width, y + height) <= size_of[entry["image_id"]]:
            inside.append(entry)
    source.annotations.write_text(json.dumps(content | {"annotations": inside}))
    return len(inside)


@pytest.mark.parametrize(
    "real_set", ["pennfudan", "animals", "coco-mini", "nuclei"], indirect=True
)
def test_boxes_of_a_few_photographs_are_not_misplaced(tmp_path, real_set):
    content = json.loads((real_set / "annotations/val.json").read_text())
    objects = [each | {"segmentation": []} for each in content["annotations"]]
    larger = {each["image_id"] for each in objects}
    larger -= {
        each["image_id"]
        for each in objects
        if each["bbox"][2] <= each["bbox"][0] or each["bbox"][3] <= each["bbox"][1]
    }  # their boxes may be corners as well
    images = content["images"]
    groups = [images[i : i + 5] for i in range(0, len(images), 5)]
    groups.append([image for image in images if image["id"] in larger])
    path = tmp_path / "some.json"
    for group in filter(None, groups):
        ids = {image["id"] for image in group}
        some = [each for each in objects if each["image_id"] in ids]
        path.write_text(json.dumps(content | {"images": group, "annotations": some}))
        source = CocoSource(images=real_set / "images", annotations=path)
        assert list(find_misplaced(take_fingerprint(source))) == []


def test_boxes_from_before_images_were_letterboxed_are_reported(tmp_path):
    source = write_set(tmp_path, KINDS["rings"], images=8)
    content = json.loads(source.annotations.read_text())
    for image in content["images"]:
        path = source.images / image["file_name"]
        picture = Image.open(path)
        side = picture.width
        bars = ImageOps.expand(picture, (0, side // 2), (114, 114, 114))
        bars.save(path)
        image |= {"width": bars.width, "height": bars.height}
    source.annotations.write_text(json.dumps(content))
    (told,) = find_misplaced(take_fingerprint(source))
    assert "boxes lie in bars of one colour along the edges" in told
    for entry in content["annotations"]:
        entry["bbox"][1] += side // 2
    source.annotations.write_text(json.dumps(content))
    assert list(find_misplaced(take_fingerprint(source))) == []

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from boxseg.coco.classes import require_same_classes
from boxseg.coco.masks import decode_segmentation
from boxseg.config.method import CocoSource
from boxseg.data.dataset import (
    CocoBoxes,
    load_boxes,
)
from boxseg.errors import DataError


def test_a_sample_has_image_boxes_and_labels(content, write_source):
    sample = CocoBoxes(write_source(content), train=True)[0]
    assert sample.image.dtype == torch.uint8
    assert sample.image.shape == (3, 40, 60)
    assert sample.boxes.tolist() == [[5, 6, 25, 16], [30, 20, 40, 30]]
    assert sample.labels.tolist() == [1, 0]
    assert (sample.image_id, sample.original_size) == (10, (40, 60))
    assert sample.boxes.dtype == torch.float32
    assert sample.labels.dtype == torch.int64


def test_labels_follow_the_sorted_category_ids(content, write_source):
    dataset = CocoBoxes(write_source(content), train=True)
    assert dataset.category_ids == (3, 7)
    assert dataset.class_names == ("ant", "cat")


def test_pixels_are_those_of_the_file_in_rgb_order(content, write_source):
    source = write_source(content)
    image = CocoBoxes(source, train=True)[0].image
    with Image.open(source.images / "a.png") as picture:
        assert (image.permute(1, 2, 0).numpy() == np.asarray(picture)).all()


def test_ids_sizes_and_paths_belong_to_the_index(content, write_source):
    source = write_source(content)
    dataset = CocoBoxes(source, train=True)
    assert len(dataset) == 2
    assert [dataset.image_id(i) for i in range(2)] == [10, 20]
    assert [dataset.size(i) for i in range(2)] == [(40, 60), (60, 40)]
    assert dataset.image_path(1) == source.images / "b.png"
    assert dataset.index_of(20) == 1
    assert dataset.annotation_ids(0) == [1, 3]
    with pytest.raises(DataError, match="no image has id 5"):
        dataset.index_of(5)


def test_crowds_never_become_boxes(content, write_source):
    source = write_source(content)
    for train in (True, False):
        assert 4 not in CocoBoxes(source, train=train).annotation_ids(0)


def test_training_leaves_out_images_without_boxes_and_evaluation_keeps_them(content, write_source):
    content["annotations"] = [
        a for a in content["annotations"] if a["image_id"] == 10 and a["iscrowd"]
    ] + [{"id": 9, "image_id": 20, "category_id": 3, "bbox": [0, 0, 5, 5], "iscrowd": 0}]
    source = write_source(content)
    train, val = CocoBoxes(source, train=True), CocoBoxes(source, train=False)
    assert [train.image_id(i) for i in range(len(train))] == [20]
    assert [val.image_id(i) for i in range(len(val))] == [10, 20]
    assert val[0].boxes.shape == (0, 4)
    assert val[0].labels.shape == (0,)
    assert val[1].boxes.tolist() == [[0, 0, 5, 5]]


def test_boxes_are_clipped_and_those_without_area_left_out(content, write_source):
    for annotation, bbox in zip(
        content["annotations"],
        ([-4, 30, 10, 20], [0, 0, 0, 5], [60, 1, 5, 5], [0, 0, 1, 1]),
        strict=True,
    ):
        annotation["bbox"] = bbox
    dataset = CocoBoxes(write_source(content), train=True)
    assert len(dataset) == 1
    assert dataset[0].boxes.tolist() == [[0, 30, 6, 40]]
    assert dataset.annotation_ids(0) == [1]


def test_rubbish_in_the_segmentations_does_not_matter_for_training(content, write_source):
    clean = CocoBoxes(write_source(content), train=True)[0]
    for annotation, rubbish in zip(
        content["annotations"], ("no mask", {"counts": 7}, [[None]], [5]), strict=True
    ):
        annotation["segmentation"] = rubbish
    dataset = CocoBoxes(write_source(content), train=True)
    assert torch.equal(dataset[0].boxes, clean.boxes)
    assert b"no mask" not in pickle.dumps(dataset)
    with pytest.raises(DataError, match="annotation 1 has a malformed segmentation"):
        dataset.drawn_masks(0)


def test_a_truncated_image_is_an_error_with_file_and_id(content, write_source):
    source = write_source(content)
    path = source.images / "b.png"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(
        DataError, match=r"image 20: .*b\.png: the image cannot be read.*replace the file"
    ):
        CocoBoxes(source, train=True)[1]


def test_a_missing_image_is_an_error_with_file_and_id(content, write_source):
    source = write_source(content)
    (source.images / "b.png").unlink()
    with pytest.raises(DataError, match=r"image 20: .*b\.png: the image does not exist"):
        CocoBoxes(source, train=True)[1]


def test_an_image_of_another_size_is_an_error(content, write_source):
    source = write_source(content)
    Image.new("RGB", (7, 9)).save(source.images / "a.png")
    with pytest.raises(DataError, match=r"image 10 is 7 x 9 px, but .* says 60 x 40"):
        CocoBoxes(source, train=True)[0]


def test_file_names_that_leave_the_folder_are_refused(content, write_source):
    source = write_source(content)
    content["images"][0]["file_name"] = "../annotations.json"
    source.annotations.write_text(json.dumps(content))
    with pytest.raises(DataError, match="stay inside"):
        CocoBoxes(source, train=True)[0]


@pytest.mark.parametrize("key", ["id", "image_id", "category_id", "bbox"])
def test_a_malformed_entry_is_a_data_error(content, write_source, key):
    del content["annotations"][0][key]
    with pytest.raises(DataError, match=r"an entry is malformed \(KeyError: '" + key):
        CocoBoxes(write_source(content), train=True)


def test_a_missing_annotation_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        CocoBoxes(CocoSource(images=tmp_path, annotations=tmp_path / "a.json"), train=True)


def test_drawn_masks_of_any_kind_follow_the_boxes(content, write_source):
    second = np.zeros((40, 60), dtype=np.uint8)
    second[20:30, 30:40] = 1
    compressed = coco_mask.encode(np.asfortranarray(second))["counts"].decode()
    content["annotations"][0]["segmentation"] = [[5, 6, 25, 6, 25, 16, 5, 16]]
    content["annotations"][2]["segmentation"] = {"size": [40, 60], "counts": compressed}
    dataset = CocoBoxes(write_source(content), train=True)
    masks = dataset.drawn_masks(0).mask
    assert masks.dtype == torch.bool
    assert masks.shape == (2, 40, 60)
    for mask, box in zip(masks, dataset[0].boxes.int().tolist(), strict=True):
        expected = torch.zeros(40, 60, dtype=torch.bool)
        expected[box[1] : box[3], box[0] : box[2]] = True
        assert torch.equal(mask, expected)
    assert not dataset.drawn_masks(1).present.any()  # its annotation has no segmentation


def test_uncompressed_counts_are_decoded():
    mask = decode_segmentation({"size": [2, 3], "counts": [1, 2, 3]}, (2, 3))
    assert mask.tolist() == [[False, True, False], [True, False, False]]


def test_a_mask_made_for_another_size_is_refused():
    with pytest.raises(DataError, match="has a mask of 3 x 2 px in an image of 4 x 2 px"):
        decode_segmentation({"size": [2, 3], "counts": [1, 2, 3]}, (2, 4))


def test_drawn_masks_of_the_toy_set_fill_their_boxes_tightly(toy):
    dataset = CocoBoxes(toy[0], train=True)
    for index in range(5):
        for mask, box in zip(
            dataset.drawn_masks(index).mask, dataset[index].boxes.tolist(), strict=True
        ):
            rows, columns = torch.nonzero(mask, as_tuple=True)
            assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == box


def test_sources_with_other_classes_do_not_go_together(content, write_source):
    train = CocoBoxes(write_source(content), train=True)
    path = train.source.annotations
    content["categories"][0]["name"] = "dog"
    val = CocoBoxes(write_source(content), train=False)
    require_same_classes(path, train.categories, path, train.categories)
    with pytest.raises(
        DataError, match=r"categories 3 ant, 7 dog differ from those of .*, 3 ant, 7 cat"
    ):
        require_same_classes(path, train.categories, path, val.categories)


def test_the_real_sets_can_be_read(real_set):
    source = CocoSource(
        images=real_set / "images", annotations=real_set / "annotations" / "val.json"
    )
    dataset = CocoBoxes(source, train=False)
    sample, masks = dataset[0], dataset.drawn_masks(0).mask
    assert masks.shape == (len(sample.boxes), *sample.original_size)
    for mask, box in zip(masks, sample.boxes, strict=True):
        x1, y1, x2, y2 = box.tolist()
        rows, columns = torch.nonzero(mask, as_tuple=True)
        assert columns.min() >= x1 - 2
        assert columns.max() <= x2 + 2
        assert rows.min() >= y1 - 2
        assert rows.max() <= y2 + 2


def test_drawn_masks_are_given_only_where_asked_for_and_present(content, write_source):
    content["annotations"][0]["segmentation"] = [[5, 6, 25, 6, 25, 16, 5, 16]]
    # the crowd: no instance
    content["annotations"][3]["segmentation"] = {"size": [40, 60], "counts": [2400]}
    source = write_source(content)
    assert CocoBoxes(source, train=True)[0].drawn is None
    dataset = CocoBoxes(source, train=True, use_masks=True)
    first, second = dataset[0].drawn, dataset[1].drawn
    assert first.present.tolist() == [True, False]
    assert first.mask.sum(dim=(1, 2)).tolist() == [200, 0]
    assert second.present.tolist() == [False]
    assert second.mask.shape == (1, 60, 40)


def test_masks_wait_packed_and_are_decoded_image_by_image(content, write_source):
    content["annotations"][0]["segmentation"] = [[5, 6, 25, 6, 25, 16, 5, 16]]
    content["annotations"][1]["segmentation"] = [[0, 0, 1, 1, 2, 2], ["wrong"]]
    dataset = CocoBoxes(write_source(content), train=True, use_masks=True)
    assert dataset[0].drawn.present.tolist() == [True, False]
    with pytest.raises(DataError, match="annotation 2 has a malformed segmentation"):
        dataset[1]


def test_a_file_without_masks_is_refused_where_they_are_wanted(content, write_source):
    with pytest.raises(
        DataError,
        match=r"has no mask; data.use_masks: where_present needs some .*data.use_masks: nev",
    ):
        CocoBoxes(write_source(content), train=True, use_masks=True)


def test_an_annotation_file_is_read_once_until_it_changes(content, write_source):
    source = write_source(content)
    first = load_boxes(source, train=True)
    assert load_boxes(source, train=True) is first
    assert load_boxes(source, train=False) is not first
    content["annotations"] = content["annotations"][:1]
    changed = load_boxes(write_source(content), train=True)
    assert len(changed.annotation_ids(0)) < len(first.annotation_ids(0))
    with pytest.raises(DataError, match=r"missing\.json"):
        load_boxes(
            source.model_copy(update={"annotations": source.images / "missing.json"}), train=True
        )

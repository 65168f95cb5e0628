import io
import json
from contextlib import redirect_stdout

import pytest

from boxseg.config.method import CocoSource
from boxseg.data.ground_truth import coco_ground_truth
from boxseg.errors import DataError


def test_evaluation_names_an_annotation_whose_mask_would_crash_pycocotools(tmp_path):
    annotation = {"id": 7, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 10}],
        "annotations": [annotation | {"segmentation": [[1, 1, 2.0**40, 1, 1, 5]]}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"a\.json: annotation 7 has a polygon with the coordinate 1.09951e\+12"
    ):
        coco_ground_truth(CocoSource(images=tmp_path, annotations=path))
    content["annotations"][0] |= {"image_id": 2, "area": 5, "iscrowd": 1}
    path.write_text(json.dumps(content))
    assert coco_ground_truth(CocoSource(images=tmp_path, annotations=path)).getImgIds() == [1]


def test_ground_truth_for_evaluation_is_quiet_and_complete(content, write_source):
    for annotation in content["annotations"]:
        annotation.pop("area")
    del content["annotations"][0]["iscrowd"]
    content["annotations"][0]["segmentation"] = [[5, 6, 15, 6, 15, 16, 5, 16]]
    output = io.StringIO()
    with redirect_stdout(output):
        ground_truth = coco_ground_truth(write_source(content))
    assert output.getvalue() == ""
    first, second = ground_truth.loadAnns([1, 2])
    assert (first["area"], first["iscrowd"]) == (100, 0)
    assert second["area"] == 100
    assert ground_truth.getCatIds() == [7, 3]


@pytest.mark.parametrize("area", [-400, 0, None, "400"])
def test_an_impossible_area_is_measured_from_the_mask(content, write_source, area):
    for annotation in content["annotations"]:
        annotation |= {"area": area}
    ground_truth = coco_ground_truth(write_source(content))
    areas = [entry["area"] for entry in ground_truth.dataset["annotations"]]
    boxes = [entry["bbox"] for entry in ground_truth.dataset["annotations"]]
    assert areas == [width * height for _, _, width, height in boxes]

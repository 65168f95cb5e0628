"""A small data set on disk, which tests bend as they need."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from boxseg.config import CocoSource, ToyConfig
from boxseg.data.toy import ensure_toy

REAL_DATA = Path(__file__).parents[3].parent / "shared" / "data"


@pytest.fixture
def content() -> dict[str, Any]:
    """Two images, three boxes and a crowd; category ids have a gap and are not sorted."""
    return {
        "images": [
            {"id": 10, "file_name": "a.png", "width": 60, "height": 40},
            {"id": 20, "file_name": "b.png", "width": 40, "height": 60},
        ],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 7, "bbox": [5, 6, 20, 10], "area": 200, "iscrowd": 0},
            {"id": 2, "image_id": 20, "category_id": 3, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0},
            {"id": 3, "image_id": 10, "category_id": 3, "bbox": [30, 20, 10, 10], "area": 100, "iscrowd": 0},
            {"id": 4, "image_id": 10, "category_id": 3, "bbox": [0, 0, 60, 40], "area": 100, "iscrowd": 1},
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "ant"}],
    }


@pytest.fixture
def write_source(tmp_path: Path) -> Callable[[dict[str, Any]], CocoSource]:
    """Writes the annotation file, and a picture for each image that has none yet."""

    def write(content: dict[str, Any]) -> CocoSource:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        for image in content["images"]:
            path = folder / image["file_name"]
            if not path.exists() and path.resolve().is_relative_to(folder.resolve()):
                rng = np.random.default_rng(image["id"])
                pixels = rng.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path)
        annotations = tmp_path / "annotations.json"
        annotations.write_text(json.dumps(content))
        return CocoSource(images=folder, annotations=annotations)

    return write


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toy")


@pytest.fixture(scope="session")
def toy(toy_root: Path) -> tuple[CocoSource, CocoSource]:
    """(train, val) with 40 and 10 images of 128 px."""
    return ensure_toy(toy_root, ToyConfig(train_images=40, val_images=10))


@pytest.fixture(params=["pennfudan", "animals", "coco-mini"])
def real_set(request: pytest.FixtureRequest) -> Path:
    """Folder of a data set of photographs, where the machine has it."""
    folder = REAL_DATA / request.param
    if not folder.is_dir():
        pytest.skip(f"the real data set {request.param} is not on this machine")
    return folder

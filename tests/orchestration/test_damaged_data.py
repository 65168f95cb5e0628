"""With any content of an annotation file or image, commands end with a message, and write into their output alone.

Hypothesis puts values that COCO does not want at any place of a small file, and damages the bytes of its pictures.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from fuzzing import (
    DAMAGE,
    EXAMPLES,
    SETTINGS,
    changed,
    changes_of,
    damaged,
    end_of,
    make_root,
    untouched,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

RUNS = {"size": [12, 8], "counts": [3, 5, 7, 5, 76]}
CONTENT: dict[str, Any] = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 12, "height": 8},
        {"id": 2, "file_name": "sub/b.jpg", "width": 8, "height": 12},
    ],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 3,
            "bbox": [1, 1, 6, 4],
            "segmentation": [[1, 1, 7, 1, 7, 5]],
        },
        {
            "id": 2,
            "image_id": 1,
            "category_id": 5,
            "bbox": [2, 0, 3, 8],
            "area": 24,
            "segmentation": [[2, 0, 5, 0, 5, 8, 2, 8]],
        },
        {"id": 3, "image_id": 2, "category_id": 3, "bbox": [0, 0, 8, 12], "iscrowd": 1},
        {"id": 4, "image_id": 2, "category_id": 3, "bbox": [0, 3, 5, 5], "segmentation": RUNS},
        {"id": 5, "image_id": 2, "category_id": 3, "bbox": [0, 3, 5, 5], "quality": 0.5},
    ],
    "categories": [{"id": 3, "name": "ant"}, {"id": 5, "name": "bee"}],
}
CHANGES = changes_of(CONTENT)
WHOLE_FILES = settings(SETTINGS, max_examples=max(EXAMPLES // 2, 1))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the sound data set in `deep/data`; commands run in `deep/down`."""
    return make_root(tmp_path, monkeypatch)


COMMANDS = {
    "check": ["data", "check", "{file}", "--images", "{images}", "--decode"],
    "check for val": ["data", "check", "{file}", "--images", "{images}", "--for", "val", "--json"],
    "fix": ["data", "check", "{file}", "--images", "{images}", "--fix", "out"],
    "stats": ["data", "stats", "{file}"],
    "stats json": ["data", "stats", "{file}", "--json"],
    "split": ["data", "split", "{file}", "--output", "out", "--val", "0.5"],
    "import": ["data", "import", "{file}", "--from", "coco", "--output", "out"],
    "export": [
        "data",
        "export",
        "{file}",
        "--images",
        "{images}",
        "--to",
        "yolo",
        "--output",
        "out",
    ],
    "label": ["label", "{file}", "--images", "{images}", "--source", "box", "--output", "out"],
    "label from masks": [
        "label",
        "{file}",
        "--images",
        "{images}",
        "--source",
        "file:{file}",
        "--output",
        "out",
    ],
    "eval": ["eval", "{file}", "--data", "{file}", "--images", "{images}", "--output", "out"],
    "exclude": [
        "data",
        "import",
        "{sound}",
        "--from",
        "coco",
        "--output",
        "out",
        "--exclude",
        "{file}",
    ],
}


def with_paths(command: str, root: Path, file: Path) -> list[str]:
    sound = root / "deep/data/images/sound.json"
    sound.write_text(json.dumps(CONTENT))
    return [
        word.format(file=file, images=root / "deep/data/images", sound=sound)
        for word in COMMANDS[command]
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_sound_data_set_is_accepted(root, command):
    file = root / "deep/data/boxes.json"
    file.write_text(json.dumps(CONTENT))
    expected = 3 if command == "exclude" else 0  # the excluded images are all there are
    assert end_of(with_paths(command, root, file)) == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_values_in_the_annotation_file(root, command):
    @SETTINGS
    @given(CHANGES)
    def check(changes):
        file = root / "deep/data/boxes.json"
        file.write_text(changed(CONTENT, changes))
        arguments = with_paths(command, root, file)
        with untouched(root):
            end_of(arguments)

    check()


@pytest.mark.parametrize("command", COMMANDS)
def test_damaged_bytes_of_the_annotation_file(root, command):
    @WHOLE_FILES
    @given(DAMAGE)
    def check(damage):
        file = root / "deep/data/boxes.json"
        file.write_bytes(damaged(json.dumps(CONTENT).encode(), damage))
        arguments = with_paths(command, root, file)
        with untouched(root):
            end_of(arguments)

    check()


@pytest.mark.parametrize("place", ["train", "val"])
def test_wrong_values_in_the_files_of_a_planned_run(root, place):
    folder = root / "deep/data"
    sources = {
        split: {"images": str(folder / "images"), "annotations": str(folder / f"{split}.json")}
        for split in ("train", "val")
    }
    (folder / "exp.yaml").write_text(
        json.dumps({"name": "planned", "data": sources, "storage": "out"})
    )

    @WHOLE_FILES
    @given(CHANGES)
    def check(changes):
        for split in sources:
            (folder / f"{split}.json").write_text(
                changed(CONTENT, changes if split == place else [])
            )
        with untouched(root):
            end_of(["train", str(folder / "exp.yaml"), "--plan"], codes=(0, 2, 3, 5))

    check()


FORMATS = {
    "a.png": "PNG",
    "sub/b.jpg": "JPEG",
    "c.gif": "GIF",
    "d.tif": "TIFF",
    "e.webp": "WEBP",
    "f.bmp": "BMP",
}


@pytest.mark.parametrize("command", ["check", "fix", "label"])
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_bytes_of_an_image(root, command, name):
    file, picture = root / "deep/data/boxes.json", root / "deep/data/images" / name
    content = copy.deepcopy(CONTENT)
    content["images"][1] |= {"file_name": name}
    file.write_text(json.dumps(content))
    Image.linear_gradient("L").resize((8, 12)).convert("RGB").save(picture, FORMATS[name])
    sound = picture.read_bytes()
    arguments = with_paths(command, root, file)

    @settings(SETTINGS, max_examples=max(EXAMPLES // 3, 1))
    @given(DAMAGE, st.integers(0, 2 * len(sound)))
    def check(damage, length):
        picture.write_bytes(damaged(sound, damage)[:length])
        with untouched(root):
            end_of(arguments)

    check()

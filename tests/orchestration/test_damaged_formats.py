"""With any content of files in other formats than COCO, commands end with a message."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from fuzzing import (
    DAMAGE,
    EXAMPLES,
    SETTINGS,
    VALUES,
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

from boxseg.label.review import stamp_of

FEW = settings(SETTINGS, max_examples=max(EXAMPLES // 2, 1))
IMAGES = [
    {"id": number, "file_name": name, "width": 12, "height": 8}
    for number, name in ((1, "a.png"), (2, "c.png"))
]
BOXES: dict[str, Any] = {
    "images": IMAGES,
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 3,
            "bbox": [1, 1, 6, 4],
            "segmentation": [[1, 1, 7, 1, 7, 5, 1, 5]],
        },
        {
            "id": 2,
            "image_id": 2,
            "category_id": 3,
            "bbox": [2, 0, 3, 8],
            "segmentation": [[2, 0, 5, 0, 5, 8, 2, 8]],
        },
    ],
    "categories": [{"id": 3, "name": "ant"}],
}
FOUND: list[dict[str, Any]] = [
    {
        "image_id": 1,
        "category_id": 3,
        "bbox": [1, 1, 6, 4],
        "score": 0.5,
        "segmentation": [[1, 1, 7, 1, 7, 5, 1, 5]],
    },
    {
        "image_id": 2,
        "category_id": 3,
        "score": 1,
        "segmentation": {"size": [8, 12], "counts": [16, 24, 56]},
    },
    {
        "image_id": 2,
        "category_id": 3,
        "score": 0.1,
        "segmentation": {"size": [8, 12], "counts": "`0h0h1"},
    },
]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures in `deep/data/images`; commands run in `deep/down`."""
    root = make_root(tmp_path, monkeypatch)
    shutil.copy(root / "deep/data/images/a.png", root / "deep/data/images/c.png")
    (root / "deep/data/boxes.json").write_text(json.dumps(BOXES))
    return root


def labels_of(root: Path) -> list[str]:
    return [
        "label",
        str(root / "deep/data/boxes.json"),
        "--images",
        str(root / "deep/data/images"),
        "--source",
        "box",
    ]


def import_from(folder: Path, form: str) -> None:
    end_of(["data", "import", str(folder), "--from", form, "--output", "out"])
    shutil.rmtree("out", ignore_errors=True)


@pytest.mark.parametrize("read_by", ["eval", "label"])
def test_results(root, read_by):
    path = root / "deep/data/found.json"
    images = ["--images", str(root / "deep/data/images"), "--output", "out"]
    command = ["eval", str(path), "--data", str(root / "deep/data/boxes.json"), *images]
    if read_by == "label":
        command = [
            "label",
            str(root / "deep/data/boxes.json"),
            "--source",
            f"file:{path}",
            *images,
        ]
    path.write_text(json.dumps(FOUND))
    assert end_of(command) == 0
    shutil.rmtree("out")

    @SETTINGS
    @given(changes_of(FOUND), DAMAGE, st.booleans())
    def check(changes, damage, is_whole):
        path.write_bytes(
            damaged(
                changed(FOUND, changes).encode("utf-8", "surrogatepass"),
                [] if is_whole else damage,
            )
        )
        with untouched(root):
            end_of(command)

    check()


def test_the_journal_of_labels(root):
    command = [*labels_of(root), "--output", "out"]
    assert end_of(command) == 0
    lines = Path("out/labels.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])

    @SETTINGS
    @given(changes_of(last), DAMAGE, st.booleans())
    def check(changes, damage, is_whole):
        text = "\n".join([*lines[:-1], changed(last, changes), ""]).encode(
            "utf-8", "surrogatepass"
        )
        Path("out/labels.jsonl").write_bytes(damaged(text, [] if is_whole else damage))
        end_of(command)

    check()


def test_decisions(root):
    command = [*labels_of(root), "--output", "out"]
    assert end_of(command) == 0
    decided = {"1": "accept", "2": "reject"}
    decisions = {"labels": stamp_of(Path("out")), "decisions": decided}

    @SETTINGS
    @given(changes_of(decisions), DAMAGE, st.booleans())
    def check(changes, damage, is_whole):
        text = changed(decisions, changes).encode("utf-8", "surrogatepass")
        Path("decisions.json").write_bytes(damaged(text, [] if is_whole else damage))
        end_of([*command, "--apply", "decisions.json"])

    check()


LAYOUT = "train: images\nval: {}\nnames: {}\n"
WORDS_OF_LINES = st.sampled_from(
    ["0", "1", "-1", "0.5", "nan", "inf", "1e999", "1e308", "x", "9" * 400, "\0", "\n"]
)


@SETTINGS
@given(VALUES, VALUES, st.lists(WORDS_OF_LINES), DAMAGE, st.booleans())
def test_yolo(root, val, names, words, damage, is_whole):
    folder = root / "deep/yolo"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "labels").mkdir(parents=True)
    layout = LAYOUT.format(json.dumps(val), json.dumps(names)).encode("utf-8", "surrogatepass")
    (folder / "data.yaml").write_bytes(damaged(layout, [] if is_whole else damage))
    (folder / "labels/a.txt").write_text(" ".join(words))
    (folder / "images").mkdir()
    shutil.copy(root / "deep/data/images/a.png", folder / "images/a.png")
    with untouched(root):
        import_from(folder, "yolo")


@FEW
@given(st.lists(WORDS_OF_LINES), DAMAGE)
def test_lines_and_lists_of_yolo(root, words, damage):
    folder = root / "deep/yolo"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "labels").mkdir(parents=True)
    (folder / "images").mkdir()
    shutil.copy(root / "deep/data/images/a.png", folder / "images/a.png")
    (folder / "data.yaml").write_text("names: [ant, bee]\ntrain: list.txt\n")
    (folder / "list.txt").write_bytes(damaged(b"images/a.png\n\nimages/none.png\n", damage))
    (folder / "labels/a.txt").write_text(" ".join(words))
    with untouched(root):
        import_from(folder, "yolo")


WORDS = st.sampled_from(
    [
        "1",
        "3",
        "-2",
        "nan",
        "inf",
        "1e999",
        "1e308",
        "x",
        "",
        " ",
        "9" * 400,
        "&#27;",
        "&a;",
        "<b/>",
        "<![CDATA[3]]>",
    ]
)


def xml(numbers: list[str], name: str = "ant", file_name: str = "../a.png") -> bytes:
    sides = "".join(
        f"<{k}>{v}</{k}>"
        for k, v in zip(("xmin", "ymin", "xmax", "ymax"), numbers[2:], strict=True)
    )
    return (
        f"<annotation><filename>{file_name}</filename><size><height>{numbers[0]}</height><width>{numbers[1]}</width>"
        f"</size><object><name>{name}</name><bndbox>{sides}</bndbox></object></annotation>"
    ).encode()


@SETTINGS
@given(st.lists(WORDS, min_size=8, max_size=8), DAMAGE, st.booleans())
def test_a_folder_of_voc(root, words, damage, is_whole):
    folder = root / "deep/voc"
    folder.mkdir(exist_ok=True)
    (folder / "a.xml").write_bytes(damaged(xml(words[:6], *words[6:]), [] if is_whole else damage))
    with untouched(root):
        import_from(folder, "voc")


def picture(mode: str, size: tuple[int, int], value: int) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).point(lambda pixel: value * pixel // 128).convert(
        mode
    ).save(file, "TIFF")
    return file.getvalue()


MASKS = st.builds(
    picture,
    st.sampled_from(["1", "L", "P", "RGB", "RGBA", "CMYK", "I", "F", "LA", "I;16"]),
    st.sampled_from([(12, 8), (8, 12), (1, 1), (12, 9)]),
    st.sampled_from([0, 1, 20, 255]),
)
"""Pictures that may be masks."""


@SETTINGS
@given(MASKS, MASKS, DAMAGE, st.integers(0, 3))
def test_the_masks_and_lists_of_voc(root, numbers, classes, damage, damaged_file):
    folder = root / "deep/voc"
    contents = [numbers, classes, b"a\n\n", xml(["8", "12", "1", "1", "5", "5"], name="cat")]
    contents[damaged_file] = damaged(contents[damaged_file], damage)
    names = (
        "SegmentationObject/a.png",
        "SegmentationClass/a.png",
        "ImageSets/Segmentation/val.txt",
        "Annotations/a.xml",
    )
    for name, content in zip(names, contents, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "ImageSets/Main").mkdir(exist_ok=True)
    (folder / "ImageSets/Main/val.txt").write_text("a\n")
    with untouched(root):
        import_from(folder, "voc")


MATRICES = st.sampled_from(
    (
        *(np.eye(8, dtype=kind) for kind in (np.uint8, np.int64, np.float64, np.complex128, bool)),
        *(np.full((8, 8), value) for value in (np.nan, np.inf, -1, 1e300)),
        *(np.ones(shape) for shape in ((1, 1), (0, 0), (8,), (2, 8, 8))),
        *(
            "text",
            "",
            [],
            [1],
            [[1], [2]],
            ["cat", "dog"],
            {"a": 1},
            np.array([1, "a"], dtype=object),
        ),
        *(scipy.sparse.eye(8), 3, 0.5, [[21]], [0], [np.nan], [1] * 3000),
    )
)


@SETTINGS
@given(
    MATRICES, MATRICES, st.sampled_from(["GTinst", "other"]), st.booleans(), DAMAGE, st.booleans()
)
def test_the_files_of_sbd(root, numbers, classes, name, packed, damage, is_whole):
    folder = root / "deep/sbd"
    (folder / "inst").mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    scipy.io.savemat(
        file, {name: {"Segmentation": numbers, "Categories": classes}}, do_compression=packed
    )
    (folder / "inst/a.mat").write_bytes(damaged(file.getvalue(), [] if is_whole else damage))
    (folder / "train.txt").write_text("a\n")
    with untouched(root):
        import_from(folder, "sbd")

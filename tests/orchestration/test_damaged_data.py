"""Whatever an annotation file or an image holds, commands end with a message, and write into their output folder alone.

Hypothesis puts values that COCO does not want at any place of a small file, and damages the bytes of its pictures.
"""

import contextlib
import copy
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from orchestration.cli.app import run

SETTINGS = settings(
    max_examples=150,
    phases=[Phase.generate],
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
CONTENT: dict[str, Any] = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 12, "height": 8},
        {"id": 2, "file_name": "sub/b.jpg", "width": 8, "height": 12},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 6, 4], "segmentation": [[1, 1, 7, 1, 7, 5]]},
        {
            "id": 2,
            "image_id": 1,
            "category_id": 5,
            "bbox": [2, 0, 3, 8],
            "area": 24,
            "segmentation": [[2, 0, 5, 0, 5, 8, 2, 8]],
        },
        {"id": 3, "image_id": 2, "category_id": 3, "bbox": [0, 0, 8, 12], "iscrowd": 1},
        {"id": 4, "image_id": 2, "category_id": 3, "bbox": [0, 3, 5, 5]},
    ],
    "categories": [{"id": 3, "name": "ant"}, {"id": 5, "name": "bee"}],
}
PLACES = [
    place
    for group, entries in CONTENT.items()
    for place in [(group,), *((group, index, *key) for index, entry in enumerate(entries) for key in [(), *zip(entry)])]
]
"""Where a value can be replaced: a list, one of its entries, or a field of one."""
NAMES = st.sampled_from(
    (
        *("", ".", "..", "sub", "sub/new.png", "./a.png", "a.png/b", "../evil.png", "/evil.png", "sub/../../evil.png"),
        *("..\\evil.png", "C:\\evil.png", "a\0.png", "\ud800.png", "n" * 300, "a\n.png", "images", "[b]a.png"),
    )
)
NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2, 3, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e308, 1e-320]),
    st.floats(),
    st.integers(-5, 100),
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | NAMES,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(NAMES | st.sampled_from(["size", "counts"]), inner),
    max_leaves=6,
)
CHANGES = st.lists(
    st.tuples(st.sampled_from(PLACES), VALUES | st.lists(NUMBERS, min_size=4, max_size=4)), min_size=1, max_size=3
)
"""Places, and what to put there."""
DAMAGE = st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=4)), max_size=3)
"""Bytes, and where they replace others."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `deep/data`, the sound data set; commands run in `deep/down`."""
    images = tmp_path / "deep/data/images"
    (images / "sub").mkdir(parents=True)
    Image.linear_gradient("L").resize((12, 8)).convert("RGB").save(images / "a.png")
    Image.linear_gradient("L").resize((8, 12)).convert("RGB").save(images / "sub/b.jpg")
    (tmp_path / "deep/down").mkdir()
    monkeypatch.chdir(tmp_path / "deep/down")
    return tmp_path


def changed(changes: list[tuple[tuple[Any, ...], Any]]) -> dict[str, Any]:
    content = copy.deepcopy(CONTENT)
    for (*way, last), value in changes:
        target: Any = content
        with contextlib.suppress(KeyError, IndexError, TypeError):  # an earlier change took the place away
            for key in way:
                target = target[key]
            target[last] = value
    return content


def damaged(data: bytes, damage: list[tuple[int, bytes]]) -> bytes:
    for start, replacement in damage:
        data = data[:start] + replacement + data[start + 2 :]
    return data


def files(root: Path) -> dict[str, bytes | str]:
    """What lies below a folder, apart from the output of commands."""
    return {
        str(path): path.read_bytes() if path.is_file() else "link" if path.is_symlink() else "folder"
        for path in root.rglob("*")
        if "out" not in path.relative_to(root).parts
    }


@contextlib.contextmanager
def untouched(root: Path) -> Iterator[None]:
    before = files(root)
    yield
    assert files(root) == before
    shutil.rmtree("out", ignore_errors=True)


def end_of(arguments: list[str]) -> int:
    """Exit code of a command, which must be one that it chose: done, wrong use, or faulty data."""
    told = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
    shown = io.TextIOWrapper(io.BytesIO(), "utf-8")  # strict, as the real one
    with (
        contextlib.redirect_stderr(told),
        contextlib.redirect_stdout(shown),
        mock.patch.dict(os.environ, BOXSEG_DEBUG="1"),
    ):
        code = run(arguments)
        told.flush()
    message = told.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert code in (0, 2, 3), message
    return code


COMMANDS = {
    "check": ["data", "check", "{file}", "--images", "{images}", "--decode"],
    "check for val": ["data", "check", "{file}", "--images", "{images}", "--for", "val", "--json"],
    "fix": ["data", "check", "{file}", "--images", "{images}", "--fix", "out"],
    "stats": ["data", "stats", "{file}"],
    "stats json": ["data", "stats", "{file}", "--json"],
    "split": ["data", "split", "{file}", "--output", "out", "--val", "0.5"],
    "import": ["data", "import", "{file}", "--from", "coco", "--output", "out"],
    "export": ["data", "export", "{file}", "--images", "{images}", "--to", "yolo", "--output", "out"],
    "label": ["label", "{file}", "--images", "{images}", "--source", "box", "--output", "out"],
    "label from masks": ["label", "{file}", "--images", "{images}", "--source", "file:{file}", "--output", "out"],
}


def with_paths(command: str, root: Path, file: Path) -> list[str]:
    return [word.format(file=file, images=root / "deep/data/images") for word in COMMANDS[command]]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_sound_data_set_is_accepted(root, command):
    file = root / "deep/data/boxes.json"
    file.write_text(json.dumps(CONTENT))
    assert end_of(with_paths(command, root, file)) == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_values_in_the_annotation_file(root, command):
    @SETTINGS
    @given(CHANGES)
    def check(changes):
        file = root / "deep/data/boxes.json"
        file.write_text(json.dumps(changed(changes)))
        with untouched(root):
            end_of(with_paths(command, root, file))

    check()


@pytest.mark.parametrize("command", COMMANDS)
def test_damaged_bytes_of_the_annotation_file(root, command):
    @settings(SETTINGS, max_examples=15)
    @given(DAMAGE)
    def check(damage):
        file = root / "deep/data/boxes.json"
        file.write_bytes(damaged(json.dumps(CONTENT).encode(), damage))
        with untouched(root):
            end_of(with_paths(command, root, file))

    check()


@pytest.mark.parametrize("command", ["check", "fix", "label"])
@pytest.mark.parametrize("name", ["a.png", "sub/b.jpg"])
def test_damaged_bytes_of_an_image(root, command, name):
    file, picture = root / "deep/data/boxes.json", root / "deep/data/images" / name
    file.write_text(json.dumps(CONTENT))
    sound = picture.read_bytes()

    @settings(SETTINGS, max_examples=15)
    @given(DAMAGE, st.integers(0, len(sound)))
    def check(damage, length):
        picture.write_bytes(damaged(sound, damage)[:length])
        with untouched(root):
            end_of(with_paths(command, root, file))

    check()


def write_yolo_folder(folder: Path, layout: str, lines: str) -> None:
    (folder / "labels").mkdir(parents=True)
    (folder / "data.yaml").write_text(layout, encoding="utf-8", errors="surrogatepass")
    (folder / "labels/a.txt").write_text(lines, encoding="utf-8", errors="surrogatepass")


LAYOUT = "train: images\nval: {}\nnames: {}\n"
VALUES_IN_LINES = st.lists(st.sampled_from(["0", "1", "-1", "0.5", "nan", "inf", "1e999", "x", "9" * 400, "\0", "\n"]))


@SETTINGS
@given(VALUES, VALUES, VALUES_IN_LINES)
def test_wrong_values_in_a_yolo_folder(root, val, names, words):
    folder = root / "deep/yolo"
    shutil.rmtree(folder, ignore_errors=True)
    write_yolo_folder(folder, LAYOUT.format(json.dumps(val), json.dumps(names)), " ".join(words))
    shutil.copytree(root / "deep/data/images", folder / "images")
    with untouched(root):
        end_of(["data", "import", str(folder), "--from", "yolo", "--output", "out"])


WORDS = st.sampled_from(["1", "3", "-2", "nan", "inf", "1e999", "x", "", "9" * 400])


@SETTINGS
@given(st.lists(WORDS, min_size=6, max_size=6), DAMAGE)
def test_wrong_values_in_a_voc_folder(root, numbers, damage):
    folder = root / "deep/voc"
    folder.mkdir(exist_ok=True)
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), numbers[2:], strict=True))
    text = (
        f"<annotation><filename>../a.png</filename><size><height>{numbers[0]}</height><width>{numbers[1]}</width></size>"
        f"<object><name>ant</name><bndbox>{sides}</bndbox></object></annotation>"
    )
    (folder / "a.xml").write_bytes(damaged(text.encode(), damage))
    with untouched(root):
        end_of(["data", "import", str(folder), "--from", "voc", "--output", "out"])

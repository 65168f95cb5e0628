"""Wrong input to commands: the message names place and way out, nothing is written, and torch is not loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from orchestration.cli.app import run
from orchestration.errors import ExitCode

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A COCO file `gt.json` of one image, two without a box, a file `notes.txt` and a table `boxes.csv`."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48)).save("a.png")
    square = [4, 4, 24, 4, 24, 24, 4, 24]
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 20, 20], "iscrowd": 0}
    image = {"id": 1, "file_name": "a.png", "width": 64, "height": 48}
    content = {
        "images": [image],
        "annotations": [entry | {"segmentation": [square]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    Path("gt.json").write_text(json.dumps(content))
    Path("empty.json").write_text(json.dumps(content | {"annotations": []}))
    flat = [entry | {"bbox": [0, 0, 0, 0]}]  # as of keypoints alone
    Path("flat.json").write_text(json.dumps(content | {"annotations": flat}))
    Path("box.ndjson").write_text("{}\n{}\n")
    unnamed = {"id": 1, "coco_url": "http://images/train2017/a.png"}
    Path("lvis.json").write_text(json.dumps(content | {"images": [unnamed]}))
    Path("notes.txt").write_text("hello")
    Path("boxes.csv").write_text("filename;xmin;ymin;xmax;ymax;class\r\na.png;4;4;24;24;cat\r\n")
    return tmp_path


WRONG = [
    ("data check boxes.csv", ExitCode.USAGE, "boxes.csv: is not a COCO file (.json)"),
    ("data check box.ndjson", ExitCode.USAGE, "box.ndjson: is not a COCO file (.json)"),
    (
        "data check .",
        ExitCode.USAGE,
        "name it, perhaps empty.json, or make one with `boxseg data",
    ),
    (
        "label empty.json --source box --output o",
        ExitCode.DATA,
        "empty.json: has no box with an area",
    ),
    (
        "label flat.json --source box --output o",
        ExitCode.DATA,
        "flat.json: 1 of 1 annotations are wrong",
    ),
    (
        "label lvis.json --source box --output o",
        ExitCode.DATA,
        "by `coco_url`, as LVIS does, `boxseg data check lvis.json --images DIR --fix NEW` writes a copy",
    ),
    ("data import nowhere --from yolo --output o", ExitCode.DATA, "nowhere: does not exist"),
    ("data import nowhere --from voc --output o", ExitCode.DATA, "nowhere: does not exist"),
    ("data toy notes.txt", ExitCode.USAGE, "DIR notes.txt: notes.txt is a file"),
    (
        "label gt.json --source box --output notes.txt",
        ExitCode.USAGE,
        "--output notes.txt: notes.txt is a file, and a folder is needed there; name another",
    ),
    (
        "label gt.json --source box --output notes.txt/below",
        ExitCode.USAGE,
        "/notes.txt is a file, and a folder is needed there",
    ),
    (
        "eval gt.json --data gt.json --output notes.txt",
        ExitCode.USAGE,
        "--output notes.txt: notes.txt is a file",
    ),
    ("predict run a.png --output notes.txt", ExitCode.USAGE, "--output notes.txt: notes.txt is a"),
    ("data check gt.json --fix /proc/nope", ExitCode.USAGE, "--fix /proc/nope: no folder can be"),
    (
        "data export gt.json --output /proc/nope",
        ExitCode.USAGE,
        "--output /proc/nope: no folder can be",
    ),
    (
        "predict run a.png --output /proc/nope/out",
        ExitCode.USAGE,
        "--output /proc/nope/out: no folder can be made in /proc (No such file or directory); name another",
    ),
]


@pytest.mark.parametrize(("command", "code", "told"), WRONG, ids=[each[0] for each in WRONG])
def test_wrong_input_is_named_and_nothing_is_written(
    command: str, code: ExitCode, told: str, folder: Path, capsys: Capture
) -> None:
    before = sorted(folder.iterdir())
    assert run(command.split()) == code
    assert told in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["label", "gt.json", "--source", "box", "--output", ""], "the argument after --output: "),
        (["label", "gt.json", "--source", "box", "--output="], "--output=: "),
        (["runs", "ls", "--storage", ""], "the argument after --storage: "),
        (["predict", "run", ""], "the argument after run: "),
    ],
)
def test_an_empty_argument_is_refused_and_does_not_mean_the_current_folder(
    command: list[str], told: str, folder: Path, capsys: Capture
) -> None:
    before = sorted(folder.iterdir())
    assert run(command) == ExitCode.USAGE
    assert f"error: {told}is empty" in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


def test_a_place_that_cannot_be_written_is_refused_without_torch() -> None:
    commands = [command.split() for command, *_ in WRONG if "--output notes.txt" in command]
    program = (
        "import sys\nfrom orchestration.cli.app import run\n"
        f"codes = {{run(command) for command in {commands}}}\n"
        "print(*map(int, codes), *sorted({'torch', 'ray', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.stdout.split() == ["2"], done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_refused(folder: Path, capsys: Capture) -> None:
    (folder / "locked").mkdir(mode=0o500)
    assert (
        run(["label", "gt.json", "--source", "box", "--output", "locked/labels"]) == ExitCode.USAGE
    )
    assert "this account may not write in" in capsys.readouterr().err


def test_a_json_file_is_recognised_by_an_ending_in_any_case(folder: Path) -> None:
    (folder / "gt.json").rename("GT.JSON")
    assert run(["data", "check", "GT.JSON"]) == ExitCode.DONE
    assert run(["data", "stats", "GT.JSON"]) == ExitCode.DONE
    assert run(["eval", "GT.JSON", "--data", "GT.JSON"]) == ExitCode.DONE


def test_images_are_found_in_a_folder_called_data(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "a.png").rename(folder / "data/a.png")
    assert run(["data", "check", "gt.json"]) == ExitCode.DONE


@pytest.mark.parametrize(("form", "told"), [("yolo", "are left out"), ("coco", "are listed all")])
def test_images_that_an_export_lacks_are_counted(
    form: str, told: str, folder: Path, capsys: Capture
) -> None:
    content = json.loads((folder / "gt.json").read_text())
    content["images"].append(content["images"][0] | {"id": 2, "file_name": "gone.png"})
    (folder / "gt.json").write_text(json.dumps(content))
    assert run(["data", "export", "gt.json", "--to", form, "--output", "o"]) == ExitCode.DONE
    assert "1 of these images are not in" in (said := capsys.readouterr().err)
    assert told in said
    (folder / "a.png").unlink()
    options = ["--images", ".", "--to", form, "--output", "p"]
    assert run(["data", "export", "gt.json", *options]) == ExitCode.USAGE
    assert "none of its 2 images" in capsys.readouterr().err

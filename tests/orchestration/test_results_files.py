"""Files with detections or masks, as `boxseg eval` and `boxseg label` read them: oddities in them are reported."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from boxseg.label.review import stamp_of
from orchestration.cli.app import run

SIZE = 16
BOXES = {1: [2, 2, 6, 6], 2: [4, 5, 8, 7]}
"""Image id -> the box, which is its mask too."""


def mask(box: list[int]) -> list[list[int]]:
    x, y, width, height = box
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def truth(first_id: int = 1) -> dict[str, Any]:
    images = [{"id": id, "file_name": f"{id}.png", "width": SIZE, "height": SIZE} for id in BOXES]
    annotations = [
        {
            "id": first_id + number,
            "image_id": id,
            "category_id": 3,
            "bbox": box,
            "segmentation": mask(box),
        }
        for number, (id, box) in enumerate(BOXES.items())
    ]
    return {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "ant"}]}


def results() -> list[dict[str, Any]]:
    return [
        {"image_id": id, "category_id": 3, "bbox": box, "segmentation": mask(box), "score": 0.9}
        for id, box in BOXES.items()
    ]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for id in BOXES:
        Image.new("RGB", (SIZE, SIZE)).save(f"{id}.png")


def evaluate(found: Any, true: Any = None) -> int:
    Path("gt.json").write_text(json.dumps(truth() if true is None else true))
    Path("found.json").write_text(json.dumps(found))
    return run(["eval", "found.json", "--data", "gt.json", "--images", ".", "--json"])


@pytest.mark.parametrize("first_id", [1, 0, -5])
def test_equal_masks_score_one_with_any_ids(first_id, capsys):
    assert evaluate(results(), truth(first_id)) == 0
    assert json.loads(capsys.readouterr().out)["val/mask_ap"] == pytest.approx(1)


@pytest.mark.parametrize("key", ["bbox", "score"])
def test_box_and_score_can_be_left_out(key, capsys):
    found = results()
    for entry in found:
        del entry[key]
    assert evaluate(found) == 0
    assert json.loads(capsys.readouterr().out)["val/box_ap"] == pytest.approx(1)


def test_odd_fields_of_the_truth_that_nothing_needs_are_filled_in(capsys):
    true = truth()
    true["annotations"][0] |= {"area": None, "iscrowd": None}
    true["annotations"][1] |= {"area": float("nan"), "iscrowd": False}
    assert evaluate(results(), true) == 0
    assert json.loads(capsys.readouterr().out)["val/mask_ap"] == pytest.approx(1)


def test_equal_ids_in_the_truth_are_refused(capsys):
    true = truth()
    true["annotations"][1]["id"] = 1
    assert evaluate(results(), true) == 3
    assert "annotation 1 occurs 2 times" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("score", None, "entry 1 has score None; a score is a finite number"),
        ("score", float("nan"), "entry 1 has score nan"),
        ("score", float("inf"), "entry 1 has score inf"),
        ("score", "0.5", "entry 1 has score '0.5'"),
        ("score", True, "entry 1 has score True"),
        ("score", 10**400, "entry 1 has score 1000"),
        ("image_id", "1", "entry 1 has image_id '1'; ids are whole numbers"),
        ("image_id", None, "entry 1 has image_id None"),
        ("category_id", [3], r"entry 1 has category_id [3]"),
        ("category_id", 4, "an entry has category id 4"),
        ("bbox", [1, 2, 3], "entry 1 has bbox [1, 2, 3]; a bbox is the four numbers"),
        ("bbox", [1, 2, 3, None], "entry 1 has bbox"),
        ("bbox", [1, 2, 3, float("inf")], "entry 1 has bbox"),
        (
            "segmentation",
            {"size": [8, 8], "counts": [64]},
            "has a mask of 8 x 8 px in an image of 16 x 16 px",
        ),
        (
            "segmentation",
            {"size": [65535, 65535], "counts": [65535**2]},
            "entry 1 has a mask of 65535 x 65535 px",
        ),
        ("segmentation", "text", "entry 1 has a malformed segmentation"),
    ],
)
def test_odd_entries_are_refused_with_the_reason(key, value, told, capsys):
    found = results()
    found[1][key] = value
    assert evaluate(found) == 3
    shown = capsys.readouterr().err
    assert told in shown
    assert "found.json" in shown


@pytest.mark.parametrize(
    "found", [None, 3, "text", {}, {"annotations": 3}, [3], [None], [[]], {"annotations": [{}]}]
)
def test_a_file_of_something_else_is_refused(found, capsys):
    assert evaluate(found) == 3
    assert "found.json: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "images", [3, [3], [{}], [{"id": "1", "file_name": "1.png"}], [{"id": 1, "file_name": 1}]]
)
def test_odd_images_of_a_file_of_instances_are_reported(images, capsys):
    assert evaluate({"images": images, "annotations": results()}) == 3
    assert "found.json: images[0] has no whole number `id`" in capsys.readouterr().err


def test_results_for_other_images_are_no_result_of_zero(capsys):
    found = results()
    for entry in found:
        entry["image_id"] += 1000
    assert evaluate(found) == 3
    assert "has no mask for any image of gt.json" in capsys.readouterr().err


def test_results_for_some_other_images_are_counted(capsys, caplog):
    found = results()
    found[1]["image_id"] += 1000
    assert evaluate(found) == 0
    assert "found.json: 1 of 2 entries are for other images than those listed" in caplog.text


def test_one_image_file_is_recognised_by_any_path(tmp_path, capsys):
    folder = tmp_path.name
    images = [{"id": 7 + id, "file_name": f"../{folder}/{id}.png"} for id in BOXES]
    entries = [entry | {"image_id": entry["image_id"] + 7} for entry in results()]
    assert evaluate({"images": images, "annotations": entries}) == 0
    assert json.loads(capsys.readouterr().out)["val/mask_ap"] == pytest.approx(1)


def test_an_option_that_is_no_number_is_refused(capsys):
    Path("gt.json").write_text(json.dumps(truth()))
    command = ["data", "export", "gt.json", "--images", ".", "--output", "out"]
    assert run([*command, "--min-quality", "nan"]) == 2
    assert "--min-quality" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"labels": [{}]},
        {"labels": 3},
        {"image_id": "x"},
        {
            "labels": [
                {"id": 1, "segmentation": {"size": [SIZE, SIZE], "counts": "?"}, "quality": 1.0}
            ]
        },
    ],
)
def test_a_damaged_line_of_the_label_journal_is_named(change, capsys):
    Path("gt.json").write_text(json.dumps(truth()))
    command = ["label", "gt.json", "--images", ".", "--source", "box", "--output", "out"]
    assert run(command) == 0
    first, second, *rest = Path("out/labels.jsonl").read_text().splitlines()
    Path("out/labels.jsonl").write_text(
        "\n".join([first, json.dumps(json.loads(second) | change), *rest, ""])
    )
    assert run(command) == 3
    assert "labels.jsonl:2: is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    "decisions", [3, [], {"1": 3}, {"x": "accept"}, {"9": "accept"}, {"1": ["accept"]}]
)
def test_files_that_are_not_decisions_are_named(decisions, capsys):
    Path("gt.json").write_text(json.dumps(truth()))
    command = ["label", "gt.json", "--images", ".", "--source", "box", "--output", "out"]
    assert run(command) == 0
    stamped = {"labels": stamp_of(Path("out")), "decisions": decisions}
    for written in (stamped, decisions):
        Path("decisions.json").write_text(json.dumps(written))
        assert run([*command, "--apply", "decisions.json"]) == 3
    assert "decisions.json: " in capsys.readouterr().err


def test_rejecting_a_mask_twice_changes_nothing(capsys):
    Path("gt.json").write_text(json.dumps(truth()))
    command = ["label", "gt.json", "--images", ".", "--source", "box", "--output", "out"]
    assert run(command) == 0
    labels = json.loads(Path("out/labels.coco.json").read_text())
    without = copy.deepcopy(labels)
    del without["annotations"][0]["segmentation"]
    Path("out/labels.coco.json").write_text(json.dumps(without))
    decisions = {"labels": stamp_of(Path("out")), "decisions": {"1": "reject"}}
    Path("decisions.json").write_text(json.dumps(decisions))
    assert run([*command, "--apply", "decisions.json"]) == 0


def test_an_export_of_images_of_another_size_is_refused(capsys):
    content = truth()
    content["images"][0] |= {"width": 13_000, "height": 13_000}
    Path("gt.json").write_text(json.dumps(content))
    command = ["data", "export", "gt.json", "--images", ".", "--output", "out", "--to", "yolo"]
    assert run(command) == 3
    assert (
        "1.png: image 1 is 16 x 16 px, but the annotation file says 13000 x 13000"
        in capsys.readouterr().err
    )
    assert not Path("out").exists()


def test_only_the_first_of_many_classes_are_shown(capsys):
    content = truth()
    content["categories"] += [{"id": id, "name": f"class {id}"} for id in range(10, 3010)]
    Path("gt.json").write_text(json.dumps(content))
    assert run(["data", "stats", "gt.json"]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) < 1020
    assert "… and 2001 more classes; --json has all" in shown.err

"""`boxseg eval` from the command line."""

import json
from pathlib import Path
from unittest.mock import Mock

import pytest

from boxseg.label import refined
from boxseg.predict import predictor
from orchestration.cli.app import run


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def evaluate(trained_run, annotations, *more: str) -> int:
    images = ["--images", str(trained_run.val.images)]
    return run(["eval", str(trained_run.checkpoint), "--data", str(annotations), *images, *more])


def test_a_run_is_compared_with_the_drawn_masks(trained_run, capsys):
    assert evaluate(trained_run, trained_run.val.annotations, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert 0 <= shown["val/mask_ap"] < 1
    assert shown["val/mask_ap"] == shown["metrics"]["val/mask_ap"]
    assert Path("evaluation/worst.png").exists()


def test_masks_are_refined_on_request(trained_run, capsys, monkeypatch):
    monkeypatch.setattr(
        predictor, "least_score", lambda metrics: 0.0
    )  # the network of the tests is sure of nothing
    label = Mock(wraps=refined.label_together)
    monkeypatch.setattr(refined, "label_together", label)
    assert evaluate(trained_run, trained_run.val.annotations, "--json") == 0
    plain = json.loads(capsys.readouterr().out)
    label.assert_not_called()
    assert evaluate(trained_run, trained_run.val.annotations, "--json", "--refine") == 0
    with_refined = json.loads(capsys.readouterr().out)
    assert label.call_count == plain["images"]
    assert with_refined["val/box_ap"] == plain["val/box_ap"]


def test_masks_of_a_file_cannot_be_refined(trained_run, capsys):
    drawn = str(trained_run.val.annotations)
    images = ["--images", str(trained_run.val.images)]
    assert run(["eval", drawn, "--data", drawn, *images, "--refine"]) == 2
    assert "only what a run finds can be refined" in capsys.readouterr().err


def test_masks_of_a_file_are_measured_as_those_of_a_run(trained_run, capsys):
    drawn = str(trained_run.val.annotations)
    images = ["--images", str(trained_run.val.images)]
    assert run(["eval", drawn, "--data", drawn, *images, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["val/mask_ap"] == pytest.approx(1)


def test_masks_in_pixels_of_smaller_images_are_reported(trained_run, caplog):
    entries = json.loads(trained_run.val.annotations.read_text())["annotations"]
    halves = []
    for entry in entries:
        x, y, width, height = (side / 4 for side in entry["bbox"])
        outline = [[x, y, x + width, y, x + width, y + height]]
        halves.append(entry | {"bbox": [x, y, width, height], "segmentation": outline})
    Path("halves.json").write_text(json.dumps(halves))
    data = ["--data", str(trained_run.val.annotations), "--images", str(trained_run.val.images)]
    assert run(["eval", "halves.json", *data]) == 0
    assert f"0 of {len(entries)} objects are found; are both files in pixels" in caplog.text


def test_without_drawn_masks_it_says_so(trained_run, capsys):
    content = json.loads(trained_run.val.annotations.read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    Path("boxes.json").write_text(json.dumps(content))
    assert evaluate(trained_run, "boxes.json") == 0
    shown = capsys.readouterr()
    assert "no mask AP" in shown.err
    assert "mask_ap" not in shown.out
    assert "val/box_recall" in shown.out


def test_data_of_other_classes_are_refused(trained_run, capsys):
    content = json.loads(trained_run.val.annotations.read_text())
    for category in content["categories"]:
        category["name"] = f"other {category['name']}"
    Path("other.json").write_text(json.dumps(content))
    assert evaluate(trained_run, "other.json") == 2
    assert "other.json: has other " in capsys.readouterr().err

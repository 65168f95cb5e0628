"""`boxseg predict` from the command line."""

import json
from pathlib import Path

import pytest
from PIL import Image
from pycocotools.coco import COCO

from boxseg.coco.picture_checks import EXIF_ORIENTATION
from boxseg.predict import predictor
from orchestration.cli.app import run


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photos(trained_run) -> Path:
    """Three pictures, one of them in a subfolder, and a file that is not a picture."""
    for name in ("a.png", "b.JPG", "deep/a.png"):
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(sorted(trained_run.val.images.iterdir())[0]).resize((80, 60)).convert(
            "RGB"
        ).save(Path("photos", name))
    Path("photos/notes.txt").write_text("no picture")
    return Path("photos")


def predict(trained_run, *arguments: str) -> int:
    return run(["predict", str(trained_run.checkpoint), *arguments])


def test_detections_are_coco_instances_with_scores_and_pictures(photos, trained_run, capsys):
    assert predict(trained_run, "photos", "--min-score", "0.01", "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert [image["file_name"] for image in content["images"]] == [
        "photos/a.png",
        "photos/b.JPG",
        "photos/deep/a.png",
    ]
    assert content["annotations"], "the network should find something at so low a score"
    assert json.loads(Path("predictions/predictions.coco.json").read_text()) == content
    loaded = COCO("predictions/predictions.coco.json")
    for each in content["annotations"]:
        assert each["score"] >= 0.01
        assert loaded.annToMask(each).shape == (60, 80)
        assert loaded.annToMask(each).sum() == each["area"]
    assert len(list(Path("predictions/overlays").glob("*.png"))) == 3
    assert Image.open("predictions/overlays/000001-a.png").size == (80, 60)


def test_masks_are_refined_on_request(trained_run, capsys, monkeypatch):
    # as the network of the tests is sure of nothing
    monkeypatch.setattr(predictor, "least_score", lambda metrics: 0.0)
    # twice the size at which the network sees images
    first = sorted(trained_run.val.images.iterdir())[0]
    Image.open(first).resize((160, 120)).save("large.png")
    found = []
    for more in ((), ("--refine",)):
        assert predict(trained_run, "large.png", "--json", *more) == 0
        found.append(json.loads(capsys.readouterr().out)["annotations"])
    plain, with_refined = found
    assert [each["bbox"] for each in with_refined] == [each["bbox"] for each in plain]
    masks = [[each["segmentation"] for each in annotations] for annotations in found]
    assert masks[0] != masks[1]


def test_without_a_least_score_that_of_the_evaluation_counts(
    photos, trained_run, capsys, monkeypatch
):
    assert predict(trained_run, "photos", "--min-score", "0", "--json") == 0
    scores = [each["score"] for each in json.loads(capsys.readouterr().out)["annotations"]]
    least = sorted(scores)[len(scores) // 2]
    monkeypatch.setattr(predictor, "least_score", lambda metrics: least)
    assert predict(trained_run, "photos", "--json") == 0
    shown = [each["score"] for each in json.loads(capsys.readouterr().out)["annotations"]]
    assert min(shown) == least
    assert len(shown) < len(scores)


def test_pictures_of_an_earlier_call_are_removed_and_others_are_kept(photos, trained_run):
    overlays = Path("predictions/overlays")
    assert predict(trained_run, "photos") == 0
    assert len(list(overlays.iterdir())) == 3
    others = {"notes.txt", "000009-mine.png", "000010-damaged.png"}
    (overlays / "notes.txt").touch()
    Image.new("RGB", (8, 8)).save(overlays / "000009-mine.png")
    (overlays / "000010-damaged.png").write_bytes(b"none")
    assert predict(trained_run, "photos/b.JPG") == 0
    assert {path.name for path in overlays.iterdir()} == {"000001-b.png", *others}
    assert predict(trained_run, "photos", "--no-overlays") == 0
    assert {path.name for path in overlays.iterdir()} == others


def test_an_image_without_detections_is_a_result_too(photos, trained_run, capsys):
    assert (
        predict(
            trained_run,
            "photos/*.png",
            "--min-score",
            "1",
            "--no-overlays",
            "--output",
            "out",
            "--json",
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["annotations"] == []
    assert not Path("out/overlays").exists()


def test_damaged_files_are_named_and_skipped(photos, trained_run, capsys):
    Path("photos/b.JPG").write_bytes(Path("photos/b.JPG").read_bytes()[:200])
    assert predict(trained_run, "photos", "photos/a.png", "--json") == 0
    shown = capsys.readouterr()
    assert len(json.loads(shown.out)["images"]) == 2
    assert "skipped: photos/b.JPG" in shown.err
    assert predict(trained_run, "photos/b.JPG") == 3


def test_sources_without_images_are_refused(photos, trained_run, capsys):
    Path("empty").mkdir()
    for source, told in (
        ("photos/*.webp", "no file fits this pattern"),
        ("photos/x.jpg", "photos/x.jpg: does not exist"),
        ("empty", "empty: holds no image (.avif, .bmp, "),
    ):
        assert predict(trained_run, source) == 2
        assert told in capsys.readouterr().err


def test_a_video_is_refused_with_the_command_for_its_frames(photos, trained_run, capsys):
    Path("clip.mp4").write_text("a video")
    assert predict(trained_run, "clip.mp4", "photos/a.png") == 2
    assert "clip.mp4: is a video" in (told := capsys.readouterr().err)
    assert "ffmpeg -i clip.mp4" in told


def test_pictures_that_viewers_turn_are_reported(photos, trained_run, capsys):
    picture = Image.open(photos / "b.JPG")
    exif = picture.getexif()
    exif[EXIF_ORIENTATION] = 6
    picture.save(photos / "b.JPG", exif=exif)
    assert predict(trained_run, "photos") == 0
    told = "warning: 1 pictures, such as photos/b.JPG with EXIF orientation 6, ask viewers to turn"
    assert told in capsys.readouterr().err

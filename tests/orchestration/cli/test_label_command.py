"""`boxseg label` from the command line."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boxseg.data.dataset import CocoBoxes
from boxseg.data.mask_files import MaskFile
from boxseg.evaluation.pseudo_quality import mask_iou
from boxseg.formats.find import import_boxes
from boxseg.label.review import stamp_of
from boxseg.label.sources import from_boxes, from_file
from orchestration.cli.app import run
from orchestration.execute.label_run import alone_in, open_source
from orchestration.record.run_folder import RunFolder, RunStatus


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def arguments(trained_run) -> list[str]:
    return ["label", str(trained_run.val.annotations), "--images", str(trained_run.val.images)]


def test_boxes_become_masks_with_a_run(arguments, trained_run, capsys):
    assert (
        run([*arguments, "--run", str(trained_run.checkpoint), "--output", "out", "--json"]) == 0
    )
    shown = capsys.readouterr()
    summary = json.loads(shown.out)
    assert summary["images"] == 4
    assert "4/4 images" in shown.err
    labels = json.loads(Path("out/labels.coco.json").read_text())["annotations"]
    assert len(labels) == summary["boxes"]
    assert all("counts" in each["segmentation"] and 0 <= each["quality"] <= 1 for each in labels)


def test_two_commands_do_not_label_into_one_folder(arguments, capsys):
    command = [*arguments, "--source", "box", "--output", "out"]
    with alone_in(Path("out")):
        assert run(command) == 2
    assert "out: another command labels into it; wait for it" in capsys.readouterr().err
    assert run(command) == 0
    Path("decisions.json").write_text(
        json.dumps({"labels": stamp_of(Path("out")), "decisions": {}})
    )
    apply = [*arguments, "--output", "out", "--apply", "decisions.json"]
    with alone_in(Path("out")):
        assert (
            run(apply) == 2
        )  # as `yolo/` would be that of one, and the reviewed labels those of the other
    assert "out: another command labels into it; wait for it" in capsys.readouterr().err
    assert run(apply) == 0


def test_boxes_that_another_command_reads_are_not_replaced(arguments, capsys):
    assert run([*arguments, "--source", "box", "--output", "first"]) == 0
    Path("out").mkdir()
    Path("out/boxes.json").write_text("of another command")
    command = ["label", "first/yolo", "--source", "box", "--output", "out"]
    with alone_in(Path("out")):
        assert run(command) == 2
    assert Path("out/boxes.json").read_text() == "of another command"
    assert run(command) == 0


def test_decisions_about_a_folder_that_is_missing_do_not_make_it(arguments):
    Path("decisions.json").write_text("{}")
    assert run([*arguments, "--output", "out", "--apply", "decisions.json"]) == 3
    assert not Path("out").exists()


def test_a_stop_between_two_images_is_reported_and_the_same_command_continues(
    arguments, monkeypatch, capsys
):
    def stop(images):
        os.kill(os.getpid(), signal.SIGTERM)
        return from_boxes(images)

    command = [*arguments, "--source", "box", "--output", "out"]
    with monkeypatch.context() as patch:
        patch.setattr("boxseg.label.sources.from_boxes", stop)
        assert run(command) == 75
    assert "what is labelled is kept, the same command goes on" in capsys.readouterr().err
    assert run(command) == 0
    assert "1 images are labelled already" in capsys.readouterr().err


def test_a_stop_before_the_first_image_is_reported_too(arguments, monkeypatch, capsys):
    def stop(*given, **named):
        os.kill(os.getpid(), signal.SIGTERM)
        return open_source(*given, **named)

    monkeypatch.setattr("orchestration.execute.label_run.open_source", stop)
    assert run([*arguments, "--source", "box", "--output", "out"]) == 75
    assert "the same command goes on" in capsys.readouterr().err


def test_a_weak_or_unfinished_run_is_named_before_anything_is_written(
    arguments, trained_run, tmp_path, capsys
):
    folder = tmp_path / "runs/t/20260101-000000-aaaa"
    shutil.copytree(trained_run.checkpoint.parent, folder / "checkpoints", symlinks=True)
    RunFolder(folder).create(RunStatus(folder.name, "t", status="stopped", step=2, steps=500), "")
    content = json.loads(Path(arguments[1]).read_text())
    content["categories"][0]["name"] = "unknown"
    Path("other.json").write_text(json.dumps(content))
    command = ["label", "other.json", *arguments[2:], "--run", folder.name, "--output", "out"]
    assert run([*command, "--json"]) == 0
    shown, told = capsys.readouterr()
    assert f"warning: run {folder.name} is not finished: stopped at step 2 of 500" in told
    assert "finds next to nothing, its box AP is 0.0" in told
    assert "knows 1 of 6 classes not (unknown)" in told
    assert len(json.loads(shown)["about_the_run"]) == 3


def test_a_doubt_that_most_masks_share_is_the_first_line_of_the_summary(arguments, capsys):
    assert run([*arguments, "--source", "box"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("warning")
    assert "masks fill less than 15 % or more than 97 % of their box (fill): look at them" in first
    assert run([*arguments, "--source", f"file:{arguments[1]}", "--output", "drawn"]) == 0
    assert not capsys.readouterr().out.startswith("warning")


def test_labels_go_to_a_folder_named_after_the_data_and_a_second_call_does_no_work(
    arguments, capsys
):
    assert run([*arguments, "--source", "box"]) == 0
    assert Path("labels/val/labels.coco.json").exists()
    capsys.readouterr()
    assert run([*arguments, "--source", "box"]) == 0
    assert "images" not in capsys.readouterr().err
    assert run([*arguments, "--source", f"file:{arguments[1]}"]) == 2
    assert "another" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code", "told"),
    [
        (["--run", "none"], 2, "no such run"),
        (["--run", "none", "--fuse-with", "none.json"], 3, "none.json: does not exist"),
        (["--source", "magic"], 2, "use run, box or file"),
        (["--source", "file:none.json"], 3, "none.json"),
        (["--source", "file:"], 2, "use run, box or file"),
        (["--source", "box", "--fuse-with", "x.json"], 2, "not --source box"),
        (
            ["--source", "box", "--output", "/dev/null"],
            2,
            "--output /dev/null: /dev/null is a file, and a folder is needed there",
        ),
        (["--source", "box", "--output", "n" * 300], 2, "name is longer than the disk allows"),
        (["--source", "box", "--images", "nowhere"], 2, "--images nowhere: is not a folder"),
        (["--source", "box", "--images", "."], 2, "none of its 4 images, such as "),
    ],
)
def test_wrong_options_are_refused_with_the_reason(arguments, more, code, told, capsys):
    assert run([*arguments, *more]) == code
    assert told in capsys.readouterr().err


def test_unreadable_images_are_reported_and_it_is_an_error_if_all_are(
    arguments, trained_run, capsys
):
    Path("damaged").mkdir()
    for image in trained_run.val.images.iterdir():
        Path("damaged", image.name).write_bytes(image.read_bytes()[:100])
    assert run(["label", arguments[1], "--images", "damaged", "--source", "box"]) == 3
    assert "no image could be read" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["run", "box"])
def test_labels_of_an_older_version_are_not_mixed_with_new_ones(
    source, arguments, trained_run, monkeypatch, capsys
):
    with_run = ["--run", str(trained_run.checkpoint)] if source == "run" else ["--source", source]
    assert run([*arguments, *with_run]) == 0
    monkeypatch.setattr("boxseg.label.boxes.LABEL_VERSION", 1000)
    assert run([*arguments, *with_run]) == 2
    assert (
        "labels made with another label_version; name another --output" in capsys.readouterr().err
    )


def test_an_unknown_device_is_refused(arguments, trained_run, capsys):
    assert run([*arguments, "--run", str(trained_run.checkpoint), "--device", "abacus"]) == 2
    assert "--device abacus" in capsys.readouterr().err


def test_masks_are_reviewed_and_the_decisions_applied(arguments, capsys):
    assert run([*arguments, "--source", "box", "--output", "out", "--review", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert Path(shown["review"]).exists()
    first = json.loads(Path("out/labels.coco.json").read_text())["annotations"][0]["id"]
    decisions = {"labels": stamp_of(Path("out")), "decisions": {first: "reject"}}
    Path("decisions.json").write_text(json.dumps(decisions))
    assert run([*arguments, "--output", "out", "--apply", "decisions.json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reject"] == 1
    assert Path("out/labels.reviewed.json").exists()


def test_a_yolo_folder_is_labelled(arguments, capsys):
    assert run([*arguments, "--source", f"file:{arguments[1]}", "--output", "out"]) == 0
    assert run(["label", "out/yolo", "--source", "box", "--output", "again", "--json"]) == 0
    boxes = json.loads(Path(arguments[1]).read_text())["annotations"]
    written = json.loads(Path("again/labels.coco.json").read_text())
    assert len(written["annotations"]) == len(boxes)
    assert all("segmentation" in each for each in written["annotations"])


@pytest.mark.parametrize("main", [(), ("train", "val"), ("train", "trainval")])
def test_each_image_of_a_voc_folder_is_labelled_once(main, tmp_path):
    masks = np.zeros((8, 8), dtype=np.uint8)
    masks[2:6, 2:6] = 1
    box = "<bndbox><xmin>3</xmin><ymin>3</ymin><xmax>6</xmax><ymax>6</ymax></bndbox>"
    text = f"<size><height>8</height><width>8</width></size><object><name>dog</name>{box}</object>"
    numbers, lists = (
        ("SegmentationObject", "SegmentationClass"),
        ("ImageSets/Segmentation", "ImageSets/Main"),
    )
    for folder in ("Annotations", *numbers, *lists):
        (tmp_path / "voc" / folder).mkdir(parents=True)
    for stem in ("a", "b"):
        (tmp_path / f"voc/Annotations/{stem}.xml").write_text(f"<annotation>{text}</annotation>")
        for folder in numbers:
            Image.fromarray(masks).save(tmp_path / f"voc/{folder}/{stem}.png")
    stems = {"train": "a\n", "val": "b\n", "trainval": "a\nb\n"}
    for folder, names in zip(lists, (stems, main), strict=True):
        for name in names:
            (tmp_path / f"voc/{folder}/{name}.txt").write_text(stems[name])
    found = import_boxes(tmp_path / "voc", tmp_path / "out", None)
    content = json.loads(found.annotations.read_text())
    assert [each["file_name"] for each in content["images"]] == ["a.jpg", "b.jpg"]
    assert [each["bbox"] for each in content["annotations"]] == [[2, 2, 4, 4]] * 2


def test_a_cleaned_copy_is_written_and_checked(trained_run, capsys):
    content = json.loads(trained_run.val.annotations.read_text())
    content["annotations"][0]["bbox"][2] = 0
    del content["annotations"][0]["segmentation"]  # a box without a size would be taken from it
    Path("bent.json").write_text(json.dumps(content))
    check = ["data", "check", "bent.json", "--images", str(trained_run.val.images)]
    assert run(check) == 3
    assert run([*check, "--fix", "clean"]) == 0
    assert "1 annotations left out" in capsys.readouterr().err
    assert (
        json.loads(Path("clean/annotations.json").read_text())["annotations"]
        == content["annotations"][1:]
    )


def test_masks_of_another_tool_join_the_candidates_of_a_run(arguments, trained_run, monkeypatch):
    monkeypatch.setattr("boxseg.label.cut.CLEAN_SEPARATION", 2.0)  # no mask from colours alone
    monkeypatch.setattr("boxseg.label.outlines.CUT", 0.0)
    masks = str(trained_run.val.annotations)
    for name, more in (("alone", []), ("fused", ["--fuse-with", masks])):
        assert (
            run([*arguments, "--run", str(trained_run.checkpoint), "--output", name, *more]) == 0
        )
    data = CocoBoxes(trained_run.val, train=False)
    alone, fused = (
        _mean_iou(data, Path(f"{name}/labels.coco.json")) for name in ("alone", "fused")
    )
    assert fused > alone + 0.02  # the masks that join are the drawn ones
    # the same folder is not mixed with labels of other sources
    assert run([*arguments, "--run", str(trained_run.checkpoint), "--output", "fused"]) == 2


def _mean_iou(data: CocoBoxes, labels: Path) -> float:
    """With the drawn masks."""
    source, found = from_file(MaskFile.read(labels), data), []
    for index in range(len(data)):
        (labelled,) = source([(data[index], data.annotation_ids(index))])
        found += mask_iou(labelled.mask, data.drawn_masks(index).mask).tolist()
    return sum(found) / len(found)


def test_good_masks_are_exported_for_other_segmenters(arguments, trained_run, capsys):
    assert run([*arguments, "--source", f"file:{arguments[1]}", "--output", "labels"]) == 0
    content = json.loads(Path("labels/labels.coco.json").read_text())
    doubtful = content["annotations"][0]
    doubtful["quality"] = 0.3
    Path("labels.json").write_text(json.dumps(content))
    for form in ("coco", "yolo"):
        command = [
            "data",
            "export",
            "labels.json",
            "--images",
            arguments[3],
            "--to",
            form,
            "--output",
            form,
        ]
        assert run([*command, "--min-quality", "0.5"]) == 0
        assert "left out: 1 images" in capsys.readouterr().err
        assert run(command) == 2  # what is there stays
    kept = json.loads(Path("coco/all.json").read_text())["annotations"]
    assert kept == [
        {
            key: each[key]
            for key in ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")
        }
        for each in content["annotations"]
        if each["image_id"] != doubtful["image_id"]
    ]
    lines = sum(len(path.read_text().splitlines()) for path in Path("yolo/labels").iterdir())
    assert lines == len(kept)
    assert run(["data", "check", "coco/all.json", "--images", arguments[3], "--for", "val"]) == 0


@pytest.mark.parametrize(
    ("quality", "told"), [(0.3, "lower --min-quality"), (None, "has quality None")]
)
def test_an_export_without_good_masks_says_why_and_writes_nothing(
    quality, told, arguments, capsys
):
    content = json.loads(Path(arguments[1]).read_text())
    for annotation in content["annotations"]:
        annotation["quality"] = quality
    Path("labels.json").write_text(json.dumps(content))
    command = [
        "data",
        "export",
        "labels.json",
        "--images",
        arguments[3],
        "--min-quality",
        "0.5",
        "--output",
        "good",
    ]
    assert run(command) == 3
    assert told in capsys.readouterr().err
    assert not Path("good").exists()


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("image_id", 99, "names image 99, which the file does not list"),
        ("category_id", 99, "has category id 99, which the file does not list"),
        (
            "segmentation",
            [[1, 2, 3]],
            "has a malformed segmentation with [1, 2, 3]; a mask is polygons",
        ),
        (
            "segmentation",
            {"size": [8, 8], "counts": [64]},
            "has a mask of 8 x 8 px in an image of 64 x 64 px",
        ),
    ],
)
def test_an_export_names_file_and_annotation_that_cannot_be_written(
    field, value, told, arguments, capsys
):
    content = json.loads(Path(arguments[1]).read_text())
    content["annotations"][1][field] = value
    Path("bent.json").write_text(json.dumps(content))
    assert (
        run(
            [
                "data",
                "export",
                "bent.json",
                "--images",
                arguments[3],
                "--to",
                "yolo",
                "--output",
                "yolo",
            ]
        )
        == 3
    )
    assert (
        f"bent.json: annotation {content['annotations'][1]['id']} {told}"
        in capsys.readouterr().err
    )
    assert not Path("yolo").exists()


def exported(name: str, *more: str) -> set[int]:
    """Ids of the annotations that an export of labels.json holds."""
    assert run(["data", "export", "labels.json", *more, "--output", name]) == 0
    return {each["id"] for each in json.loads(Path(name, "all.json").read_text())["annotations"]}


def test_an_export_asks_for_the_reviewers_decisions_and_never_takes_a_box_for_a_mask(
    arguments, capsys
):
    images = arguments[2:]
    assert run([*arguments, "--source", f"file:{arguments[1]}", "--output", "labels"]) == 0
    content = json.loads(Path("labels/labels.coco.json").read_text())
    first = {each["image_id"]: each for each in reversed(content["annotations"])}
    box, doubtful, accepted, *_ = first.values()
    for each in content["annotations"]:
        each.update(quality=0.9, doubts=[], checks={"fill": 0.6})
    box["checks"] = {"fill": 1.0}
    doubtful["doubts"] = ["gap"]
    of_image = {
        key: {each["id"] for each in content["annotations"] if each["image_id"] == key}
        for key in first
    }
    every = set().union(*of_image.values())
    Path("labels.json").write_text(json.dumps(content))
    assert exported("all", *images, "--min-quality", "0.5") == every - of_image[box["image_id"]]
    assert "left out: 1 images (masks: 1 no more than its box)" in capsys.readouterr().err
    left = every - of_image[box["image_id"]] - of_image[doubtful["image_id"]]
    assert exported("sure", *images, "--without-doubts") == left
    assert (
        run(["data", "export", "labels.json", *images, "--only-accepted", "--output", "none"]) == 3
    )
    assert "has no decisions of a person" in capsys.readouterr().err
    for each in content["annotations"]:
        if each["image_id"] == accepted["image_id"] or each is box:
            each["review"] = "accept"
    Path("labels.json").write_text(json.dumps(content))
    assert exported("accepted", *images, "--only-accepted") == of_image[accepted["image_id"]] | (
        of_image[box["image_id"]] if of_image[box["image_id"]] == {box["id"]} else set()
    )
    assert of_image[box["image_id"]] <= exported("settled", *images)


def test_an_export_leaves_out_images_with_an_empty_mask_and_warns_of_drawn_boxes(
    arguments, capsys
):
    content = json.loads(Path(arguments[1]).read_text())
    height, width = content["images"][0]["height"], content["images"][0]["width"]
    for each in content["annotations"]:
        x, y, across, down = each["bbox"]
        each["segmentation"] = [[x, y, x + across, y, x + across, y + down, x, y + down]]
    empty = content["annotations"][0]
    empty["segmentation"] = {"size": [height, width], "counts": [height * width]}
    Path("labels.json").write_text(json.dumps(content))
    kept = {each["id"] for each in content["annotations"] if each["image_id"] != empty["image_id"]}
    assert exported("boxes", *arguments[2:]) == kept
    told = capsys.readouterr().err
    assert "left out: 1 images (masks: 1 empty)" in told
    assert "masks are no more than their box; a segmenter would learn boxes" in told


def test_an_export_leaves_out_masks_away_from_their_box_and_reports_misfits(arguments, capsys):
    content = json.loads(Path(arguments[1]).read_text())
    away, small = content["annotations"][0], content["annotations"][-1]
    for each, box in ((away, [0, 0, 4, 4]), (small, [*small["bbox"][:2], 3, 3])):
        x, y, across, down = box
        each["segmentation"] = [[x, y, x + across, y, x + across, y + down, x, y + down]]
    away["bbox"] = [20, 20, 20, 20]
    Path("labels.json").write_text(json.dumps(content))
    kept = {each["id"] for each in content["annotations"] if each["image_id"] != away["image_id"]}
    assert exported("good", *arguments[2:]) == kept
    told = capsys.readouterr().err
    assert "left out: 1 images (masks: 1 away from its box)" in told
    assert re.search(r"warning: 1 of \d+ masks are far larger or smaller than their box", told)


def test_a_coco_file_is_imported_cleaned(arguments, capsys):
    command = [
        "data",
        "import",
        arguments[1],
        "--from",
        "coco",
        "--output",
        "boxes",
        "--images",
        arguments[3],
    ]
    assert run([*command, "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["val"]
    assert run(["data", "check", written["annotations"], "--images", written["images"]]) == 0
    assert run(command) == 2
    assert "is there already" in capsys.readouterr().err

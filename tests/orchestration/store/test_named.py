"""Commands that take files of a store by their address."""

import json
import tarfile
from pathlib import Path

import pytest

from orchestration.cli.app import run
from orchestration.store import data as store_data
from orchestration.store.client import Store
from orchestration.store.places import storage_folder


@pytest.fixture
def photos(machines, trained_run, tmp_path, monkeypatch):
    """Address of images and masks of a store; nothing of them is on this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store_data, "SPARE_BYTES", 0)
    with machines.on("one"):
        place = f"{machines.storage}/photos"
        prefix, bucket = place.removeprefix("s3://bucket/"), Store("s3://bucket")
        for path in trained_run.val.images.iterdir():
            bucket.upload(f"{prefix}/images/{path.name}", path)
        bucket.upload(f"{prefix}/masks.json", trained_run.val.annotations)
        machines.store.requests.clear()
        yield place


def test_a_run_is_evaluated_on_data_of_a_store(photos, trained_run, capsys):
    data = ["--data", f"{photos}/masks.json", "--images", f"{photos}/images"]
    assert run(["eval", str(trained_run.checkpoint), *data, "--json"]) == 0
    stored = json.loads(capsys.readouterr().out)
    assert stored["data"] == f"{photos}/masks.json"
    here = trained_run.val
    data = ["--data", str(here.annotations), "--images", str(here.images)]
    assert run(["eval", str(trained_run.checkpoint), *data, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == stored["metrics"]


def test_boxes_of_a_store_are_labelled(photos, trained_run, capsys):
    data = [f"{photos}/masks.json", "--images", f"{photos}/images"]
    assert run(["label", *data, "--source", "box", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["images"] == len(list(trained_run.val.images.iterdir()))
    assert Path("labels/masks/labels.coco.json").is_file()


def test_a_picture_and_all_below_a_prefix_are_predicted(photos, trained_run, machines, capsys):
    names = sorted(path.name for path in trained_run.val.images.iterdir())

    def predict(source: str) -> list[str]:
        command = ["predict", str(trained_run.checkpoint), source, "--no-overlays", "--json"]
        assert run(command) == 0
        images = json.loads(capsys.readouterr().out)["images"]
        return sorted(Path(image["file_name"]).name for image in images)

    assert predict(f"{photos}/images/{names[0]}") == names[:1]
    assert len([each for each in machines.store.requests if each.method == "GET"]) == 1
    assert predict(f"{photos}/") == names


def test_pictures_in_tar_files_are_predicted_too(photos, trained_run, machines, tmp_path, capsys):
    names = sorted(path.name for path in trained_run.val.images.iterdir())
    packed = tmp_path / "packed.tar"
    with tarfile.open(packed, "w") as tar:
        for name in names[:2]:
            tar.add(trained_run.val.images / name, f"more/again-{name}")
        tar.add(trained_run.val.annotations, "boxes.json")
    Store("s3://bucket").upload(f"{photos.removeprefix('s3://bucket/')}/images/packed.tar", packed)

    def predict(source: str) -> list[str]:
        command = ["predict", str(trained_run.checkpoint), source, "--no-overlays", "--json"]
        assert run(command) == 0
        images = json.loads(capsys.readouterr().out)["images"]
        return sorted(Path(image["file_name"]).name for image in images)

    again = [f"again-{name}" for name in names[:2]]
    assert predict(f"{photos}/images") == sorted([*names, *again])
    assert predict(f"{photos}/images/packed.tar") == again
    # one that has gone here is unpacked once more
    next(storage_folder(f"{photos}/images").glob("more/again-*")).unlink()
    assert predict(f"{photos}/images/packed.tar") == again


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["label", "{}/masks.json"], 2, "say where its images are, with --images"),
        (["label", "{}/voc", "--images", "{}"], 2, "a COCO file ends in .json"),
        (["label", "{}/other.json", "--images", "{}"], 3, "such as other.json, are not in s3://"),
        (["label", "{}/masks.json", "--images", "{}"], 3, "--images: "),
        (["predict", "RUN", "{}/none"], 2, "no such object, and no image below it"),
        (["data", "split", "{}/masks.json", "--output", "x"], 2, "is in an object store; copy"),
        (["data", "import", "{}/a", "--from", "voc", "--output", "x"], 2, "is in an object store"),
        (["predict", "RUN", "s3://../x"], 2, "is no address that data can have"),
    ],
)
def test_missing_files_are_named_by_their_address(
    photos, trained_run, arguments, code, told, capsys
):
    filled = [each.replace("{}", photos) for each in arguments]
    filled = [str(trained_run.checkpoint) if each == "RUN" else each for each in filled]
    assert run([*filled, *(["--source", "box"] if filled[0] == "label" else [])]) == code
    assert told in capsys.readouterr().err

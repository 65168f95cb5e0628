"""A cleaned copy has no faults, and what was sound is in it unchanged."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from boxseg.coco import fix
from boxseg.coco.checks import check_source
from boxseg.coco.fix import write_fixed
from boxseg.config.method import CocoSource
from boxseg.errors import DataError


def fixed(source, output):
    done = write_fixed(source, output)
    copy = CocoSource(images=output / "images", annotations=output / "annotations.json")
    assert check_source(copy, training=True, decode=True) == []
    return done, json.loads(copy.annotations.read_text())


def test_a_sound_source_stays_as_it_is(content, write_source, tmp_path):
    done, copy = fixed(write_source(content), tmp_path / "out")
    assert not done
    assert copy == content
    assert (tmp_path / "out/images/a.png").samefile(tmp_path / "images/a.png")


def test_every_kind_of_fault_is_fixed_in_the_copy_and_the_original_is_unchanged(
    content, write_source, tmp_path
):
    box = {"image_id": 10, "category_id": 3, "iscrowd": 0}
    content["annotations"] += [
        box | {"id": 1, "bbox": [1, 1, 5, 5]},  # another box of a used id
        dict(content["annotations"][1]),  # the same annotation again
        box | {"id": 11, "bbox": [50, 30, 30, 30]},
        box | {"id": 12, "bbox": [5, 5, 0, 5]},
        box | {"id": 13, "bbox": [float("nan"), 5, 5, 5]},
        box | {"id": 14, "bbox": [5, 5, 5, 5], "category_id": 99},
        box | {"id": 15, "bbox": [5, 5, 5, 5], "image_id": 99},
        box | {"id": 16, "bbox": "everywhere"},
        {"nothing": 1},
    ]
    content["images"] += [
        {"id": 30, "file_name": "gone.png", "width": 9, "height": 9},
        {"id": 40, "file_name": "../a.png", "width": 60, "height": 40},
        {"id": 50, "file_name": "other.png", "width": 9, "height": 9},
    ]
    source = write_source(content)
    (tmp_path / "images/gone.png").unlink()
    Image.new("RGB", (8, 8)).save(tmp_path / "images/other.png")
    before = source.annotations.read_bytes()
    done, copy = fixed(source, tmp_path / "out")
    assert source.annotations.read_bytes() == before
    assert [each["id"] for each in copy["images"]] == [10, 20]
    assert [each["id"] for each in copy["annotations"]] == [1, 2, 3, 4, 11, 16]
    assert copy["annotations"][4]["bbox"] == [50, 30, 10, 10]
    assert copy["annotations"][5]["bbox"] == [1, 1, 5, 5]
    assert sum(done.values()) == 12


def test_an_image_named_like_the_folder_of_another_is_left_alone(content, write_source, tmp_path):
    source = write_source(content)
    with Image.open(tmp_path / "images/a.png") as picture:
        picture.rotate(180).save(tmp_path / "images/deep", "png")
    text = json.loads(source.annotations.read_text())
    size = {"width": text["images"][0]["width"], "height": text["images"][0]["height"]}
    text["images"] += [
        {"id": 90, "file_name": "deep", **size},
        {"id": 91, "file_name": "deep/a.png", **size},
    ]
    source.annotations.write_text(json.dumps(text))
    _, copy = fixed(source, tmp_path / "out")
    assert [each["id"] for each in copy["images"]] == [
        *(each["id"] for each in content["images"]),
        90,
    ]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "MPO", "WEBP"])
@pytest.mark.parametrize("name", ["a", "a.jpg"])
def test_an_image_listed_as_exif_shows_it_is_stored_rotated_in_its_own_format(
    content, write_source, tmp_path, form, name
):
    content["images"][0]["file_name"] = name
    (tmp_path / "images").mkdir()
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (60, 40), dtype=np.uint8)
    ).convert("RGB")
    exif = picture.getexif()
    exif[0x0112] = 6
    path, copied = tmp_path / "images" / name, tmp_path / "out/images" / name
    frames = {"save_all": True, "append_images": [picture]} if form == "MPO" else {}
    picture.save(path, format=form, quality=98, exif=exif, **frames)
    done, _ = fixed(write_source(content), tmp_path / "out")
    assert sum(done.values()) == 1
    with Image.open(path) as before, Image.open(copied) as after:
        assert after.size == (60, 40)
        # the first picture alone
        assert (before.format, after.format) == (form, "JPEG" if form == "MPO" else form)
        turned = np.asarray(before.convert("RGB").transpose(Image.Transpose.ROTATE_270)).astype(
            int
        )
        assert np.abs(np.asarray(after.convert("RGB")) - turned).mean() < 3


@pytest.mark.parametrize("text", ["", "[]", '{"images": []}'])
def test_only_coco_files_can_be_cleaned(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json"):
        write_fixed(CocoSource(images=tmp_path, annotations=tmp_path / "a.json"), tmp_path / "out")


def test_a_folder_that_holds_something_is_left_alone(content, write_source, tmp_path):
    with pytest.raises(DataError, match="not empty"):
        write_fixed(write_source(content), tmp_path)


def test_of_two_commands_into_one_folder_the_second_is_refused(
    content, write_source, tmp_path, monkeypatch
):
    source, output = write_source(content), tmp_path / "out"
    image_fault = fix.image_fault

    def look_while_another_begins(*arguments, **options):
        with pytest.raises(DataError, match="not empty"):
            write_fixed(source, output)
        return image_fault(*arguments, **options)

    monkeypatch.setattr(fix, "image_fault", look_while_another_begins)
    assert not write_fixed(source, output)
    assert json.loads((output / "annotations.json").read_text()) == content


def test_names_with_characters_of_urls_are_taken_as_they_are_where_such_files_exist(
    content, write_source, tmp_path
):
    content["images"][0]["file_name"] = "a b.png"
    content["images"][1]["file_name"] = "a%20b.png"
    changes, copy = fixed(write_source(content), tmp_path / "out")
    assert changes == {}
    assert [image["file_name"] for image in copy["images"]] == ["a b.png", "a%20b.png"]


def test_a_name_with_decomposed_accents_is_matched_to_its_file(content, write_source, tmp_path):
    content["images"][0]["file_name"] = "d\u00e9cran.png"
    source = write_source(content)
    (source.images / "d\u00e9cran.png").rename(source.images / "de\u0301cran.png")
    (fault,) = check_source(source, training=True)
    assert "let `boxseg data check --fix` do it" in fault.way_out
    changes, copy = fixed(source, tmp_path / "out")
    assert changes == {"file names written as on the disk": 1}
    assert copy["images"][0]["file_name"] == "de\u0301cran.png"


def test_images_that_lvis_names_by_address_get_the_names_of_their_files(
    content, write_source, tmp_path
):
    source = write_source(content)
    name = content["images"][0].pop("file_name")
    content["images"][0]["coco_url"] = f"http://images.cocodataset.org/train2017/{name}"
    source.annotations.write_text(json.dumps(content))
    changes, copy = fixed(source, tmp_path / "out")
    assert changes == {"file names written as on the disk": 1}
    assert copy["images"][0]["file_name"] == name
    assert len(copy["annotations"]) == len(content["annotations"])


def test_run_lengths_written_as_python_bytes_are_read(content, write_source, tmp_path):
    mask = np.zeros((40, 60), dtype=np.uint8, order="F")
    mask[10:30, 5:50] = 1
    encoded = coco_mask.encode(mask)
    entry = content["annotations"][0]
    entry |= {"image_id": 10, "bbox": [5, 10, 45, 20], "area": 900}
    entry["segmentation"] = {"size": [40, 60], "counts": str(encoded["counts"])}
    assert entry["segmentation"]["counts"].startswith("b'")
    content["annotations"] = [entry]
    changes, copy = fixed(write_source(content), tmp_path / "out")
    assert changes == {"run lengths without Python's sign of bytes": 1}
    assert copy["annotations"][0]["segmentation"]["counts"] == encoded["counts"].decode()

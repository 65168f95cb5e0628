"""The review page, with a browser where there is one, and what becomes of its decisions."""

import json
import shutil
import struct
import zlib

import cv2
import numpy as np
import pytest
from browser import open_browser
from PIL import Image

from boxseg.config.method import CocoSource
from boxseg.data.dataset import CocoBoxes
from boxseg.errors import ConfigError, DataError
from boxseg.label import sources as label_sources
from boxseg.label.dataset import label_images, write_labels
from boxseg.label.journal import Journal
from boxseg.label.review import apply_decisions, stamp_of, write_review
from boxseg.label.review_pictures import find_outlines, find_whole, write_crop
from boxseg.mask_parts import MaskPart

DATA = '<script id="data" type="application/json">'


@pytest.fixture(scope="module")
def data(trained_run):
    return CocoBoxes(trained_run.val, train=False)


@pytest.fixture
def labels(data, tmp_path):
    """A folder with labels, the masks being the boxes."""
    journal = Journal(tmp_path / "labels", {})
    list(label_images(data, label_sources.from_boxes, journal))
    write_labels(data, journal, tmp_path / "labels")
    return tmp_path / "labels"


def read(path):
    return json.loads(path.read_text())


def page_data(labels):
    text = (labels / "review/index.html").read_text()
    return json.loads(text.split(DATA)[1].split("</script>")[0])


def test_the_page_has_a_crop_for_every_mask_doubtful_ones_first(data, labels):
    content = read(labels / "labels.coco.json")
    for annotation in content["annotations"]:
        annotation["quality"] = annotation["id"] % 7 / 10
    content["categories"][0]["name"] = "</script><b>bad</b>"
    (labels / "labels.coco.json").write_text(json.dumps(content))
    list(write_review(labels, data.source.images))
    cards = page_data(labels)["cards"]
    assert [card["quality"] for card in cards] == sorted(card["quality"] for card in cards)
    assert {card["id"] for card in cards} == {
        str(annotation["id"]) for annotation in content["annotations"]
    }
    assert all((labels / f"review/crops/{card['id']}.jpg").stat().st_size for card in cards)


@pytest.mark.parametrize("width", [1e9, 1e300, float("inf")])
def test_the_crop_of_a_box_that_ends_far_outside_its_picture_shows_only_the_inside(
    tmp_path, width
):
    picture = np.zeros((60, 80, 3), np.uint8)
    place = write_crop(picture, [40.0, 20.0, width, 20.0], tmp_path / "crop.jpg")
    assert place == write_crop(picture, [40.0, 20.0, 40.0, 20.0], tmp_path / "crop.jpg")


def test_images_outside_of_the_folder_are_not_shown(data, labels):
    content = read(labels / "labels.coco.json")
    (labels / "images").mkdir()
    for image in content["images"]:
        shutil.copy(data.source.images / image["file_name"], labels)
        image["file_name"] = f"../{image['file_name']}"
    (labels / "labels.coco.json").write_text(json.dumps(content))
    list(write_review(labels, labels / "images"))
    assert page_data(labels)["cards"] == []
    assert not list((labels / "review/crops").iterdir())


def test_images_of_another_size_than_listed_are_left_out_of_the_page_and_of_yolo(
    data, tmp_path, caplog
):
    content = read(data.source.annotations)
    turned = content["images"][0]
    turned["height"] += 8  # as that of a picture that viewers turn by EXIF
    (tmp_path / "bent.json").write_text(json.dumps(content))
    bent = CocoBoxes(
        CocoSource(images=data.source.images, annotations=tmp_path / "bent.json"), train=False
    )
    labels, journal = tmp_path / "labels", Journal(tmp_path / "labels", {})
    list(label_images(bent, label_sources.from_boxes, journal))
    write_labels(bent, journal, labels)
    list(write_review(labels, data.source.images))
    names = {image["file_name"] for image in content["images"]} - {turned["file_name"]}
    assert set(page_data(labels)["images"]) <= names
    assert {path.name for path in (labels / "yolo/images").iterdir()} == names
    assert f"left out of YOLO's files: 1, such as {turned['file_name']}, which" in caplog.text


def test_decisions_without_labels_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"labels\.coco\.json: does not exist"):
        apply_decisions(tmp_path, tmp_path / "decisions.json", tmp_path)


def test_rejected_masks_are_removed_and_accepted_ones_are_marked(data, labels, tmp_path):
    before = read(labels / "labels.coco.json")["annotations"]
    decided = {before[0]["id"]: "reject", before[1]["id"]: "accept"}
    # Without a stamp they could be about any labels.
    (tmp_path / "decisions.json").write_text(json.dumps(decided))
    with pytest.raises(DataError, match=rf"which labels .* write .*{stamp_of(labels)}"):
        apply_decisions(labels, tmp_path / "decisions.json", data.source.images)
    stamped = {"labels": stamp_of(labels), "decisions": decided}
    (tmp_path / "decisions.json").write_text(json.dumps(stamped))
    counts = apply_decisions(labels, tmp_path / "decisions.json", data.source.images)
    assert counts == {"accept": 1, "reject": 1, "open": len(before) - 2}
    after = read(labels / "labels.reviewed.json")["annotations"]
    assert "segmentation" not in after[0]
    assert after[0]["bbox"] == before[0]["bbox"]
    assert after[0]["area"] == after[0]["bbox"][2] * after[0]["bbox"][3]
    assert after[1] == before[1] | {"review": "accept"}
    assert after[2:] == before[2:]
    assert count_lines(labels / "yolo/labels") == len(before) - 1


def count_lines(folder):
    return sum(len(path.read_text().splitlines()) for path in folder.iterdir())


def test_decisions_that_a_second_file_does_not_repeat_are_named(data, labels, tmp_path, caplog):
    first, second, *_ = (entry["id"] for entry in read(labels / "labels.coco.json")["annotations"])
    for decided in ({first: "reject"}, {first: "accept", second: "reject"}, {second: "reject"}):
        assert not caplog.text
        stamped = {"labels": stamp_of(labels), "decisions": decided}
        (tmp_path / "decisions.json").write_text(json.dumps(stamped))
        apply_decisions(labels, tmp_path / "decisions.json", data.source.images)
    assert (
        f"had 1 decisions that are not among the new ones, such as that on annotation {first}"
        in caplog.text
    )


def test_labelling_again_keeps_what_was_rejected_out_of_yolo(data, labels, tmp_path, caplog):
    before = read(labels / "labels.coco.json")["annotations"]
    stamped = {"labels": stamp_of(labels), "decisions": {before[0]["id"]: "reject"}}
    (tmp_path / "decisions.json").write_text(json.dumps(stamped))
    apply_decisions(labels, tmp_path / "decisions.json", data.source.images)
    journal = Journal(labels, {})
    write_labels(data, journal, labels)
    assert count_lines(labels / "yolo/labels") == len(before) - 1
    next(iter(journal.done.values())).labels[0]["quality"] = 0.5
    write_labels(data, journal, labels)
    assert "is of earlier labels, and yolo/ has all masks again" in caplog.text
    (labels / "labels.coco.json").unlink()
    write_labels(data, journal, labels)
    assert count_lines(labels / "yolo/labels") == len(before)


def test_after_a_kill_during_writing_yolo_has_the_new_labels(data, labels, tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    before = read(labels / "labels.coco.json")["annotations"]
    stamped = {"labels": stamp_of(labels), "decisions": {before[0]["id"]: "reject"}}
    (tmp_path / "decisions.json").write_text(json.dumps(stamped))
    apply_decisions(labels, tmp_path / "decisions.json", data.source.images)
    journal = Journal(labels, {})
    next(iter(journal.done.values())).labels[0]["quality"] = 0.5
    with monkeypatch.context() as patch:
        patch.setattr("boxseg.label.dataset.write_yolo_beside", die)
        with pytest.raises(KeyboardInterrupt):
            write_labels(data, journal, labels)
    write_labels(data, journal, labels)
    assert count_lines(labels / "yolo/labels") == len(before)


def test_decisions_are_not_applied_without_the_images(labels, tmp_path):
    decisions = {"labels": stamp_of(labels), "decisions": {}}
    (tmp_path / "decisions.json").write_text(json.dumps(decisions))
    with pytest.raises(ConfigError, match="name their folder with --images"):
        apply_decisions(labels, tmp_path / "decisions.json", tmp_path)


PRESS = """
window.Blob = class { constructor(parts) { window.saved = parts[0]; } };
URL.createObjectURL = () => "#";
KEYS.forEach((key) => document.dispatchEvent(new KeyboardEvent("keydown", {key})));
"""
PRESS_SLOWLY = """(async () => {
  const times = [];
  for (let number = 0; number < 60; number++) {
    const start = performance.now();
    document.dispatchEvent(new KeyboardEvent("keydown", {key: "a"}));
    times.push(performance.now() - start);
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
  }
  return times.sort((a, b) => a - b)[30];
})()"""


@pytest.mark.slow
def test_keys_decide_in_a_browser_and_the_download_is_applied(data, labels, tmp_path):
    content = read(labels / "labels.coco.json")
    for number, annotation in enumerate(content["annotations"]):
        annotation["id"] = 2**53 + number  # JavaScript has no number 2**53 + 1
    (labels / "labels.coco.json").write_text(json.dumps(content))
    list(write_review(labels, data.source.images))
    ids = [card["id"] for card in page_data(labels)["cards"]]
    keys = ["r", "a", "r", "ArrowLeft", "u", "ArrowRight", "a", "d"]
    with open_browser(tmp_path / "profile") as browser:
        browser.open((labels / "review/index.html").as_uri(), width=1280)
        browser.evaluate(PRESS.replace("KEYS", json.dumps(keys)))
        decisions = json.loads(browser.evaluate("window.saved"))
        assert not browser.errors
    assert decisions["decisions"] == {ids[0]: "reject", ids[1]: "accept", ids[3]: "accept"}
    (tmp_path / "decisions.json").write_text(json.dumps(decisions))
    assert apply_decisions(labels, tmp_path / "decisions.json", data.source.images)["reject"] == 1


CLICK = "document.querySelector('%s').click()"


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_buttons_do_what_keys_do_and_everything_a_filter_shows_can_be_accepted(
    data, labels, tmp_path, width
):
    content = read(labels / "labels.coco.json")
    for annotation in content["annotations"]:
        annotation["quality"] = annotation["id"] % 7 / 10
    (labels / "labels.coco.json").write_text(json.dumps(content))
    list(write_review(labels, data.source.images))
    cards = page_data(labels)["cards"]
    with open_browser(tmp_path / "profile") as browser:
        browser.open((labels / "review/index.html").as_uri(), width=width)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        browser.screenshot(tmp_path / f"review-{width}.png")
        for key in ("r", "a", "ArrowLeft", "u"):
            browser.evaluate(CLICK % f"nav [data-key={key}]")
        assert browser.evaluate("decisions") == {cards[0]["id"]: "reject"}
        browser.evaluate("document.getElementById('low').value = 0.3; filter()")
        good = {card["id"] for card in cards if card["quality"] >= 0.3}
        browser.evaluate(CLICK % "#all")
        assert browser.evaluate("decisions") == dict.fromkeys(good, "accept") | {
            cards[0]["id"]: "reject"
        }
        browser.evaluate(CLICK % "nav [data-key=r]")
        rejected = {cards[0]["id"]: "reject", cards[-len(good)]["id"]: "reject"}
        browser.evaluate(CLICK % "#back")  # what was rejected after it was accepted stays so
        assert browser.evaluate("decisions") == rejected
        browser.evaluate(CLICK % "nav [data-key=z]")
        browser.evaluate(CLICK % "dialog [data-key=w]")
        assert (
            browser.evaluate("document.querySelector('dialog > svg').getAttribute('viewBox')")
            == "0 0 64 64"
        )
        # where it cannot be loaded, a crop is shown
        browser.evaluate("new Promise((done) => setTimeout(done, 500))")
        assert browser.evaluate(
            "document.querySelector('dialog image').getAttribute('href')"
        ).endswith(".png")
        browser.evaluate(CLICK % "dialog [data-key=o]")
        fill = "getComputedStyle(document.querySelector('dialog path')).fill"
        assert browser.evaluate(fill) == "none"
        browser.screenshot(tmp_path / f"review-whole-{width}.png")
        assert not browser.errors


@pytest.mark.slow
def test_decisions_of_two_tabs_are_kept_together(data, labels, tmp_path):
    list(write_review(labels, data.source.images))
    first, second, *_ = (card["id"] for card in page_data(labels)["cards"])
    # As a second tab with this page does it: what it stores, and what Chromium then tells this one. With a second tab
    # itself, Chromium under load sometimes tells it nothing.
    stores = f"localStorage.setItem(store, {json.dumps(json.dumps({second: 'accept'}))})"
    tells = "new StorageEvent('storage', {key: store, newValue: localStorage.getItem(store)})"
    with open_browser(tmp_path / "profile") as browser:
        browser.open((labels / "review/index.html").as_uri(), width=1280)
        browser.evaluate(f"{stores}; window.dispatchEvent({tells})")
        assert browser.evaluate("document.querySelectorAll('figure.accept').length") == 1
        browser.evaluate("decide('reject')")
        stored = browser.evaluate("JSON.parse(localStorage.getItem(store))")
        assert stored == {first: "reject", second: "accept"}


@pytest.mark.slow
def test_a_thousand_masks_stay_smooth(data, labels, tmp_path):
    list(write_review(labels, data.source.images))
    page = labels / "review/index.html"
    cards = page_data(labels)["cards"]
    many = [{**cards[number % len(cards)], "id": str(number)} for number in range(1000)]
    picture = (page.parent / f"crops/{cards[0]['id']}.jpg").read_bytes()
    for number in range(1000):
        (page.parent / f"crops/{number}.jpg").write_bytes(picture)
    before, rest = page.read_text().split('<script id="data" type="application/json">')
    content = json.dumps({"stamp": "many", "cards": many})
    page.write_text(
        f'{before}<script id="data" type="application/json">{content}</script>{rest.split("</script>", 1)[1]}'
    )
    with open_browser(tmp_path / "profile") as browser:
        browser.open(page.as_uri(), width=1280)
        assert browser.evaluate("document.querySelectorAll('figure').length") == 1000
        # ms, the median; one frame on a machine that does nothing else
        assert browser.evaluate(PRESS_SLOWLY) < 50
        assert browser.evaluate("document.querySelectorAll('figure.accept').length") == 60
        assert len(browser.requests) < 500  # pictures are loaded as they come into view
        assert not browser.errors


def test_decisions_of_the_page_are_about_its_labels_alone(data, labels, tmp_path):
    list(write_review(labels, data.source.images))
    first = page_data(labels)["cards"][0]["id"]
    downloaded = {"labels": page_data(labels)["stamp"], "decisions": {first: "reject"}}
    (tmp_path / "decisions.json").write_text(json.dumps(downloaded))
    assert apply_decisions(labels, tmp_path / "decisions.json", data.source.images)["reject"] == 1
    content = read(labels / "labels.coco.json")
    content["annotations"][0]["quality"] = 0.5
    (labels / "labels.coco.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"decisions\.json: holds decisions about other labels"):
        apply_decisions(labels, tmp_path / "decisions.json", data.source.images)


def test_outlines_enclose_the_pixels_of_a_mask_and_leave_out_its_holes():
    pixels = np.zeros((90, 120), dtype=np.bool_)
    pixels[10:80, 20:110] = True
    pixels[30:50, 40:60] = False
    rows, columns = np.nonzero(pixels)
    part = MaskPart(pixels[10:80, 20:110], top=int(rows[0]), left=int(columns.min()))
    drawn = np.zeros(pixels.shape, dtype=np.uint8)
    outlines = find_outlines(part)
    cv2.fillPoly(
        drawn, [np.array(each).reshape(-1, 2).round().astype(np.int32) for each in outlines], 1
    )
    both, either = (drawn.astype(bool) & pixels).sum(), (drawn.astype(bool) | pixels).sum()
    assert both / either > 0.95
    assert not drawn[40, 50]
    assert sum(map(len, outlines)) < 40


def test_a_picture_that_browsers_would_turn_is_shown_as_it_is_stored(tmp_path):
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    (tmp_path / "review").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "a b.png")
    Image.fromarray(pixels).save(tmp_path / "old.tif")
    urls = [
        find_whole(tmp_path / name, pixels, tmp_path / "review", f"images/{name}.jpg")
        for name in ("a b.png", "turned.jpg", "old.tif")
    ]
    assert urls == ["../a%20b.png", "images/turned.jpg.jpg", "images/old.tif.jpg"]
    for url in urls[1:]:
        copy = Image.open(tmp_path / "review" / url)
        assert copy.size == (30, 20)
        assert copy.getexif().get(0x0112, 1) == 1


def test_a_picture_that_browsers_would_show_dark_or_moving_is_shown_as_it_is_read(tmp_path):
    pixels = np.full((20, 30, 3), 200, dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "grey.png"), pixels[..., 0].astype(np.uint16) * 16)
    cv2.imwrite(str(tmp_path / "rgb.png"), pixels.astype(np.uint16) * 16)
    frames = [Image.fromarray(pixels), Image.fromarray(pixels // 2)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    for path in sorted(tmp_path.glob("*.*")):
        assert find_whole(path, pixels, tmp_path / "review", f"{path.stem}.jpg").endswith(".jpg")
        copy = Image.open(tmp_path / f"review/{path.stem}.jpg")
        assert copy.getpixel((9, 9)) == (200, 200, 200)


def test_a_crowd_cannot_be_decided_about(data, labels, tmp_path):
    content = read(labels / "labels.coco.json")
    content["annotations"].append({**content["annotations"][0], "id": 777, "iscrowd": 1})
    del content["annotations"][-1]["quality"], content["annotations"][-1]["segmentation"]
    (labels / "labels.coco.json").write_text(json.dumps(content))
    stamped = {"labels": stamp_of(labels), "decisions": {"777": "reject"}}
    (tmp_path / "decisions.json").write_text(json.dumps(stamped))
    with pytest.raises(DataError, match="annotation 777"):
        apply_decisions(labels, tmp_path / "decisions.json", data.source.images)


@pytest.mark.parametrize(
    "decisions", ["", "[]", '{"x": "accept"}', '{"999999": "accept"}', '{"1": "perhaps"}']
)
def test_other_files_are_refused_as_decisions(data, labels, tmp_path, decisions):
    stamped = f'{{"labels": "{stamp_of(labels)}", "decisions": {decisions}}}'
    (tmp_path / "decisions.json").write_text(stamped)
    with pytest.raises(DataError, match="decisions are as the review page downloads them"):
        apply_decisions(labels, tmp_path / "decisions.json", data.source.images)


def test_a_picture_whose_description_is_damaged_is_copied(tmp_path):
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    (tmp_path / "review").mkdir()
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    whole, exif = path.read_bytes(), b"eXIfno TIFF file"
    place = whole.index(b"IDAT") - 4
    chunk = struct.pack(">I", len(exif) - 4) + exif + struct.pack(">I", zlib.crc32(exif))
    path.write_bytes(whole[:place] + chunk + whole[place:])
    assert find_whole(path, pixels, tmp_path / "review", "images/1.jpg") == "images/1.jpg"
    assert Image.open(tmp_path / "review/images/1.jpg").size == (30, 20)

"""The review page, with a browser where there is one, and what becomes of its decisions."""

import json
import shutil

import pytest
from browser import open_browser

from boxseg import label_sources
from boxseg.data.coco import CocoBoxes
from boxseg.errors import DataError
from boxseg.label_compare import compare_sources
from boxseg.label_data import Journal, label_images, write_labels
from boxseg.label_review import apply_decisions, write_review

DATA = '<script id="data" type="application/json">'


@pytest.fixture(scope="module")
def data(trained_run):
    return CocoBoxes(trained_run.val, train=False)


@pytest.fixture
def labels(data, tmp_path):
    """A folder with labels, the masks being the boxes."""
    journal = Journal(tmp_path / "labels", {})
    list(label_images(data, label_sources.one_by_one(label_sources.from_boxes), journal))
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
    assert {card["id"] for card in cards} == {annotation["id"] for annotation in content["annotations"]}
    assert all((labels / f"review/crops/{card['id']}.jpg").stat().st_size for card in cards)


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


def test_decisions_without_labels_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"labels\.coco\.json: does not exist"):
        apply_decisions(tmp_path, tmp_path / "decisions.json", tmp_path)


def test_rejected_masks_go_and_accepted_ones_are_marked(data, labels, tmp_path):
    before = read(labels / "labels.coco.json")["annotations"]
    (tmp_path / "decisions.json").write_text(json.dumps({before[0]["id"]: "reject", before[1]["id"]: "accept"}))
    counts = apply_decisions(labels, tmp_path / "decisions.json", data.source.images)
    assert counts == {"accept": 1, "reject": 1, "open": len(before) - 2}
    after = read(labels / "labels.reviewed.json")["annotations"]
    assert "segmentation" not in after[0]
    assert after[0]["bbox"] == before[0]["bbox"]
    assert after[1] == before[1] | {"review": "accept"}
    assert after[2:] == before[2:]
    lines = sum(len(path.read_text().splitlines()) for path in (labels / "yolo/labels").iterdir())
    assert lines == len(before) - 1


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
    list(write_review(labels, data.source.images))
    ids = [str(card["id"]) for card in page_data(labels)["cards"]]
    keys = ["r", "a", "r", "ArrowLeft", "u", "ArrowRight", "a", "d"]
    with open_browser(tmp_path / "profile") as browser:
        browser.open((labels / "review/index.html").as_uri(), width=1280)
        browser.evaluate(PRESS.replace("KEYS", json.dumps(keys)))
        decisions = json.loads(browser.evaluate("window.saved"))
        assert not browser.errors
    assert decisions == {ids[0]: "reject", ids[1]: "accept", ids[3]: "accept"}
    (tmp_path / "decisions.json").write_text(json.dumps(decisions))
    assert apply_decisions(labels, tmp_path / "decisions.json", data.source.images)["reject"] == 1


@pytest.mark.slow
def test_a_thousand_masks_stay_smooth(data, labels, tmp_path):
    list(write_review(labels, data.source.images))
    page = labels / "review/index.html"
    cards = page_data(labels)["cards"]
    many = [{**cards[number % len(cards)], "id": number} for number in range(1000)]
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
        assert browser.evaluate(PRESS_SLOWLY) < 50  # ms, the median; one frame on a machine that does nothing else
        assert browser.evaluate("document.querySelectorAll('figure.accept').length") == 60
        assert len(browser.requests) < 500  # pictures are loaded as they come into view
        assert not browser.errors


def test_a_crowd_cannot_be_decided_about(data, labels, tmp_path):
    content = read(labels / "labels.coco.json")
    content["annotations"].append({**content["annotations"][0], "id": 777, "iscrowd": 1})
    del content["annotations"][-1]["quality"], content["annotations"][-1]["segmentation"]
    (labels / "labels.coco.json").write_text(json.dumps(content))
    (tmp_path / "decisions.json").write_text('{"777": "reject"}')
    with pytest.raises(DataError, match="annotation 777"):
        apply_decisions(labels, tmp_path / "decisions.json", data.source.images)


@pytest.mark.parametrize("decisions", ["", "[]", '{"x": "accept"}', '{"999999": "accept"}', '{"1": "perhaps"}'])
def test_other_files_are_no_decisions(data, labels, tmp_path, decisions):
    (tmp_path / "decisions.json").write_text(decisions)
    with pytest.raises(DataError, match="decisions are one object"):
        apply_decisions(labels, tmp_path / "decisions.json", data.source.images)


def test_sources_are_compared_with_one_another_and_with_the_drawn_masks(data):
    drawn = label_sources.one_by_one(label_sources.from_file(data.source.annotations, data))
    sources = {"box": label_sources.one_by_one(label_sources.from_boxes), "drawn": drawn}
    compared = compare_sources(data, sources, range(len(data)))
    agreement, against = compared["agreement"], compared["drawn"]
    assert agreement["box"]["box"] == agreement["drawn"]["drawn"] == pytest.approx(1)
    assert agreement["box"]["drawn"] == pytest.approx(against["box"]["iou"])
    assert against["drawn"]["iou"] == pytest.approx(1)
    assert 0.3 < against["box"]["iou"] < 1

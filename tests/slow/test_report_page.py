"""The report in a real browser: whole, quiet and readable on a desk and on a telephone."""

import json
import time
from pathlib import Path

import pytest
import synthetic
from browser import open_browser
from PIL import Image, ImageDraw

from orchestration.report.page import write_report
from orchestration.report.sweep_record import read_sweep

pytestmark = pytest.mark.slow

UNLOADED = "[...document.images].filter(each => !each.complete || each.naturalWidth === 0).length"
SMALLEST_TEXT = (
    "Math.min(...[...document.querySelectorAll('p, td, th, h1, pre')]"
    ".map(each => parseFloat(getComputedStyle(each).fontSize)))"
)
NARROWEST_PICTURE = (
    "Math.min(...[...document.images]"
    ".map(each => each.getBoundingClientRect().width / each.naturalWidth))"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A report with everything in it: seeds, stops, a failure, importance, pictures."""
    folder = synthetic.write_sweep(tmp_path_factory.mktemp("sweep"), settings=25, seeds=2)
    for row in read_sweep(folder).table.rows:
        Path(row.folder, "samples").mkdir()
        picture = Image.new("RGB", (916, 240), "white")
        ImageDraw.Draw(picture).ellipse((20, 20, 200, 200), fill="steelblue")
        picture.save(Path(row.folder, "samples") / f"step-{row.step:08d}.png")
    return write_report(folder)


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_shows_everything_and_loads_nothing_else(page, width, tmp_path, screenshots):
    with open_browser(tmp_path / "profile") as browser:
        browser.open(page.as_uri(), width=width)
        assert browser.errors == []
        assert {url for url in browser.requests if not url.startswith("data:")} == {page.as_uri()}
        # three charts, masks of two trials
        assert browser.evaluate("document.images.length") == 5
        assert browser.evaluate(UNLOADED) == 0
        assert browser.evaluate("document.documentElement.scrollWidth") <= width, (
            "only tables and pictures may scroll"
        )
        assert browser.evaluate(SMALLEST_TEXT) >= 13
        assert browser.evaluate(NARROWEST_PICTURE) >= 0.3, "text within the pictures stays legible"
        shot = browser.screenshot(screenshots / f"report-{width}.png", whole=True)
    with Image.open(shot) as picture:
        assert picture.width == width
        assert picture.height > 2000
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 500, (
            "the charts are in the picture"
        )


TEXTS = "[...document.querySelectorAll('{}')].map(each => each.textContent.trim())"


def test_trials_can_be_sorted_filtered_and_compared(page, tmp_path, screenshots):
    table = read_sweep(page.parent.parent).table
    with open_browser(tmp_path / "profile") as browser:
        browser.open(page.as_uri(), width=1280)
        rows = (
            "[...document.querySelector('main table').tBodies[0].rows]"
            ".map(row => row.children[1].textContent.trim())"
        )
        browser.evaluate("document.querySelector('th:nth-child(2) button').click()")
        rising = [float(text) for text in browser.evaluate(rows)]
        assert rising == sorted(rising)
        browser.evaluate("document.querySelector('th:nth-child(2) button').click()")
        assert [float(text) for text in browser.evaluate(rows)] == rising[::-1]

        dots = "document.querySelectorAll('#closer .trial').length"
        valued = [row for row in table.rows if row.value is not None]
        assert browser.evaluate(dots) == len(valued)
        browser.evaluate(
            "(box => { box.value = 'stopped method=full'; box.dispatchEvent(new Event('input')) })"
            "(document.querySelector('#closer input'))"
        )
        kept = [r for r in valued if r.status == "stopped" and r.values["method"] == "full"]
        assert browser.evaluate(dots) == len(kept) > 0
        note = browser.evaluate("document.querySelector('#closer > p.quiet').textContent")
        assert note.startswith(f"{len(kept)} of {len(table.rows)} trials;")

        for _ in range(2):  # the first dot is the best of them, then the next; both stay picked
            browser.evaluate(
                "[...document.querySelectorAll('#closer .trial')].find(dot => dot.getAttribute('r') === '5')"
                ".dispatchEvent(new Event('click'))"
            )
        best = sorted(kept, key=lambda row: -row.value)[:2]
        headings = browser.evaluate(TEXTS.format("#closer .card strong"))
        assert headings == [f"{row.label}: val/mask_ap {row.value:.4g}" for row in best]
        browser.evaluate("new Promise(done => setTimeout(done, 500))")
        assert browser.evaluate(UNLOADED) == 0, "the masks of the picked trials are shown"
        assert browser.errors == []
        browser.screenshot(screenshots / "report-picked.png", whole=True)


def test_names_cannot_end_the_data_of_the_script(page):
    text = page.read_text()
    data = text.split('id="trials">')[1].split("</script>")[0]
    assert "<" not in data
    assert json.loads(data)["metric"] == "val/mask_ap"


def test_a_page_of_a_thousand_trials_opens_at_once(tmp_path):
    folder = synthetic.write_sweep(tmp_path / "sweep", settings=1000)
    page = write_report(folder)
    assert page.stat().st_size < 5e6
    with open_browser(tmp_path / "profile") as browser:
        began = time.monotonic()
        browser.open(page.as_uri(), width=1280)
        assert browser.evaluate("document.querySelectorAll('#closer .trial').length") > 900
        assert time.monotonic() - began < 10  # 0.6 s on an idle machine
        assert browser.errors == []

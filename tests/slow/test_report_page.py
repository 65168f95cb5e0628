"""The report in a real browser: whole, quiet and readable on a desk and on a telephone."""

from pathlib import Path

import pytest
import synthetic
from browser import open_browser
from PIL import Image, ImageDraw

from orchestration.report.page import read_sweep, write_report

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
def test_the_page_shows_everything_and_asks_nobody(page, width, tmp_path, screenshots):
    with open_browser(tmp_path / "profile") as browser:
        browser.open(page.as_uri(), width=width)
        assert browser.errors == []
        assert {url for url in browser.requests if not url.startswith("data:")} == {page.as_uri()}
        # three charts, four slices, masks of two trials
        assert browser.evaluate("document.images.length") == 9
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

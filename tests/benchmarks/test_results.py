"""The tables of `benchmarks/results.py`, from numbers made up here."""

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location(
    "results", Path(__file__).parents[2] / "benchmarks" / "results.py"
)
results = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(results)


def test_seeds_become_mean_and_standard_deviation():
    assert results.spread([30.0, 32.0, 34.0], digits=1) == "32.0 ± 2.0"
    assert results.spread([0.5], digits=3) == "0.500"
    assert results.spread([], digits=1) == ""


def test_every_setting_has_a_line_with_its_share_of_the_twin():
    groups = {
        "method=full": [
            {"val/mask_ap": 40.0, "qam/pseudo_iou": 0.7},
            {"val/mask_ap": 44.0, "qam/pseudo_iou": 0.8},
        ],
        "method=supervised": [{"val/mask_ap": 56.0}],
    }
    header, _, full, twin = results.table(groups).splitlines()
    assert header.startswith("| setting | seeds | mask AP | AP50 | AP75 | box AP | of the twin |")
    assert full == "| method=full | 2 | 42.0 ± 2.8 |  |  |  | 75% | 0.750 ± 0.071 |  |  |"
    assert twin == "| method=supervised | 1 | 56.0 |  |  |  | 100% |  |  |  |"


def test_only_the_named_block_of_a_page_is_replaced():
    page = "before\n<!-- toy -->\nold\n<!-- end -->\nafter\n<!-- other -->\nstays\n<!-- end -->\n"
    filled = results.fill_block(page, "toy", "new")
    assert filled == page.replace("old", "new")
    assert (
        results.fill_block("text\n", "toy", "new") == "text\n\n<!-- toy -->\nnew\n<!-- end -->\n"
    )


@pytest.mark.parametrize("settings", [None, "name: mine\n"], ids=["no folder", "a single run"])
def test_a_folder_that_is_not_one_of_a_sweep_is_named(settings, tmp_path):
    folder = tmp_path / "named"
    if settings is not None:
        folder.mkdir()
        (folder / "config.yaml").write_text(settings)
    with pytest.raises(SystemExit, match="named: not the folder of a sweep"):
        results.summarise(folder)

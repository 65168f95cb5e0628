"""The measurement of `boxseg label`, without its hours of training."""

import argparse
import json
import shutil
from pathlib import Path

import pytest
from tiny_sets import KINDS, write_set

from benchmarks import outcome as bench


@pytest.fixture
def options(tmp_path):
    """Options for one data set of rings, whose labels are not made by training."""
    for split, seed in zip(bench.USUAL_SPLITS, (0, 1), strict=True):
        drawn = write_set(tmp_path / split, KINDS["rings"], images=3, seed=seed)
        folder = tmp_path / "data/nuclei/annotations"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(drawn.annotations, folder / f"{split}.json")
        shutil.copytree(drawn.images, tmp_path / "data/nuclei/images", dirs_exist_ok=True)
    return argparse.Namespace(
        data=tmp_path / "data", folder=tmp_path / "out", sets=["nuclei", "animals"], minutes=2.0, seeds=2, threads=1,
        set=[],
    )  # fmt: skip


def label_perfectly(line, *, check, stdout):
    """Write what the command would, with the drawn masks as labels."""
    folder, data = (line[line.index(each) + 1] for each in ("--output", "label"))
    content = json.loads(Path(data).read_text())
    for each in content["annotations"]:
        each["quality"] = 0.8
    Path(folder).mkdir(parents=True)
    (Path(folder) / "labels.coco.json").write_text(json.dumps(content))
    calls.append(line)


calls: list[list[str]] = []


def test_sets_that_are_there_are_labelled_measured_and_kept(options, monkeypatch):
    calls.clear()
    monkeypatch.setattr(bench.subprocess, "run", label_perfectly)
    means, runs = bench.outcome(options)
    assert [row[0] for row in means.rows] == ["nuclei"]
    row = dict(zip(means.columns, means.rows[0], strict=True))
    assert row["boxseg label"] == "1.000 ± 0.000"
    assert row["filled box"] < 0.7 < row["GrabCut"]
    assert row["error"] == "0.200 ± 0.000"
    assert row["interval holds"] == "0 of 2"
    assert [(row[0], row[1], row[5]) for row in runs.rows] == [
        ("nuclei", 0, "no"),
        ("nuclei", 1, "no"),
    ]
    assert ["--set=train.seed=1" in line for line in calls] == [False, True]
    assert all("--minutes" in line and "--train-on" in line for line in calls)
    again = bench.outcome(options)
    assert len(calls) == 2
    assert again[0].rows[0][:-1] == means.rows[0][:-1]


def test_results_of_other_settings_are_not_reused(options, monkeypatch):
    monkeypatch.setattr(bench.subprocess, "run", label_perfectly)
    bench.outcome(options)
    options.minutes = 5.0
    with pytest.raises(SystemExit, match="measured with"):
        bench.outcome(options)


def test_missing_data_is_reported(options, tmp_path):
    options.data = tmp_path / "nowhere"
    with pytest.raises(SystemExit, match="name their folder with --data"):
        bench.outcome(options)


def test_labels_are_measured_by_iou_and_quality():
    found = bench.measure([(0.8, 0.9), (0.6, 0.5)], minutes=1.5)
    assert (found.boxes, found.iou) == (2, pytest.approx(0.7))
    assert found.bad_auroc == 1.0
    assert found.quality_error == pytest.approx(0.1)
    assert found.expected == pytest.approx(0.7)
    assert found.holds

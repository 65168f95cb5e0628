"""The measurement of the quality of labels, on the generated set with an untrained network."""

import argparse

import numpy as np
import pytest

from benchmarks import quality as bench
from boxseg.data.dataset import CocoBoxes


def case(certainty: float, fill: float, iou: float, *, is_clean: bool = False) -> bench.Case:
    return bench.Case({"certainty": certainty, "fill": fill}, 0.9, iou, is_clean)


def test_sets_that_were_labelled_are_measured_with_and_without_a_network(
    tmp_path, trained_run, monkeypatch
):
    data = CocoBoxes(trained_run.val, train=False)
    monkeypatch.setattr(bench, "last_run", lambda folder: trained_run.checkpoint)
    monkeypatch.setattr(
        bench, "val_data", lambda folder, name: None if name == "animals" else data
    )
    for name in ("nuclei", "animals"):
        (tmp_path / name / "seed0").mkdir(parents=True)
    options = argparse.Namespace(
        data=tmp_path, folder=tmp_path, sets=["nuclei", "pennfudan", "animals"], quick=True
    )
    with_network, weights, without, _ = bench.quality(options)
    assert [row[:3] for row in with_network.rows] == [("nuclei", "yes", 12)]
    assert [row[:3] for row in without.rows] == [("nuclei", "no", 12)]
    assert all(
        0 <= row[4] <= 1 and 0 <= row[6] <= 1 for row in (*with_network.rows, *without.rows)
    )
    assert weights.rows[0][0] == "always"


def test_a_missing_labelled_set_is_reported(tmp_path):
    options = argparse.Namespace(data=tmp_path, folder=tmp_path, sets=["nuclei"], quick=True)
    with pytest.raises(SystemExit, match="no set was labelled"):
        bench.quality(options)


def test_the_fit_finds_a_straight_line_and_leaves_clean_cuts_alone():
    rng = np.random.default_rng(0)
    drawn = [case(c, f, 0.2 + 0.5 * c - 0.3 * f) for c, f in rng.random((4000, 2))]
    clean = [case(0.0, 0.0, 1.0, is_clean=True)] * 100
    weights = bench._fit([[*drawn[:1000], *clean], drawn[1000:]])
    assert weights == {name: pytest.approx(value, abs=0.01) for name, value in
                       {"always": 0.2, "certainty": 0.5, "fill": -0.3}.items()}  # fmt: skip
    assert bench._tell(weights, case(1.0, 1.0, 0.4)) == pytest.approx(0.4, abs=0.01)
    assert bench._tell(weights, clean[0]) == 0.9

"""The measurement with boxes that are not tight, on the generated set with an untrained network."""

import argparse

import pytest
import torch

from benchmarks import jitter as bench
from boxseg.data.dataset import CocoBoxes


def test_sides_move_by_their_share_at_most_and_always_alike():
    boxes = torch.tensor([[10.0, 10.0, 30.0, 110.0]])
    moved = bench.move_sides(boxes, 0.1, seed=7)
    assert ((moved - boxes).abs() <= torch.tensor([[2.0, 10.0, 2.0, 10.0]])).all()
    assert not torch.equal(moved, boxes)
    torch.testing.assert_close(bench.move_sides(boxes, 0.1, seed=7), moved)
    torch.testing.assert_close(bench.move_sides(boxes, 0.0, seed=7), boxes)


def test_boxes_that_are_moved_give_worse_masks(tmp_path, trained_run, monkeypatch):
    data = CocoBoxes(trained_run.val, train=False)
    monkeypatch.setattr(bench, "last_run", lambda folder: trained_run.checkpoint)
    monkeypatch.setattr(
        bench, "val_data", lambda folder, name: None if name == "animals" else data
    )
    (tmp_path / "nuclei/seed0").mkdir(parents=True)
    options = argparse.Namespace(
        data=tmp_path, folder=tmp_path, sets=["nuclei", "animals"], quick=True
    )
    (table,) = bench.jitter(options)
    assert [row[2] for row in table.rows] == ["boxseg label", "filled box", "GrabCut"]
    filled = table.rows[1]
    assert filled[3] > filled[-1]


def test_a_missing_labelled_set_is_reported(tmp_path):
    options = argparse.Namespace(data=tmp_path, folder=tmp_path, sets=["nuclei"], quick=True)
    with pytest.raises(SystemExit, match="no set was labelled"):
        bench.jitter(options)

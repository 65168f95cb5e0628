"""The pictures of kinds that nothing was tuned for."""

import argparse
import json

import numpy as np
import pytest

from benchmarks import domains as bench
from benchmarks.kinds import Scene


@pytest.mark.parametrize("name", bench.KINDS)
def test_objects_are_there_and_only_those_of_x_rays_are_seen_through_one_another(name):
    masks = [mask for _, mask in bench.KINDS[name](np.random.default_rng(3)).objects]
    assert masks
    assert (np.sum(masks, axis=0).max() > 1) == (name == "x-rays")


def test_objects_in_front_hide_those_behind():
    scene = Scene(np.zeros((8, 8, 3)))
    left, right = np.zeros((2, 8, 8), dtype=bool)
    left[:, :5] = right[:, 4:] = True
    scene.add(0, left, np.full((8, 8, 3), 100.0))
    assert not scene.is_free(right)
    scene.add(1, right, np.full((8, 8, 3), 200.0))
    assert [int(mask.sum()) for _, mask in scene.objects] == [32, 32]
    assert scene.picture[4, 0].tolist() == pytest.approx([100, 100, 100], abs=1)
    assert scene.picture[4, 7].tolist() == pytest.approx([200, 200, 200], abs=1)


def test_only_boxes_to_measure_with_have_masks(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "IMAGES", {"train": 1, "val": 1})
    monkeypatch.setattr(bench, "KINDS", {"signs": bench.KINDS["signs"]})
    monkeypatch.setattr(bench, "outcome", lambda options: [(options.data, options.sets)])
    (asked,) = bench.domains(argparse.Namespace(folder=tmp_path, data=None, sets=[]))
    assert asked == (tmp_path / "drawn", ["signs"])
    has_masks = []
    for name in ("train_boxes", "val"):
        content = json.loads((asked[0] / "signs/annotations" / f"{name}.json").read_text())
        has_masks.append({"segmentation" in each for each in content["annotations"]})
    assert has_masks == [{False}, {True}]

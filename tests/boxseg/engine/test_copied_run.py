"""A run that was copied goes on where it was, to the same weights, whatever became of its links."""

import pytest
import torch
from copies import COPIES

from boxseg.build import build_trainer
from boxseg.engine import checkpoint
from boxseg.engine.train import train
from boxseg.predict import Predictor

SETTINGS = {"method": "boxinst", "train": {"steps": 4, "eval_every": 2, "panels": 0}}


@pytest.fixture
def start(tiny_config, recorder, data_root):
    def start(folder, *, stop_at=None):
        reporter = recorder(stop_at)
        train(build_trainer(tiny_config(**SETTINGS), data_root=data_root), folder=folder, reporter=reporter)
        return reporter

    return start


def test_a_copy_goes_on_to_the_same_end(start, tmp_path):
    whole = start(tmp_path / "whole")
    end = checkpoint.load_network(checkpoint.find_sound(tmp_path / "whole" / "checkpoints"), "student")
    start(tmp_path / "stopped", stop_at=3)
    for way in ("cp -rL", "zip"):  # with folders and with empty folders in the place of links
        copy = tmp_path / way
        COPIES[way](tmp_path / "stopped", copy)
        assert checkpoint.load_about(Predictor(copy).folder)["step"] == 2, way
        reporter = start(copy)
        assert [each.step for each in reporter.steps] == [4], way
        assert reporter.losses() == whole.losses()[3:], way
        assert reporter.evals[-1].metrics == whole.evals[-1].metrics, way
        found = checkpoint.load_network(copy / "checkpoints" / "last", "student")
        assert all(torch.equal(found[name], end[name]) for name in end), way

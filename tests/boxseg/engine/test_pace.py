"""How long an update takes is measured although other programs come and go."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from boxseg.engine import pace


@pytest.mark.parametrize(
    ("seconds", "counts"),
    [
        ([5, 1.0, 1.2, 0.9, 1, 1, 1], 0.9),  # the first one allocates
        ([30, 1.0, 1.2, 0.1], 1.0),  # slow once: two more are measured
        ([4, 30, 2.0, 0.1], 2.0),
        ([30, 25, 28, 0.1], 25),  # a slow machine
    ],
)
def test_a_pause_of_the_machine_is_not_taken_for_the_pace(monkeypatch, seconds, counts):
    clock = itertools.accumulate([0.0, *seconds])
    monkeypatch.setattr(pace.time, "perf_counter", lambda: next(clock))
    loader = SimpleNamespace(batches=lambda first, count: range(count))
    done = {"train/loss": torch.zeros(())}
    monkeypatch.setattr(pace, "optimise", lambda *_: done)
    assert pace.time_update(SimpleNamespace(loader=loader)) == pytest.approx(pace.LATER * counts)

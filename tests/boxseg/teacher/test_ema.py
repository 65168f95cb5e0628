"""The teacher's average, with numbers worked by hand for `docs/method.md#teacher`."""

import pytest
import torch
from torch import nn

from boxseg.teacher.ema import ema_momentum, update_teacher


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0),
        (1, 0.5),
        (2, 0.666667),
        (10, 0.909091),
        (100, 0.990099),
        (998, 0.998999),
        (999, 0.999),
        (1000, 0.999),
    ],
)
def test_momentum_of_the_worked_examples(step, expected):
    assert ema_momentum(step, momentum=0.999) == pytest.approx(expected, abs=1e-6)


def test_the_teacher_starts_as_the_mean_of_its_students():
    teacher, student = nn.Linear(1, 1), nn.Linear(1, 1)
    seen = []
    for step in range(5):
        with torch.no_grad():
            student.weight.fill_(step + 1.0)
        update_teacher(teacher, student, ema_momentum(step, momentum=0.999))
        seen.append(teacher.weight.item())
    assert seen == pytest.approx([1, 1.5, 2, 2.5, 3])
    assert student.weight.item() == 5


@pytest.mark.parametrize("max_lag", [None, 0.1])
def test_momentum_depends_on_the_step_alone(max_lag):
    # The decay option of the reference multiplies its own state: asked twice, it would answer differently.
    asked = [ema_momentum(step, momentum=0.999, max_lag=max_lag) for step in (500, 3, 500, 3)]
    assert asked[:2] == asked[2:]


def test_a_limited_lag_forgets_early_students():
    for step in range(2000):
        limited = ema_momentum(step, momentum=0.999, max_lag=0.1)
        assert limited <= ema_momentum(step, momentum=0.999)
        assert 1 / (1 - limited) <= max(1, 0.1 * (step + 1)) + 1e-9
    assert ema_momentum(9, momentum=0.999, max_lag=0.1) == 0
    assert ema_momentum(99, momentum=0.999, max_lag=0.1) == pytest.approx(0.9)
    assert ema_momentum(50_000, momentum=0.999, max_lag=0.1) == 0.999
    assert ema_momentum(7, momentum=0.999, max_lag=1.0) == ema_momentum(7, momentum=0.999)


def test_buffers_are_left_alone():
    teacher, student = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    student(torch.randn(8, 2))
    with torch.no_grad():
        student.weight.fill_(3.0)
    update_teacher(teacher, student, 0.0)
    assert teacher.weight.tolist() == [3, 3]
    assert teacher.running_mean.tolist() == [0, 0]

"""One definition of what is better decides between trials and between settings."""

import math

import pytest

from boxseg.config.criterion import Criterion
from orchestration.record.run_folder import RunFolder, RunStatus
from orchestration.record.score import Merit, merit_of, read_scores, trials_that_count
from orchestration.record.trial import TrialStatus

LARGER, SMALLER = Criterion("val/mask_ap"), Criterion("val/mask_ap", "min")


def make_row(value: float | None, status: str = "finished", seed: int = 0) -> TrialStatus:
    return TrialStatus("x", "x", status=status, value=value, tags={"seed": str(seed)})


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        (LARGER, [(10, -1e9), (20, 0.3), (30, 0.3), (40, 0.6)]),
        (SMALLER, [(10, 1e9), (20, 0.3), (30, 0.1), (40, 0.1)]),
    ],
)
def test_the_score_is_the_best_value_so_far_and_what_is_not_finite_is_none(
    tmp_path, criterion, expected
):
    trial = RunFolder(tmp_path / "x").create(RunStatus("x", "x"), "")
    for step, value in ((10, math.nan), (20, 0.3), (30, 0.1), (40, 0.6)):
        trial.report(step, {"val/mask_ap": value, "val/box_ap": 0.5})
        trial.report(step, {"train/loss": 1.0})
    assert read_scores(trial, criterion) == expected


def test_evaluations_repeated_by_a_resumed_trial_count_once(tmp_path):
    trial = RunFolder(tmp_path / "x").create(RunStatus("x", "x"), "")
    for step, value in ((10, 0.2), (20, 0.9), (10, 0.2), (20, 0.4)):
        trial.report(step, {"val/mask_ap": value})
    assert read_scores(trial, LARGER) == [(10, 0.2), (20, 0.4)]


def test_completed_settings_come_first_even_if_stopped_ones_reached_more():
    whole = [make_row(0.2, seed=0), make_row(0.4, seed=1)]
    half = [make_row(0.6, seed=0), make_row(0.9, "stopped", seed=1)]
    stopped = [make_row(0.9, "stopped", seed=0), make_row(0.9, "interrupted", seed=1)]
    nothing = [make_row(None, "failed", seed=0)]
    merits = [merit_of(rows, LARGER, seeds=2) for rows in (whole, half, stopped, nothing)]
    assert merits == [
        Merit(True, True, pytest.approx(0.3)),
        Merit(False, True, 0.6),
        Merit(False, False, 0.9),
        Merit(False, False, -math.inf),
    ]
    assert merits == sorted(merits, reverse=True)
    assert merit_of(whole, SMALLER, seeds=2).score == pytest.approx(-0.3)


def test_one_trial_counts_for_each_seed():
    rows = [make_row(0.9, "stopped"), make_row(0.3), make_row(0.3), make_row(0.5, seed=1)]
    assert trials_that_count(rows) == [rows[1], rows[3]]
    assert not merit_of(rows[1:3], LARGER, seeds=2).all_finished

"""The time left is estimated from measured steps, and not shown before there are some."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from boxseg.config.criterion import Criterion
from orchestration.record.progress import RunProgress, SweepProgress
from orchestration.record.pulse import Pulse
from orchestration.record.run_folder import RunFolder, RunStatus
from orchestration.record.table import SweepTable
from orchestration.record.trial import TrialStatus
from orchestration.words import show_duration


class Trials:
    """Reports and rows of a sweep of 100-step trials, as if at times of our choice."""

    def __init__(self, storage: Path, planned: int) -> None:
        self._storage = storage
        self._rows: dict[int, TrialStatus] = {}
        self._progress = SweepProgress("toy", planned)

    def report(self, number: int, step: int, time: float) -> None:
        folder = self._storage / str(number)
        folder.mkdir(exist_ok=True)
        with RunFolder(folder).metrics_path.open("a") as file:
            file.write(
                json.dumps({"step": step, "time": time, "metrics": {"train/loss": 1.0}}) + "\n"
            )
        self._rows[number] = self._row(number, status="running", step=step)

    def end(self, number: int, status: str, step: int, seconds: float) -> None:
        self._rows[number] = self._row(number, status=status, step=step, ended=seconds, value=0.5)

    def _row(self, number: int, **state) -> TrialStatus:
        return TrialStatus(
            f"x-{number:02d}", "x", folder=str(self._storage / str(number)), steps=100, **state
        )

    def seconds_left(self) -> float | None:
        table = SweepTable(Criterion("m"), list(self._rows.values()))
        self._progress.update(table)
        return self._progress._seconds_left(table)


def test_a_sweep_says_once_what_its_trials_start_from(tmp_path, capsys):
    progress = SweepProgress("toy", 2)
    rows = []
    for number in range(2):
        folder = RunFolder(tmp_path / f"x-{number:02d}")
        folder.create(
            RunStatus(folder.path.name, "toy", start=f"starts from there ({number})"), ""
        )
        folder.append_metrics(20, {"train/loss": 1.0})
        rows.append(
            TrialStatus(
                folder.path.name,
                "x",
                folder=str(folder.path),
                steps=100,
                status="running",
                step=20,
            )
        )
    progress.update(SweepTable(Criterion("m"), rows))
    progress.update(SweepTable(Criterion("m"), rows))
    assert capsys.readouterr().err == "starts from there (0)\n"


def test_what_was_done_before_this_command_is_not_reported_again(tmp_path, capsys):
    trials = Trials(tmp_path, planned=3)
    trials.report(0, 50, time=5)
    trials.end(0, "finished", step=100, seconds=10)
    trials.report(1, 20, time=2)
    progress = SweepProgress("toy", 3)

    def table() -> SweepTable:
        return SweepTable(Criterion("m"), list(trials._rows.values()))

    progress.begin(table())
    progress.update(table())
    assert capsys.readouterr().err == ""
    trials.end(1, "finished", step=100, seconds=10)
    progress.update(table())
    told = capsys.readouterr().err
    assert "trial 01 finished" in told
    assert "trial 00" not in told


def test_nothing_is_said_before_a_tenth_of_a_trial_was_timed(tmp_path):
    trials = Trials(tmp_path, planned=4)
    assert trials.seconds_left() is None
    trials.report(0, step=20, time=1000.0)  # starting took long, and does not count
    assert trials.seconds_left() is None
    trials.report(0, step=25, time=1010.0)
    assert trials.seconds_left() is None
    trials.report(0, step=40, time=1040.0)
    assert trials.seconds_left() == 60 * 2.0 + 3 * 200.0


def test_trials_that_run_together_share_the_time(tmp_path):
    trials = Trials(tmp_path, planned=4)
    for number, pace in enumerate((2.0, 4.0)):
        trials.report(number, step=10, time=0.0)
        trials.report(number, step=50, time=40 * pace)
    assert trials.seconds_left() == (50 * 2.0 + 50 * 4.0 + 2 * 300.0) / 2


def test_trials_to_come_take_as_long_as_those_that_ended_and_the_slowest_decides_at_the_end(
    tmp_path,
):
    trials = Trials(tmp_path, planned=4)
    for number in range(3):
        trials.report(number, step=10, time=0.0)
        trials.report(number, step=30, time=20.0)
    trials.end(0, "stopped", step=30, seconds=40.0)
    trials.end(1, "failed", step=30, seconds=1.0)
    assert trials.seconds_left() == 70.0 + 40.0
    trials.report(3, step=10, time=100.0)
    trials.report(3, step=90, time=180.0)
    assert trials.seconds_left() == 70.0


def test_an_ended_trial_is_not_read_again_unless_it_is_resumed(tmp_path, monkeypatch):
    trials = Trials(tmp_path, planned=4)
    trials.report(0, step=50, time=10.0)
    trials.end(0, "interrupted", step=50, seconds=40.0)
    trials.seconds_left()
    looks, reports_since = [], RunFolder.reports_since
    monkeypatch.setattr(
        RunFolder,
        "reports_since",
        lambda folder, offset: (looks.append(0), reports_since(folder, offset))[1],
    )
    trials.seconds_left()
    assert not looks
    trials.report(0, step=60, time=20.0)  # its worker was lost, and Tune started another
    trials.seconds_left()
    assert looks


def test_durations_are_shown_in_a_suitable_unit():
    assert [show_duration(seconds) for seconds in (4.6, 89, 91, 7400)] == [
        "5 s",
        "89 s",
        "2 min",
        "2.1 h",
    ]


def beat(folder: RunFolder, step: int) -> None:
    pulse = Pulse(folder, first_step=step - 1)
    pulse.beat(
        step,
        {
            "train/loss": torch.tensor(2.5),
            "train/loss_mask": torch.tensor(0.5),
            "qam/quality": None,
        },
    )


def test_a_run_shows_its_pace_from_the_second_update_on_and_then_its_reports(tmp_path, capsys):
    folder = RunFolder(tmp_path / "run").create(RunStatus("run", "toy", steps=4000), "")
    with RunProgress(folder) as progress:
        progress.update()
        assert capsys.readouterr().err == ""
        for step in (2, 3):
            beat(folder, step)
            progress.update()
        told = capsys.readouterr().err
        assert re.fullmatch(
            r"step 2/4000  \S+ steps/s  \S+ \w+ left  loss 2\.5  mask 0\.5\n", told
        )
        folder.append_metrics(20, {"train/loss": 1.0})
        folder.append_metrics(20, {"system/cpu": 1.0})  # nothing of it has a place in a line
        progress.update()
        assert capsys.readouterr().err == "step 20/4000  loss 1\n"


def test_the_line_that_changes_is_never_older_than_the_one_above_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    folder = RunFolder(tmp_path / "run").create(RunStatus("run", "toy", steps=40), "")
    beat(folder, 5)  # of an earlier process
    with RunProgress(folder) as progress:
        assert progress._now(None).startswith("starting")
        beat(folder, 19)
        progress.update()
        assert "step 19/40" in capsys.readouterr().err
        folder.report(20, {"val/mask_ap": 0.5})
        progress.update()
        shown = capsys.readouterr().err
        assert "step 19/40" not in shown
        beat(folder, 21)
        progress.update()
        assert "step 21/40" in capsys.readouterr().err


@pytest.mark.parametrize("live", [False, True])
def test_a_closed_output_does_not_end_the_work(tmp_path, monkeypatch, live):
    reader, writer = os.pipe()
    os.close(reader)
    # rich takes that for a terminal
    monkeypatch.setenv("FORCE_COLOR" if live else "NO_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", os.fdopen(writer, "w", buffering=1))
    folder = RunFolder(tmp_path / "run").create(RunStatus("run", "toy", steps=4), "")
    with RunProgress(folder) as progress:
        assert progress.is_live == live
        for step in (1, 2):
            folder.report(step, {"val/mask_ap": 0.1})
            progress.update()
        assert not progress._is_read
    monkeypatch.undo()

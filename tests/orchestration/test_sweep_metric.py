"""Everything a sweep says about its best trial follows `sweep.metric`, `sweep.mode` and the best evaluation."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from fake_training import make_training

from boxseg.config.criterion import Criterion
from orchestration.cli.app import run
from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import SweepSpec
from orchestration.execute.supervise import StopSignals, Supervisor
from orchestration.execute.sweep import conclude
from orchestration.execute.trials import SweepPayload, Trials
from orchestration.execute.worker import train_here
from orchestration.record.find_runs import find_run
from orchestration.record.journal import read_past
from orchestration.record.run_folder import RunFolder, RunStatus, own_process
from orchestration.record.score import read_scores
from orchestration.record.trial import Trial
from orchestration.report.page import write_report
from orchestration.report.sweep_record import panel_of
from orchestration.tracking.tracker import Tracker


def evaluation(mask: float, box: float, fill: float | None = None) -> dict[str, float]:
    return {"val/mask_ap": mask, "val/box_ap": box} | (
        {} if fill is None else {"health/mask_fill": fill}
    )


SCRIPT = {  # k_top -> step -> metrics; mask AP, box AP and mask_fill are best in other trials and at other steps
    1: {
        25: evaluation(0.6, 0.1),
        50: evaluation(0.1, 0.5, 0.8),
        75: evaluation(0.2, 0.3),
        100: evaluation(0.2, 0.2),
    },
    5: {
        25: evaluation(0.5, 0.1),
        50: evaluation(0.7, 0.2, 0.5),
        75: evaluation(0.4, 0.4),
        100: evaluation(0.3, 0.3),
    },
    10: {
        25: evaluation(math.nan, 0.02, -math.inf),
        50: evaluation(0.0, 0.05, 0.9),
        75: evaluation(0.0, 0.0144, 0.4),
        100: evaluation(0.0, math.nan, math.nan),
    },
}
CASES = {  # metric and mode -> number of the best trial, step of its best evaluation, value of every trial
    ("val/mask_ap", "max"): (1, 50, [0.6, 0.7, 0.0]),
    ("val/box_ap", "max"): (0, 50, [0.5, 0.4, 0.05]),
    ("val/box_ap", "min"): (2, 75, [0.1, 0.1, 0.0144]),
    ("health/mask_fill", "min"): (2, 75, [0.8, 0.5, 0.4]),
}


@pytest.fixture(params=CASES, ids=" ".join)
def case(request, tmp_path):
    """A sweep of three trials that trained, its spec, and what is expected of it."""
    metric, mode = request.param
    values = {
        "name": "toy",
        "storage": tmp_path,
        "train": {"steps": 100, "batch_size": 4},
        "sweep": {
            "metric": metric,
            "mode": mode,
            "search": "grid",
            "space": {"qam.k_top": {"choice": [*SCRIPT]}},
        },
    }
    spec = SweepSpec.model_validate(values)
    folder = RunFolder(tmp_path / "toy" / "20260101-000000-aaaa")
    folder.create(
        RunStatus(folder.path.name, "toy", kind="sweep", steps=3, **own_process()),
        dump_resolved(spec),
    )
    payload = SweepPayload(
        spec, folder.path, tmp_path / ".data", "inline", make_training(script=SCRIPT)
    )
    tracker = Tracker(tmp_path, "toy", logs=folder.logs)
    sweep = Trials(payload, {"host": "here"}, Supervisor(folder, tracker, StopSignals()))
    sent = {}
    for number, k_top in enumerate(SCRIPT):
        trial = Trial(number, {"qam.k_top": k_top}, seed=0)
        sweep.note_drawn(trial)
        sweep.open(trial)
        sent[number] = []
        train_here(payload.of_trial(trial), device="cpu", send=sent[number].append)
        sweep.close(trial, "stopped")
    return sweep, spec, sent, *CASES[request.param]


def test_table_winner_checkpoint_and_report_go_by_metric_and_mode(case, capsys):
    sweep, spec, _, best, step, values = case
    metric, mode = spec.sweep.metric, spec.sweep.mode
    result = conclude(sweep)
    winner = sweep.payload.trial_folder(Trial(best, {}, 0))
    status = sweep.folder.stored()
    assert result.status == "finished"
    assert [row.value for row in result.table.rows] == values
    assert (result.best.id, result.best.best_step, result.best.value) == (
        winner.path.name,
        step,
        values[best],
    )
    assert (status.best_run, status.best[metric]) == (winner.path.name, values[best])
    assert find_run(spec.storage, f"best:{sweep.folder.path.name}").path == winner.path
    for checkpoint in (result.best_checkpoint, winner.best_checkpoint):
        assert json.loads((checkpoint / "about.json").read_text())["step"] == step
    ranked = sorted(
        range(3), key=lambda number: -values[number] if mode == "max" else values[number]
    )
    first = (sweep.folder.path / "table.md").read_text().splitlines()[2]
    assert first.startswith(f"| {best:02d} ★ |")
    assert f"{values[best]:.4f}" in first

    page = write_report(sweep.folder.path)
    with (page.parent / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row[metric]) for row in rows] == [values[number] for number in ranked]
    assert f"{metric} <strong>{values[best]:.4f}</strong>" in page.read_text()
    capsys.readouterr()
    assert run(["runs", "show", sweep.folder.path.name, "--storage", str(spec.storage)]) == 0
    assert f"{values[best]:.4f}" in capsys.readouterr().out

    (winner.path / "samples").mkdir()
    for each in (25, 50, 75, 100):
        (winner.path / "samples" / f"step-{each:08d}.png").touch()
    assert panel_of(result.best).name == f"step-{step:08d}.png"


def test_the_curve_of_the_sweep_is_that_of_its_best_trial_so_far(case):
    sweep, spec, _, _, _, values = case
    pick = max if spec.sweep.mode == "max" else min
    so_far = [pick(values[: count + 1]) for count in range(3)]
    assert [value for _, value in sweep.folder.history(spec.sweep.metric)] == so_far


def test_schedulers_and_search_get_the_best_value_so_far_of_the_table(case):
    sweep, spec, sent, _, _, values = case
    metric, criterion = spec.sweep.metric, spec.sweep.criterion
    pick = max if spec.sweep.mode == "max" else min
    for number, k_top in enumerate(SCRIPT):
        told, so_far = [], []
        for step in (25, 50, 75, 100):
            value = SCRIPT[k_top][step].get(metric, math.nan)
            so_far += [value] if math.isfinite(value) else []
            told.append(pick(so_far) if so_far else criterion.value_or_worst(None))
        assert [each[metric] for each in sent[number]] == told
        assert told[-1] == values[number]
        past = read_past(sweep.folder, spec.sweep)[number]
        scores = read_scores(RunFolder(past.folder), criterion)
        assert scores == list(zip((25, 50, 75, 100), told, strict=True)), "and after a resume"
        assert past.value == sweep.status_of(past).value == values[number]
    assert criterion == Criterion(metric, spec.sweep.mode)


def test_a_metric_that_no_evaluation_can_have_ends_the_trial_and_names_those_there_are(case):
    sweep = case[0]
    payload = sweep.payload.of_trial(Trial(3, {"qam.k_top": 1}, 0))
    other = sweep.payload.spec.sweep.model_copy(update={"metric": "val/mask_ap_large"})
    folder = RunFolder(Path(f"{payload.folder}-other"))
    folder.create(
        RunStatus(folder.path.name, "toy", steps=100, **own_process()), dump_resolved(payload.spec)
    )
    with pytest.raises(
        Exception,
        match=r"sweep.metric val/mask_ap_large is not reported; .* val/box_ap, val/mask_ap",
    ):
        train_here(replace(payload, folder=folder.path, sweep=other), device="cpu")

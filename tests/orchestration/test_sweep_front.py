"""A sweep of two metrics: which settings no other beats, worked by hand, and the same everywhere it is shown."""

import csv
import json
from dataclasses import replace

import pytest
from fake_training import make_training

from boxseg.config.criterion import Criterion
from boxseg.engine.events import EvalReport
from boxseg.errors import ConfigError
from orchestration.cli.app import run
from orchestration.cli.train import _sweep_as_json
from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import SweepConfig, SweepSpec, load_sweep
from orchestration.execute.payload import Payload
from orchestration.execute.reporter import FileReporter
from orchestration.execute.search import TrialQueue
from orchestration.execute.supervise import StopSignals, Supervisor
from orchestration.execute.sweep import conclude
from orchestration.execute.trials import SweepPayload, Trials
from orchestration.execute.worker import train_here
from orchestration.planning.preflight import warnings
from orchestration.record.find_runs import find_run
from orchestration.record.run_folder import RunFolder, RunStatus, own_process
from orchestration.record.score import Merit, find_front
from orchestration.record.table import SweepTable
from orchestration.record.trial import Trial, TrialStatus
from orchestration.report.page import write_report
from orchestration.report.stats import rank_settings
from orchestration.tracking.tracker import Tracker


def evaluation(mask: float, box: float) -> dict[str, float]:
    return {"val/mask_ap": mask, "val/box_ap": box}


# mask AP is to be high, box AP low; each trial is where its best mask AP was, which is not where its box AP was lowest
SCRIPT = {
    1: {
        50: evaluation(0.6, 0.5),
        100: evaluation(0.1, 0.0),
    },  # beaten by 10: alike in one, worse in the other
    5: {50: evaluation(0.5, 0.3), 100: evaluation(0.2, 0.0)},  # on the front
    10: {50: evaluation(0.1, 0.9), 100: evaluation(0.6, 0.4)},  # on the front, and the best
    20: {50: evaluation(0.4, 0.35), 100: evaluation(0.4, 0.1)},  # beaten by 5
    40: {50: evaluation(0.2, 0.9), 100: evaluation(0.3, 0.1)},  # on the front
}
BEST, FRONT = 2, [2, 1, 4]


@pytest.fixture
def sweep(tmp_path) -> Trials:
    """Five trials that trained, and a sixth that was stopped with the best values of all."""
    values = {
        "name": "toy",
        "storage": tmp_path,
        "train": {"steps": 100, "batch_size": 4, "eval_every": 0.5},
        "sweep": {
            "against": {"val/box_ap": "min"},
            "search": "grid",
            "space": {"qam.k_top": {"choice": [*SCRIPT, 50]}},
        },
    }
    spec = SweepSpec.model_validate(values)
    folder = RunFolder(tmp_path / "toy" / "20260101-000000-aaaa")
    about = RunStatus(folder.path.name, "toy", kind="sweep", steps=6, **own_process())
    folder.create(about, dump_resolved(spec))
    payload = SweepPayload(
        spec, folder.path, tmp_path / ".data", "inline", make_training(script=SCRIPT)
    )
    supervisor = Supervisor(folder, Tracker(tmp_path, "toy", logs=folder.logs), StopSignals())
    trials = Trials(payload, {"host": "here"}, supervisor)
    for number, k_top in enumerate([*SCRIPT, 50]):
        trial = Trial(number, {"qam.k_top": k_top}, seed=0)
        trials.note_drawn(trial)
        trials.open(trial)
        if k_top in SCRIPT:
            train_here(payload.of_trial(trial), device="cpu")
        else:
            payload.trial_folder(trial).report(50, evaluation(0.9, 0.0), is_best=True)
        trials.close(trial, "stopped")
    return trials


def test_table_status_report_and_json_show_the_same_front_and_best(sweep, capsys):
    result = conclude(sweep)
    folder, spec = sweep.folder, sweep.payload.spec
    ids = [f"{folder.path.name}-{number:02d}" for number in FRONT]
    assert result.best.id == ids[0]
    assert find_run(spec.storage, f"best:{folder.path.name}").path.name == ids[0]
    assert json.loads((result.best_checkpoint / "about.json").read_text())["step"] == 100
    assert [row.id for rows in result.table.front() for row in rows] == ids
    assert folder.stored().front == ids
    told = _sweep_as_json(spec, result)
    assert told["front"] == [[each] for each in ids]
    assert told["best"]["against"] == {"val/box_ap": 0.4}

    marked = [
        line for line in (folder.path / "table.md").read_text().splitlines() if "front |" in line
    ]
    assert [line.split("|")[1].split()[0] for line in marked] == ["trial", "02", "01", "04"]
    assert run(["runs", "show", folder.path.name, "--storage", str(spec.storage)]) == 0
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if " front " in line]
    assert sorted(shown) == ["01", "02", "04", "trial"]  # as in the table

    page = write_report(folder.path)
    text = page.read_text()
    assert "3 of 6 settings are not beaten in val/mask_ap and val/box_ap together" in text
    assert "on the front: trial 02, trial 01, trial 04." in text
    assert (page.parent / "front-val-box_ap.png").stat().st_size > 1000
    with (page.parent / "settings.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["qam.k_top"] for line in lines if line["front"] == "True"] == ["10", "5", "40"]
    data = json.loads(text.partition('id="trials">')[2].partition("</script>")[0])
    assert [each["label"] for each in data["trials"] if each["front"]] == [
        "trial 02",
        "trial 01",
        "trial 04",
    ]


def row(
    number: int, mask: float | None, status: str = "finished", seed: int = 0, **metrics: float
):
    about = {"values": {"k": number}, "tags": {"seed": str(seed)}, "metrics": metrics}
    return TrialStatus(f"x-{number:02d}{seed}", "x", status=status, value=mask, **about)


def test_means_over_seeds_are_compared_and_settings_that_lack_a_metric_are_not():
    rows = [
        row(0, 0.4, seed=0, cost=2.0),
        row(0, 0.6, seed=1, cost=4.0),  # 0.5 at 3: beaten by 1
        row(1, 0.5, seed=0, cost=1.0),
        row(1, 0.5, seed=1, cost=3.0),  # 0.5 at 2
        row(2, 0.9, seed=0),
        row(2, 0.9, seed=1),  # the best, and nobody knows at what cost
        row(3, 0.1, seed=0, cost=0.5),
        row(3, 0.1, "failed", seed=1),  # one of its seeds is not done
    ]
    table = SweepTable(Criterion("m"), rows, seeds=2, others=(Criterion("cost", "min"),))
    assert [group[0].values["k"] for group in table.front()] == [1]
    assert table.best().values == {"k": 2}
    assert SweepTable(Criterion("m"), rows, seeds=2).front() == []
    standings = rank_settings(table)
    assert [(each.rows[0].values["k"], each.others) for each in standings[:3]] == [
        (2, [None]),
        (1, [2.0]),
        (0, [3.0]),
    ]


def test_the_front_of_three_metrics_as_worked_by_hand():
    points = [(1, 1, 1), (1, 1, 2), (3, 0, 0), (0, 2, 1), (0, 1, 1), (1, 1, 2), (3, -1, 0)]
    assert sorted(find_front(points)) == [1, 2, 3, 5]
    assert find_front([]) == []


def test_completed_trials_come_first_for_any_value_of_the_other_metric():
    assert Merit(True, True, 0.1, (9.0,)) > Merit(False, True, 0.5, (9.0,))
    assert Merit(True, True, 0.5, (1.0,)) > Merit(True, True, 0.4, (9.0,))
    assert Merit(True, True, 0.5, (2.0,)) > Merit(True, True, 0.5, (1.0,))


def test_tpe_looks_for_the_front_of_both_metrics_and_resumes_unchanged():
    space = {"qam.iou_thr": {"uniform": [0.0, 1.0]}, "qam.score_thr": {"uniform": [0.0, 1.0]}}
    settings = {"search": "tpe", "trials": 40, "space": space, "against": {"val/box_ap": "min"}}
    sweep = SweepConfig.model_validate(settings)
    queue, past = TrialQueue(sweep, 0), []

    def end(trial: Trial) -> TrialStatus:
        # one metric is best at (0.2, 0.5), the other at (0.4, 0.5): nothing beats what lies in between
        x, y = trial.values.values()
        metrics = evaluation(-((x - 0.2) ** 2) - (y - 0.5) ** 2, (x - 0.4) ** 2 + (y - 0.5) ** 2)
        status = "finished" if trial.number % 7 else "stopped"
        about = {"status": status, "metrics": metrics, "values": trial.values}
        about |= {"tags": {"trial": str(trial.number), "seed": "0"}}
        return TrialStatus("x", "x", value=metrics["val/mask_ap"], **about)

    while (trial := queue.next()) is not None:
        past.append(end(trial))
        queue.note_end(trial.number, past[-1])
    late = [each.values.values() for each in past[-15:]]
    # by chance 2 of 15 would be there
    assert sum(0.1 <= x <= 0.5 and 0.3 <= y <= 0.7 for x, y in late) >= 7
    assert TrialQueue(sweep, 0, past[:25]).next().values == past[25].values


def test_costs_of_training_are_part_of_an_evaluation_where_the_sweep_asks_for_them(tmp_path):
    spec = SweepSpec.model_validate({"storage": tmp_path, "train": {"steps": 100}})
    folder = RunFolder(tmp_path / "x" / "y")
    folder.create(RunStatus("y", "x", **own_process()), dump_resolved(spec))
    plain = Payload(spec, folder.path, tmp_path, sweep=spec.sweep)
    costs = SweepConfig(against={"cost/step_s": "min", "cost/memory_mb": "min"})
    asked = replace(plain, sweep=costs)
    report = EvalReport(50, evaluation(0.5, 0.4), tmp_path, is_best=True, step_s=0.25)
    FileReporter(folder, plain).on_eval(report)
    assert folder.stored().best == evaluation(0.5, 0.4)
    FileReporter(folder, asked).on_eval(report)
    best = folder.stored().best
    assert best["cost/step_s"] == 0.25
    assert best["cost/memory_mb"] > 10
    # a process that goes on from there did not measure it, and keeps what was reported
    again = EvalReport(50, evaluation(0.5, 0.4), tmp_path, is_best=True, is_repeated=True)
    FileReporter(folder, asked).on_eval(again)
    assert folder.stored().best == best
    missing = replace(plain, sweep=SweepConfig(against={"qam/pseudo_iou": "max"}))
    with pytest.raises(ConfigError, match=r"sweep\.against qam/pseudo_iou is not reported"):
        FileReporter(folder, missing).on_eval(report)


@pytest.mark.parametrize(
    ("against", "reason"),
    [
        ("{val/mask_ap: min}", "val/mask_ap is sweep.metric already"),
        ("{cost/steps: min}", "did you mean cost/step_s"),
        ("{cost/step_s: low}", "it must be one of max, min"),
        ("[cost/step_s]", "it must be a mapping"),
        (
            "{cost/step_s: min, cost/memory_mb: min, val/box_ap: max}",
            "names 3 metrics; at most two are allowed",
        ),
    ],
)
def test_wrong_metrics_to_weigh_against_are_refused(against, reason, tmp_path):
    file = tmp_path / "exp.yaml"
    file.write_text(f"sweep:\n  space: {{qam.k_top: {{choice: [1, 5]}}}}\n  against: {against}\n")
    with pytest.raises(ConfigError) as raised:
        load_sweep(file)
    assert reason in str(raised.value)
    assert f"{file}:3" in str(raised.value)


def test_for_a_list_of_metrics_the_message_says_where_the_others_go(tmp_path):
    file = tmp_path / "exp.yaml"
    file.write_text("sweep:\n  metric: [val/mask_ap, cost/step_s]\n")
    with pytest.raises(ConfigError, match=r"exp.yaml:2: .*sweep.against: \{cost/step_s: min\}"):
        load_sweep(file)


def test_early_stopping_by_one_of_two_metrics_is_reported(tmp_path):
    sweep = {
        "space": {"qam.k_top": {"choice": [1, 5]}},
        "against": {"cost/step_s": "min"},
        "trials": 2,
    }
    spec = SweepSpec.model_validate({"storage": tmp_path, "sweep": sweep})
    assert [text for text in warnings(spec) if "asha stops trials by val/mask_ap alone" in text]
    spec = SweepSpec.model_validate(
        {"storage": tmp_path, "sweep": sweep | {"trial_scheduler": "none"}}
    )
    assert warnings(spec) == []

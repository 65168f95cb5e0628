"""The best evaluation, its checkpoint and the better network are chosen by the metric that a run is given."""

import math
import shutil

import pytest
from torch import nn

from boxseg import build
from boxseg.build import build_trainer
from boxseg.config.criterion import MASK_AP, Criterion
from boxseg.engine import checkpoint
from boxseg.engine import train as loop
from boxseg.evaluation import validate
from boxseg.evaluation.ap import CocoScores, Evaluation
from boxseg.evaluation.validate import choose_network
from boxseg.predict import Predictor
from boxseg.structures import MaskNetwork

BOX_AP = Criterion("val/box_ap")
LEAST_FILL = Criterion("health/mask_fill", "min")

SCRIPT = {  # mask AP is best at step 2, box AP at step 3, the masks are emptiest at step 4
    1: {"val/mask_ap": math.nan, "val/box_ap": math.nan},
    2: {"val/mask_ap": 0.6, "val/box_ap": 0.1, "health/mask_fill": 0.9},
    3: {"val/mask_ap": 0.2, "val/box_ap": 0.5, "health/mask_fill": 0.7},
    4: {"val/mask_ap": 0.1, "val/box_ap": 0.2, "health/mask_fill": 0.3},
    5: {"val/mask_ap": 0.5, "val/box_ap": math.inf, "health/mask_fill": -math.inf},
    6: {"val/mask_ap": 0.5},
}


class Blind(MaskNetwork):
    """Stands for a network where nothing is looked at."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    forward = detect = mask_logits = detection_losses = None


@pytest.fixture(autouse=True)
def _blind(monkeypatch):
    """The loop with all its files, but without the work of its steps."""
    monkeypatch.setattr(build, "build_condinst", lambda *_: Blind())
    monkeypatch.setattr(loop, "optimise", lambda trainer, batch, step: {})


@pytest.fixture
def train(tiny_config, data_root, recorder, monkeypatch):
    """Trains with the evaluations of `SCRIPT`."""

    def read_script(trainer, *, folder, step, criterion):
        return "teacher" if step % 2 else "student", SCRIPT[step]

    monkeypatch.setattr(loop, "validate", read_script)

    def start(folder, criterion, *, stop_at=None):
        trainer = build_trainer(
            tiny_config(train={"eval_every": 1, "panels": 0}), data_root=data_root
        )
        reporter = recorder(stop_at)
        return loop.train(trainer, folder=folder, reporter=reporter, criterion=criterion), reporter

    return start


@pytest.mark.parametrize(("criterion", "step"), [(MASK_AP, 2), (BOX_AP, 3), (LEAST_FILL, 4)])
def test_the_best_checkpoint_and_what_is_reported_follow_the_metric(
    train, tmp_path, criterion, step
):
    progress, reporter = train(tmp_path, criterion)
    assert progress.best == SCRIPT[step]
    assert [report.step for report in reporter.evals if report.is_best][-1] == step
    about = checkpoint.load_about(tmp_path / "checkpoints" / "best")
    assert (about["step"], about["best"]) == (step, SCRIPT[step])


@pytest.mark.parametrize("stop_at", [1, 3, 4])
def test_a_resumed_run_keeps_its_best_evaluation(train, tmp_path, stop_at):
    train(tmp_path, BOX_AP, stop_at=stop_at)
    progress, _ = train(tmp_path, BOX_AP)
    assert (progress.step, progress.best) == (6, SCRIPT[3])
    assert checkpoint.load_about(tmp_path / "checkpoints" / "best")["step"] == 3


@pytest.mark.parametrize("loss", ["gone", "weights", "about"])
@pytest.mark.parametrize(
    ("criterion", "stop_at", "lost", "then", "end"),
    [
        (BOX_AP, 4, 3, 4, 4),  # what it goes on from is an evaluation, and no later one is better
        (MASK_AP, 4, 2, 3, 5),  # the one before is better, until a later one is
        (MASK_AP, 6, 2, 5, 5),  # all updates are done, so there is no later one
    ],
)
def test_a_run_whose_best_checkpoint_is_lost_takes_the_best_of_those_that_are_there(
    train, tmp_path, criterion, stop_at, lost, then, end, loss, caplog
):
    progress, _ = train(tmp_path, criterion, stop_at=stop_at)
    assert progress.best_step == lost
    checkpoints = tmp_path / "checkpoints"
    folder = checkpoint.folder_of(checkpoints, lost)
    if loss == "gone":
        shutil.rmtree(folder)
    else:
        damaged = folder / ("student.safetensors" if loss == "weights" else "about.json")
        damaged.write_bytes(damaged.read_bytes()[:-9])
    progress, reporter = train(tmp_path, criterion)
    assert reporter.best == (then, SCRIPT[then])
    assert (progress.best_step, progress.best) == (end, SCRIPT[end])
    assert f"the best checkpoint is lost: {folder}" in caplog.text
    for place in (checkpoint.find_best(checkpoints), checkpoints / "best"):
        assert checkpoint.load_about(place)["step"] == end
        assert checkpoint.find_checkpoint_damage(place) is None
    assert not folder.exists()
    again, reporter = train(tmp_path, criterion)
    assert (again, reporter.best) == (progress, (end, SCRIPT[end]))


def test_a_run_that_lost_its_only_evaluation_has_no_best_until_the_next_one(
    train, tmp_path, monkeypatch
):
    train(tmp_path, MASK_AP, stop_at=3)
    checkpoints = tmp_path / "checkpoints"
    # as a stop between two evaluations leaves it
    of_stop = checkpoint.folder_of(checkpoints, 3)
    checkpoint._rewrite_about(of_stop, checkpoint.load_about(of_stop) | {"evaluated": 2})
    shutil.rmtree(checkpoint.folder_of(checkpoints, 2))
    progress, reporter = train(tmp_path, MASK_AP)
    assert reporter.best == (0, {})
    assert [report.step for report in reporter.evals if report.is_best] == [4, 5]
    assert progress.best_step == 5


def test_a_run_resumed_from_before_a_damaged_best_checkpoint_has_the_best_until_then(
    train, tmp_path
):
    """The best checkpoint until then must not be removed with the damaged one."""
    train(tmp_path, LEAST_FILL, stop_at=4)
    checkpoints = tmp_path / "checkpoints"
    (checkpoint.folder_of(checkpoints, 4) / "state.pt").write_bytes(b"")
    _, reporter = train(tmp_path, LEAST_FILL, stop_at=3)
    assert reporter.best == (3, SCRIPT[3])
    assert reporter.evals[0].step == 3
    assert checkpoint.find_best(checkpoints) == checkpoint.folder_of(checkpoints, 4), "anew"


def test_without_any_value_nothing_is_called_the_best(train, tmp_path):
    progress, reporter = train(tmp_path, Criterion("val/mask_ap_large"))
    assert progress.best == {}
    assert not any(report.is_best for report in reporter.evals)
    assert not (tmp_path / "checkpoints" / "best").exists()


def test_the_better_network_is_that_of_the_metric_where_it_has_one():
    found = {
        "student": {"val/mask_ap": 0.3, "val/box_ap": 0.1, "health/mask_fill": 0.2},
        "teacher": {"val/mask_ap": 0.1, "val/box_ap": 0.4, "health/mask_fill": 0.1},
    }
    assert choose_network(found, MASK_AP) == "student"
    assert choose_network(found, BOX_AP) == "teacher"
    assert choose_network(found, Criterion("val/box_ap", "min")) == "student"
    for other in (
        Criterion("health/mask_fill", "min"),
        Criterion("val/teacher_mask_ap"),
        Criterion("val/mask_ap75"),
    ):
        assert choose_network(found, other) == "student", "mask AP decides"
    boxes_only = {name: {"val/box_ap": metrics["val/box_ap"]} for name, metrics in found.items()}
    assert choose_network(boxes_only, MASK_AP) == "teacher"
    assert choose_network({"teacher": {}}, MASK_AP) == "teacher"
    assert (
        choose_network(
            {"student": {"val/box_ap": math.nan}, "teacher": {"val/box_ap": 0.0}}, BOX_AP
        )
        == "teacher"
    )


@pytest.mark.parametrize(("criterion", "network"), [(MASK_AP, "student"), (BOX_AP, "teacher")])
def test_numbers_and_weights_are_those_of_the_better_network(
    tiny_config, data_root, recorder, tmp_path, monkeypatch, criterion, network
):
    aps = {"student": {"mask_ap": 0.3, "box_ap": 0.1}, "teacher": {"mask_ap": 0.1, "box_ap": 0.4}}

    def evaluate_network(trainer, network, watch):
        own = aps["student" if network is trainer.student else "teacher"]
        metrics = {f"val/{name}": value for name, value in own.items()}
        metrics["health/mask_fill"] = own["mask_ap"]
        return Evaluation(metrics, [], CocoScores(own, {}, {}))

    monkeypatch.setattr(validate, "_evaluate_network", evaluate_network)
    trainer = build_trainer(tiny_config(train={"steps": 1, "panels": 0}), data_root=data_root)
    progress = loop.train(trainer, folder=tmp_path, reporter=recorder(), criterion=criterion)
    own = aps[network]
    assert progress.network == network
    assert progress.metrics == {
        "val/mask_ap": own["mask_ap"],
        "val/box_ap": own["box_ap"],
        "health/mask_fill": own["mask_ap"],
        "val/student_mask_ap": 0.3,
        "val/teacher_mask_ap": 0.1,
    }
    assert loop.restore(trainer, tmp_path / "checkpoints" / "last") == progress
    assert Predictor(tmp_path).network_name == network

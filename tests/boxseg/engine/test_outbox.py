"""Files of an evaluation are written beside the next steps, and reported once they are there."""

import threading

import pytest

from boxseg.build import run_training
from boxseg.engine import checkpoint, train
from boxseg.engine.events import EvalReport
from boxseg.engine.outbox import Outbox
from boxseg.errors import NonFiniteLossError, StorageError

PATIENCE_S = 60


def report(step, folder):
    return EvalReport(step, {"val/mask_ap": 0.5}, folder)


def test_steps_go_on_while_files_are_written_and_reports_stay_in_order(
    tiny_config, data_root, tmp_path, recorder, monkeypatch
):
    written, stepped = [], threading.Event()
    save, optimise = checkpoint.save_checkpoint, train.optimise

    def save_after_a_step(*args, step, **kwargs):
        written.append((step, stepped.wait(PATIENCE_S) if step == 3 else True))
        return save(*args, step=step, **kwargs)

    def step_on(trainer, batch, step):
        if step == 4:  # the second step after the evaluation of step 3
            assert (tmp_path / "checkpoints" / "last").is_symlink() is False
            stepped.set()
        return optimise(trainer, batch, step)

    monkeypatch.setattr(checkpoint, "save_checkpoint", save_after_a_step)
    monkeypatch.setattr(train, "optimise", step_on)
    told = []

    class Order(recorder):
        def on_step(self, report):
            told.append(("steps", report.step))

        def on_eval(self, report):
            assert (tmp_path / "checkpoints" / "last").resolve() == report.checkpoint.resolve()
            assert (tmp_path / "samples" / f"step-{report.step:08d}.png").exists()
            told.append(("evaluation", report.step))

    config = tiny_config(train={"report_every": 6})
    run_training(config, folder=tmp_path, data_root=data_root, reporter=Order())
    assert written == [(3, True), (6, True)]
    assert told == [("evaluation", 3), ("steps", 6), ("evaluation", 6)]


def test_what_was_evaluated_before_a_failing_step_is_kept_and_reported(
    tiny_config, data_root, tmp_path, recorder, monkeypatch
):
    optimise = train.optimise

    def fail(trainer, batch, step):
        if step == 3:
            raise NonFiniteLossError("step 3: the loss is nan")
        return optimise(trainer, batch, step)

    monkeypatch.setattr(train, "optimise", fail)
    reporter = recorder()
    with pytest.raises(NonFiniteLossError):
        run_training(tiny_config(), folder=tmp_path, data_root=data_root, reporter=reporter)
    assert [each.step for each in reporter.evals] == [3]
    assert checkpoint.load_about(tmp_path / "checkpoints" / "last")["step"] == 3


def test_what_cannot_be_written_is_neither_reported_nor_lost(recorder):
    reporter = recorder()

    def write():
        raise StorageError("the disk is full")

    with pytest.raises(StorageError, match="the disk is full"), Outbox(reporter) as outbox:
        outbox.add(write)
    assert reporter.evals == []


def test_an_evaluation_is_delivered_before_the_next_and_once(recorder, tmp_path):
    reporter = recorder()
    with Outbox(reporter) as outbox:
        for step in (1, 2):
            outbox.add(lambda step=step: lambda: report(step, tmp_path))
        assert [each.step for each in reporter.evals] == [1]
        outbox.deliver()
        outbox.deliver()
    assert [each.step for each in reporter.evals] == [1, 2]

"""The driver's side of a sweep, without Ray: opening and closing trials, choosing the best, ending."""

import errno
import functools
import os
import shutil
import time
from pathlib import Path

import pytest
from rich.console import Console

from boxseg.config.criterion import Criterion
from boxseg.engine.checkpoint import load_about, publish, save_checkpoint
from boxseg.errors import CheckpointError, DataError, StorageError
from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import SweepConfig, SweepSpec, load_run
from orchestration.execute.supervise import StopSignals, Supervisor
from orchestration.execute.sweep import conclude, run_sweep
from orchestration.execute.trials import SweepPayload, Trials
from orchestration.planning.preflight import concurrency
from orchestration.record.failures import Failure, error_of
from orchestration.record.journal import read_past
from orchestration.record.progress import SweepProgress
from orchestration.record.run_folder import RunFolder, RunStatus, own_process
from orchestration.record.table import (
    SweepTable,
    describe,
    markdown_table,
    read_table,
    render_table,
)
from orchestration.record.trial import Trial, TrialStatus
from orchestration.tracking.tracker import Tracker

DRAWN = SweepConfig.model_validate({"space": {"qam.k_top": {"choice": list(range(1, 11))}}})
"""Can have drawn the trials of these tests that a sweep goes on with."""


def make_spec(storage: Path, **sweep) -> SweepSpec:
    space = {"qam.k_top": {"choice": [1, 5, 10]}, "qam.k_min": {"choice": [5, 50]}}
    values = {
        "name": "toy",
        "storage": storage,
        "data": {"toy": {"train_images": 2, "val_images": 2, "size": 64}},
        "train": {"steps": 100},
        "sweep": {"space": space, **sweep},
    }
    return SweepSpec.model_validate(values)


def make_driver(storage: Path, **settings) -> Trials:
    spec = make_spec(storage, **settings)
    folder = RunFolder(storage / "toy" / "20260101-000000-aaaa")
    status = RunStatus(folder.path.name, "toy", kind="sweep", steps=3, **own_process())
    folder.create(status, dump_resolved(spec))
    payload = SweepPayload(spec, folder.path, storage / ".data", "inline")
    return Trials(payload, {"host": "here"}, make_supervisor(folder))


def make_supervisor(folder: RunFolder) -> Supervisor:
    return Supervisor(
        folder, Tracker(folder.path.parents[1], "toy", logs=folder.logs), StopSignals()
    )


def make_row(
    number: int, value: float | None, status: str = "finished", seed: int = 0, **values
) -> TrialStatus:
    about = {
        "values": values or {"qam.k_top": number},
        "tags": {"seed": str(seed)},
        "step": 1,
        "steps": 1,
    }
    return TrialStatus(f"x-{number:02d}", "x", status=status, value=value, **about)


def test_a_trial_has_its_own_settings_values_seed_and_parent(tmp_path):
    sweep = make_driver(tmp_path)
    trial = Trial(2, {"qam.k_top": 10}, seed=7)
    sweep.open(trial)
    folder = sweep.payload.trial_folder(trial)
    assert folder.path == sweep.folder.path / "20260101-000000-aaaa-02"
    config = load_run(folder.config_path)
    assert (config.qam.k_top, config.train.seed) == (10, 7)
    status = folder.stored()
    assert (status.values, status.tags["seed"], status.parent) == ({"qam.k_top": 10}, "7", "..")
    assert status.description == "k_top=10"


def test_impossible_values_fail_their_trial_alone(tmp_path):
    sweep = make_driver(tmp_path)
    trial = Trial(0, {"qam.k_min": 50}, seed=0)
    sweep.open(trial)
    status = sweep.payload.trial_folder(trial).status()
    assert (status.status, status.failure.kind) == ("failed", "ConfigError")
    assert "k_min" in status.failure.text
    sweep.close(Trial(0, {}, 0), "stopped")
    assert sweep.payload.trial_folder(trial).status().status == "failed"


def test_the_sweep_reports_its_best_value_after_every_trial_and_the_journal_every_cause(tmp_path):
    sweep = make_driver(tmp_path)
    for number, value in enumerate((0.2, 0.5, 0.1)):
        trial = Trial(number, {"qam.k_top": number + 1}, seed=0)
        sweep.open(trial)
        folder = sweep.payload.trial_folder(trial)
        folder.report(100, {"val/mask_ap": value}, is_best=True)
        if number < 2:
            folder.finish("finished")
        sweep.close(Trial(number, {}, 0), "stopped")
    assert sweep.folder.history("val/mask_ap") == [(1, 0.2), (2, 0.5), (3, 0.5)]
    assert sweep.folder.status().best_run == "20260101-000000-aaaa-01"
    ends = [event for event in sweep.folder.journal() if event["event"] == "trial_end"]
    assert [(end["status"], end["cause"]) for end in ends] == [
        ("finished", ""),
        ("finished", ""),
        ("stopped", "asha"),
    ]


def test_a_trial_that_could_not_be_stored_stops_the_sweep_and_is_run_again(tmp_path):
    sweep = make_driver(tmp_path)
    for number in range(2):
        sweep.open(Trial(number, {"qam.k_top": number + 1}, seed=0))
    sweep.payload.trial_folder(Trial(0, {}, seed=0)).finish(
        "failed", StorageError("the disk is full")
    )
    sweep.close(Trial(0, {}, 0), "stopped")
    with SweepProgress("toy", 3) as display:
        sweep.supervisor.watch(
            functools.partial(time.sleep, 0.5), functools.partial(sweep.look, display)
        )
    assert sweep.supervisor.signals.has_received(), "no other trial would fare better"
    assert sweep.payload.trial_folder(Trial(1, {}, seed=0)).stop_requested()
    sweep.close_all(interrupted=True)
    assert conclude(sweep).status == "interrupted"
    assert [row.has_ended for row in read_past(sweep.folder, DRAWN)] == [
        False,
        False,
    ]


def test_a_status_that_is_damaged_while_its_trial_works_fails_that_trial_alone(tmp_path):
    sweep = make_driver(tmp_path)
    for number in range(2):
        sweep.open(Trial(number, {"qam.k_top": number + 1}, seed=0))
    odd, good = (sweep.payload.trial_folder(Trial(number, {}, seed=0)) for number in range(2))
    odd.status_path.write_text("[]")
    save(good, 100, 0.5, best_step=100)
    good.report(100, {"val/mask_ap": 0.5}, is_best=True)
    good.finish("finished")
    sweep.note_loss(Trial(0, {}, 0), None)
    for number in range(2):
        sweep.close(Trial(number, {}, 0), "stopped")
    sweep.close_all(interrupted=False)
    result = conclude(sweep)
    assert (result.status, result.best.id) == ("finished", good.path.name)
    assert [(row.id, row.values) for row in result.table.failed] == [
        (odd.path.name, {"qam.k_top": 1})
    ]
    assert "status.json: is damaged" in odd.status().failure.text


def test_the_end_of_a_trial_costs_as_much_after_twenty_others_as_after_three(
    tmp_path, monkeypatch
):
    sweep = make_driver(tmp_path, trials=24)
    read, stored = [], RunFolder.stored
    monkeypatch.setattr(
        RunFolder, "stored", lambda folder: (read.append(folder.path), stored(folder))[1]
    )
    costs = []
    for number in range(24):
        trial = Trial(number, {"qam.k_top": 1 + number % 8}, seed=number % 3)
        sweep.open(trial)
        sweep.payload.trial_folder(trial).report(
            100, {"val/mask_ap": number * 7 % 11 / 10}, is_best=True
        )
        sweep.payload.trial_folder(trial).finish("stopped" if number % 5 else "finished")
        read.clear()
        sweep.close(Trial(number, {}, 0), "stopped")
        sweep.table()
        costs.append(len(read))
        assert (
            sweep.folder.stored().best_run
            == read_table(sweep.folder.path, sweep.payload.spec).best().id
        )
    assert costs[3:] == [costs[3]] * 21


def test_a_resumed_sweep_knows_its_earlier_best(tmp_path):
    before = make_driver(tmp_path)
    for number, value in enumerate((0.5, 0.2)):
        each = Trial(number, {"qam.k_top": 5 + number}, seed=0)
        before.open(each)
        before.payload.trial_folder(each).report(100, {"val/mask_ap": value}, is_best=True)
        before.payload.trial_folder(each).finish("finished")
    past = read_past(before.folder, DRAWN)[:1]
    after = Trials(before.payload, {}, make_supervisor(before.folder), past)
    assert after.num_ended == 1
    after.open(Trial(1, {"qam.k_top": 6}, seed=0))
    after.close(Trial(1, {}, 0), "stopped")
    assert (after.folder.stored().step, after.folder.stored().best["val/mask_ap"]) == (2, 0.5)


@pytest.mark.parametrize("start", ["resume", "retry_failed"])
def test_a_sweep_does_not_go_on_with_other_data(tmp_path, start):
    sweep = make_driver(tmp_path)
    sweep.folder.update(status="interrupted", tags={"data": "old.json", "data_fingerprint": "0"})
    before = sweep.folder.stored()
    with pytest.raises(DataError, match="old files back, or start another sweep with --new"):
        run_sweep(sweep.payload.spec, start=start)
    assert sweep.folder.stored() == before


def test_a_setting_drawn_twice_does_not_rank_behind_one_drawn_once():
    rows = [make_row(0, 0.9, k=1), make_row(1, 0.8, k=1), make_row(2, 0.5, k=2)]
    assert SweepTable(Criterion("m"), rows).best().id == "x-00"


def test_a_terminal_shows_the_trials_at_work_and_the_best_of_many():
    rows = [make_row(number, number / 100, k=number) for number in range(40)] + [
        make_row(40, None, "running", k=40)
    ]
    console = Console(width=80)
    with console.capture() as shown:
        console.print(render_table(SweepTable(Criterion("m"), rows), most=4))
    text = shown.get()
    shown_trials = [line.split("  ")[0].strip() for line in text.splitlines()]
    assert [each for each in shown_trials if each[:1].isdigit()] == ["39 ★", "38", "37", "40"]
    assert "37 more trials" in text


def test_a_terminal_of_80_columns_has_room_for_settings_and_their_values():
    values = {"qam.iou_thr": 0.7639, "solver.lr": 0.0001927, "qam.k_top": 20, "method": "full"}
    console = Console(width=80)
    with console.capture() as shown:
        console.print(
            render_table(SweepTable(Criterion("val/mask_ap"), [make_row(0, 0.4, **values)]))
        )
    head, _, line = (each for each in shown.get().splitlines() if each.strip())
    assert head.split() == [
        "trial",
        "iou_thr",
        "lr",
        "k_top",
        "method",
        "mask_ap",
        "step",
        "status",
    ]
    assert line.split()[2:6] == ["0.7639", "0.0001927", "20", "full"]
    # the last parts of two names alike: both in full
    twins = {"train.window": 1, "eval.window": 2}
    with console.capture() as shown:
        console.print(render_table(SweepTable(Criterion("m"), [make_row(0, 0.4, **twins)])))
    assert "train.window" in shown.get()
    assert "eval.window" in shown.get()


def open_trial(sweep: Trials, number: int) -> RunFolder:
    """The folder of a trial that runs now."""
    trial = Trial(number, {"qam.k_top": 5 + number}, seed=0)
    sweep.open(trial)
    return sweep.payload.trial_folder(trial)


def save(folder: RunFolder, step: int, value: float, *, best_step: int) -> Path:
    """Write the checkpoint of an evaluation, as training does."""
    checkpoints = folder.path / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    metrics = {"val/mask_ap": value}
    about = {"evaluated": step, "metrics": metrics, "best_step": best_step, "best": metrics}
    written = save_checkpoint(checkpoints, step=step, files={"state.pt": b"state"}, about=about)
    publish(checkpoints, written)
    return written


def finish_with_checkpoint(sweep: Trials, number: int, value: float) -> Path:
    """Run a trial whose evaluation of step 50 is the best, and which goes on to step 100; gives that checkpoint."""
    folder = open_trial(sweep, number)
    best = save(folder, 50, value, best_step=50)
    folder.report(50, {"val/mask_ap": value}, is_best=True)
    save(folder, 100, value / 2, best_step=50)
    folder.report(100, {"val/mask_ap": value / 2})
    folder.finish("finished")
    sweep.close(Trial(number, {}, 0), "stopped")
    return best


def test_the_best_checkpoint_is_copied_and_the_table_written(tmp_path):
    sweep = make_driver(tmp_path)
    finish_with_checkpoint(sweep, 0, 0.25)
    result = conclude(sweep)
    assert (result.status, result.best.id, result.table.failed) == (
        "finished",
        "20260101-000000-aaaa-00",
        [],
    )
    assert load_about(result.best_checkpoint)["step"] == 50
    assert not result.best_checkpoint.is_symlink()
    assert "| 00 ★ | 5 | 0.2500 | 100 | finished |" in (sweep.folder.path / "table.md").read_text()


def test_a_disk_that_is_full_when_the_best_checkpoint_is_copied_is_named(tmp_path, monkeypatch):
    sweep = make_driver(tmp_path)
    finish_with_checkpoint(sweep, 0, 0.25)

    def refuse(source, target, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)

    monkeypatch.setattr(shutil, "copyfile", refuse)
    with pytest.raises(StorageError, match=r"\.best/.* the disk is full; make room"):
        conclude(sweep)
    monkeypatch.undo()
    assert conclude(sweep).status == "finished"


def test_among_equal_trials_the_sweep_and_its_table_name_the_same(tmp_path):
    sweep = make_driver(tmp_path)
    for number in (1, 0):  # as they end
        finish_with_checkpoint(sweep, number, 0.25)
    assert sweep.folder.stored().best_run.endswith("-01")
    assert conclude(sweep).best.label == "trial 00"
    assert sweep.folder.stored().best_run.endswith("-00")


def test_a_trial_that_ended_after_its_sweep_was_killed_can_be_the_best(tmp_path):
    killed = make_driver(tmp_path)
    finish_with_checkpoint(killed, 0, 0.25)
    late = open_trial(killed, 1)
    save(late, 50, 0.5, best_step=50)
    late.report(50, {"val/mask_ap": 0.5}, is_best=True)
    late.finish("finished")
    past = read_past(killed.folder, DRAWN)
    sweep = Trials(killed.payload, {}, make_supervisor(killed.folder), past)
    assert conclude(sweep).best.label == "trial 01"
    told = sweep.folder.stored()
    assert (told.step, told.best_run[-3:], told.best["val/mask_ap"]) == (2, "-01", 0.5)


@pytest.mark.parametrize("loss", ["gone", "damaged"])
def test_a_trial_that_has_lost_its_best_checkpoint_has_failed_and_the_next_one_is_the_best(
    tmp_path, loss, caplog
):
    sweep = make_driver(tmp_path)
    lost = finish_with_checkpoint(sweep, 0, 0.5)
    finish_with_checkpoint(sweep, 1, 0.25)
    assert sweep.folder.stored().best_run.endswith("-00")
    if loss == "gone":
        shutil.rmtree(lost)
    else:
        (lost / "state.pt").write_bytes(b"other")
    result = conclude(sweep)
    assert (result.status, result.best.label, result.best.value) == ("finished", "trial 01", 0.25)
    assert load_about(result.best_checkpoint)["metrics"] == {"val/mask_ap": 0.25}
    (failed,) = result.table.failed
    assert (failed.label, failed.value, failed.failure.failure_class) == (
        "trial 00",
        None,
        "checkpoint_lost",
    )
    assert f"trial 00 has lost its best checkpoint: {lost}" in caplog.text
    told = sweep.folder.stored()
    assert (told.best_run, told.best["val/mask_ap"]) == (result.best.id, 0.25)
    assert sweep.folder.journal()[-2]["cause"] == failed.failure.text
    # whoever goes on with the sweep runs it again, from what is left
    past = read_past(sweep.folder, DRAWN)
    assert [row.has_ended for row in past] == [False, True]


def test_a_sweep_whose_only_trial_has_lost_its_best_checkpoint_has_no_best(tmp_path):
    sweep = make_driver(tmp_path)
    kept = sweep.folder.path / "best"
    kept.mkdir()  # of an earlier end
    shutil.rmtree(finish_with_checkpoint(sweep, 0, 0.5))
    result = conclude(sweep)
    assert (result.status, result.best, result.best_checkpoint) == ("failed", None, None)
    assert not kept.exists()
    failure = sweep.folder.status().failure
    assert (failure.kind, type(error_of(failure))) == ("CheckpointError", CheckpointError)
    assert "all 1 trials failed; the first: " in failure.text
    assert sweep.folder.stored().best == {}


def test_a_best_checkpoint_counts_even_if_the_trial_had_no_time_to_report_it(tmp_path):
    sweep = make_driver(tmp_path)
    folder = open_trial(sweep, 0)
    shutil.rmtree(save(folder, 50, 0.25, best_step=50))
    folder.report(50, {"val/mask_ap": 0.25}, is_best=True)
    save(folder, 100, 0.5, best_step=100)  # which removed the one before
    sweep.close(Trial(0, {}, 0), "stopped")
    result = conclude(sweep)
    assert (result.status, result.best.status, result.best.value) == ("finished", "stopped", 0.5)
    assert load_about(result.best_checkpoint)["step"] == result.best.best_step == 100
    assert sweep.folder.stored().best["val/mask_ap"] == 0.5


def test_a_sweep_whose_trials_all_failed_alike_has_failed_for_that_reason(tmp_path):
    sweep = make_driver(tmp_path)
    for number in range(2):
        trial = Trial(number, {"qam.k_top": 1}, seed=number)
        sweep.open(trial)
        sweep.payload.trial_folder(trial).finish(
            "failed", Failure("NonFiniteLossError", f"step {number}")
        )
        sweep.close(Trial(number, {}, 0), "failed")
    result = conclude(sweep)
    assert (result.status, result.best, len(result.table.failed)) == ("failed", None, 2)
    failure = sweep.folder.status().failure
    assert failure == Failure("NonFiniteLossError", "all 2 trials failed; the first: step 0")


def test_after_an_interruption_no_trial_is_left_running(tmp_path):
    sweep = make_driver(tmp_path)
    trial = Trial(0, {"qam.k_top": 1}, seed=0)
    sweep.open(trial)
    sweep.payload.trial_folder(trial).start()
    sweep.close_all(interrupted=True)
    assert sweep.payload.trial_folder(trial).stored().status == "interrupted"
    sweep.supervisor.signals.stop()
    assert conclude(sweep).status == "interrupted"


def test_no_trial_is_opened_once_the_sweep_is_to_stop(tmp_path):
    sweep = make_driver(tmp_path)
    sweep.folder.request_stop()
    sweep.open(Trial(0, {"qam.k_top": 1}, seed=0))
    assert not sweep.payload.trial_folder(Trial(0, {}, 0)).path.exists()


def test_a_trial_that_starts_as_the_sweep_is_to_stop_is_left_for_the_resume(tmp_path):
    sweep = make_driver(tmp_path)
    trial = Trial(0, {"qam.k_top": 1}, seed=0)
    sweep.open(trial)
    sweep.folder.request_stop()
    # as Tune tells it when the process returns without a result
    sweep.close(Trial(0, {}, 0), "stopped")
    assert sweep.payload.trial_folder(trial).stored().status == "interrupted"


def test_best_is_the_best_seed_of_the_setting_with_the_best_mean():
    rows = [
        make_row(0, 0.9, seed=0, k=1),
        make_row(1, 0.1, seed=1, k=1),
        make_row(2, 0.6, seed=0, k=2),
        make_row(3, 0.7, seed=1, k=2),
    ]
    assert SweepTable(Criterion("m"), rows, seeds=2).best().id == "x-03"
    assert SweepTable(Criterion("m", "min"), rows, seeds=2).best().id == "x-01"


def test_a_stopped_trial_is_best_only_if_none_finished():
    rows = [make_row(0, 0.9, "stopped"), make_row(1, 0.2), make_row(2, None, "failed")]
    assert SweepTable(Criterion("m"), rows).best().id == "x-01"
    assert SweepTable(Criterion("m"), [rows[0], rows[2]]).best().id == "x-00"
    assert SweepTable(Criterion("m"), [rows[2]]).best() is None


def test_a_setting_with_a_failed_seed_gives_way_to_a_whole_one():
    rows = [
        make_row(0, 0.9, seed=0, k=1),
        make_row(1, None, "failed", seed=1, k=1),
        make_row(2, 0.2, seed=0, k=2),
        make_row(3, 0.3, seed=1, k=2),
    ]
    assert SweepTable(Criterion("m"), rows, seeds=2).best().id == "x-03"


def test_the_table_ranks_by_the_mode_and_shows_seeds_only_if_they_differ():
    rows = [make_row(0, 0.1), make_row(1, 0.3), make_row(2, None, "failed")]
    lines = markdown_table(SweepTable(Criterion("m", "min"), rows)).splitlines()
    assert lines[0] == "| trial | qam.k_top | m | step | status |"
    assert [line.split()[1] for line in lines[2:]] == ["00", "01", "02"]
    several = markdown_table(
        SweepTable(Criterion("m"), [make_row(0, 0.1, seed=1), make_row(1, 0.3)])
    )
    assert "| seed |" in several


def test_settings_are_shown_by_the_last_part_of_their_name():
    assert (
        describe({"qam.iou_thr": 0.612345, "qam.fusion": "vote"}) == "iou_thr=0.6123 fusion=vote"
    )


@pytest.mark.parametrize(
    ("resources", "cpus", "limit", "expected"),
    [
        ({"workers": 1, "cpus_per_worker": 1}, 2, None, 2),
        ({"workers": 2, "cpus_per_worker": 1}, 5, None, 2),
        ({"workers": 1, "cpus_per_worker": 0.5}, 2, None, 4),
        ({"workers": 1, "cpus_per_worker": 1}, 8, 3, 3),
        ({"workers": 2, "cpus_per_worker": 1, "gpus_per_worker": 1}, 64, None, 2),
        (
            {"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0.4},
            64,
            None,
            8,
        ),  # two on each GPU, not ten on four
        (
            {"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0.1},
            16,
            None,
            16,
        ),  # not 40: each needs a core
        ({"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 3}, 16, None, 1),
    ],
)
def test_as_many_trials_run_together_as_fit(tmp_path, resources, cpus, limit, expected):
    values = {"storage": tmp_path, "resources": resources, "sweep": {"concurrency": limit}}
    spec = SweepSpec.model_validate(values)
    assert concurrency(spec, [{"CPU": cpus, "GPU": 4}]) == expected


def test_a_worker_needs_one_node_that_holds_it_whole(tmp_path):
    values = {"storage": tmp_path, "resources": {"workers": 2, "cpus_per_worker": 2}}
    spec = SweepSpec.model_validate(values)
    three_halves = [
        {"CPU": 3.0, "memory": 1.0}
    ] * 4  # 12 cores, but a place for one worker on each node
    assert concurrency(spec, three_halves) == 2
    assert concurrency(spec, [{"CPU": 0.0}, *three_halves]) == 2, (
        "a head without cores counts for nothing"
    )
    assert concurrency(spec, [{"CPU": 12.0}]) == 3

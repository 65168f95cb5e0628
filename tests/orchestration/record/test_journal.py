"""An interrupted sweep is found again, with all its trials, from its journal and folders alone."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from boxseg.engine.checkpoint import save_checkpoint
from boxseg.errors import ConfigError
from boxseg.files.writing import write_atomic
from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import RunSpec, SweepConfig, SweepSpec
from orchestration.record.failures import Failure
from orchestration.record.find_runs import find_run
from orchestration.record.journal import count_ended, drive_sweep, newest_sweep, read_past
from orchestration.record.origin import look_at_data
from orchestration.record.resume import (
    choose_start,
    extend_sweep,
    find_done_sweep,
    find_newest_run,
    find_sweep,
)
from orchestration.record.run_folder import RunFolder, RunStatus, own_process
from orchestration.record.trial import Trial

SWEEP_ID = "20260101-000000-aaaa"
TRIALS = [Trial(number, {"qam.k_top": number + 1}, 7) for number in range(4)]


def make_spec(storage: Path, **changes) -> SweepSpec:
    space = {"qam.k_top": {"choice": [1, 2, 3, 4]}}
    return SweepSpec.model_validate(
        {"name": "toy", "storage": storage, "sweep": {"space": space}} | changes
    )


def make_sweep(storage: Path, sweep_id: str = SWEEP_ID, **status) -> RunFolder:
    folder = RunFolder(storage / "toy" / sweep_id)
    told = RunStatus(
        sweep_id, "toy", kind="sweep", **{"created": 1.0, "status": "interrupted", **status}
    )
    return folder.create(told, dump_resolved(make_spec(storage)))


def make_planned(storage: Path) -> SweepConfig:
    """Settings of a sweep that draws `TRIALS`."""
    return make_spec(storage).sweep.model_copy(update={"seeds": [7]})


def make_trial(sweep: RunFolder, trial: Trial, status: str) -> RunFolder:
    folder = RunFolder(sweep.path / f"{sweep.path.name}-{trial.number:02d}")
    tags = {"trial": str(trial.number), "seed": str(trial.seed)}
    told = RunStatus(folder.path.name, "toy", values=trial.values, tags=tags, **own_process())
    folder.create(told, "name: toy")
    folder.report(10, {"val/mask_ap": 0.1 * trial.number}, is_best=True)
    folder.update(status=status)
    return folder


def test_useless_checkpoints_of_an_ended_trial_are_removed(tmp_path):
    sweep = make_sweep(tmp_path)
    checkpoints = make_trial(sweep, TRIALS[0], "finished").path / "checkpoints"
    checkpoints.mkdir()
    for step in (2, 4, 6, 8, 10):
        save_checkpoint(checkpoints, step=step, files={}, about={"best_step": min(step, 4)})
    read_past(sweep, make_planned(tmp_path))
    assert [int(path.name[-2:]) for path in sorted(checkpoints.iterdir())] == [4, 8, 10]


def test_trials_are_known_by_the_journal_or_by_their_folder(tmp_path):
    sweep = make_sweep(tmp_path)
    for trial in (TRIALS[0], TRIALS[1], TRIALS[3]):
        sweep.note("trial_drawn", **asdict(trial))
    with sweep.journal_path.open("ab") as file:
        file.write(b'{"time": 1, "event": "trial_dra')  # the line of trial 2 was torn
    make_trial(sweep, TRIALS[0], "finished")
    waiting = make_trial(sweep, TRIALS[1], "running")
    make_trial(sweep, TRIALS[2], "stopped")
    past = read_past(sweep, make_planned(tmp_path))
    assert [(row.number, row.values, row.seed) for row in past] == [
        (trial.number, trial.values, trial.seed) for trial in TRIALS
    ]
    assert [(row.has_ended, row.value) for row in past] == [
        (True, 0.0),
        (False, 0.1),
        (True, 0.2),
        (False, None),
    ]
    assert waiting.stored().status == "created"


def test_a_trial_with_a_damaged_status_is_run_from_what_the_journal_says(tmp_path):
    sweep = make_sweep(tmp_path)
    sweep.note("trial_drawn", **asdict(TRIALS[0]))
    trial = make_trial(sweep, TRIALS[0], "finished")
    trial.status_path.write_text('{"id": "2026')
    (row,) = read_past(sweep, make_planned(tmp_path))
    assert (row.number, row.values, row.seed, row.has_ended, row.value) == (
        0,
        {"qam.k_top": 1},
        7,
        False,
        None,
    )
    assert not trial.status_path.exists()


def test_every_line_of_the_journal_is_whole(tmp_path):
    sweep = make_sweep(tmp_path)
    sweep.note("trial_drawn", **asdict(TRIALS[0]))
    (line,) = sweep.journal_path.read_text().splitlines()
    assert json.loads(line).items() >= {"event": "trial_drawn", "number": 0, "seed": 7}.items()


def test_the_newest_sweep_is_the_one_that_began_last_even_if_the_clock_was_set(tmp_path):
    make_sweep(tmp_path, "20360101-000000-aaaa", created=9.0)  # its clock was ahead
    newest = make_sweep(tmp_path, "20260101-000000-aaaa", created=2.0)
    assert newest_sweep(tmp_path, "toy").path == newest.path
    assert find_run(tmp_path, "toy").path == newest.path


def test_the_newest_sweep_counts(tmp_path):
    make_sweep(tmp_path)
    newer = make_sweep(tmp_path, "20260101-000001-aaaa", created=2.0)
    run = RunFolder(tmp_path / "toy" / "20260101-000002-aaaa")
    run.create(RunStatus(run.path.name, "toy", created=3.0), "name: toy")
    assert newest_sweep(tmp_path, "toy").path == newer.path
    assert newest_sweep(tmp_path, "other") is None


def test_a_name_whose_sweep_was_interrupted_needs_a_decision(tmp_path):
    spec = make_spec(tmp_path)
    assert find_sweep(spec) is None
    with pytest.raises(ConfigError, match="no interrupted sweep toy"):
        find_sweep(spec, "resume")
    folder = make_sweep(tmp_path)
    with pytest.raises(
        ConfigError, match=r"was interrupted; go on with it by --resume, or .* with --new"
    ):
        find_sweep(spec)
    assert find_sweep(spec, "new") is None
    assert find_sweep(spec, "resume").path == folder.path


def test_an_ended_sweep_does_not_block_its_name(tmp_path):
    make_sweep(tmp_path, status="finished")
    assert find_sweep(make_spec(tmp_path)) is None


def test_a_sweep_that_its_driver_could_not_end_blocks_nothing_and_can_be_resumed(tmp_path):
    folder = make_sweep(tmp_path, status="failed")
    folder.note("sweep_start")
    assert find_sweep(make_spec(tmp_path)) is None
    assert find_sweep(make_spec(tmp_path), "resume") is not None
    folder.note("sweep_end", status="failed")
    with pytest.raises(ConfigError, match="no interrupted sweep toy"):
        find_sweep(make_spec(tmp_path), "resume")


def test_a_running_sweep_is_not_driven_twice(tmp_path):
    folder = make_sweep(tmp_path, status="running", pid=12, tags={"host": "there"})
    with (
        drive_sweep(folder),
        pytest.raises(ConfigError, match=r"is running in process 12 on there; .*--new"),
    ):
        find_sweep(make_spec(tmp_path), "resume")
    assert find_sweep(make_spec(tmp_path), "resume") is not None, "its process is gone"


def test_a_sweep_cannot_go_on_with_other_settings(tmp_path):
    make_sweep(tmp_path)
    with pytest.raises(ConfigError, match=r"other settings: qam\.vote_thr 0\.4 \(the sweep has"):
        find_sweep(make_spec(tmp_path, qam={"vote_thr": 0.4}), "resume")
    same = {"space": {"qam.k_top": {"choice": [1, 2, 3, 4]}}, "concurrency": 1}
    assert find_sweep(make_spec(tmp_path, sweep=same), "resume") is not None


def test_a_space_may_change_as_long_as_it_holds_what_was_drawn(tmp_path):
    sweep = make_sweep(tmp_path)
    sweep.note("trial_drawn", **asdict(TRIALS[0]))
    make_trial(sweep, TRIALS[1], "finished")

    def with_space(**space) -> SweepSpec:
        return make_spec(tmp_path, sweep={"space": space, "search": "random", "seeds": [7]})

    before = with_space(**{"qam.k_top": {"choice": [1, 2, 3, 4]}})
    write_atomic(sweep.config_path, dump_resolved(before))
    for domain in ({"choice": [2, 9, 1]}, {"randint": [1, 50]}):
        spec = with_space(**{"qam.k_top": domain})
        assert find_sweep(spec, "resume").path == sweep.path
        assert extend_sweep(spec, sweep).sweep.space == spec.sweep.space
    with pytest.raises(
        ConfigError,
        match=r"trial 1 of .* is outside of sweep\.space: qam\.k_top is 2, which .*; widen",
    ):
        find_sweep(with_space(**{"qam.k_top": {"choice": [1, 3, 4, 5]}}), "resume")
    more_names = {"qam.k_top": {"choice": [1, 2, 3, 4]}, "qam.iou_thr": {"uniform": [0, 0.9]}}
    with pytest.raises(
        ConfigError, match=r"has the new name qam\.iou_thr, and .* qam\.k_top; vary"
    ):
        find_sweep(with_space(**more_names), "resume")
    with pytest.raises(ConfigError, match=r"has the new name qam\.iou_thr, and"):
        find_sweep(with_space(**{"qam.iou_thr": {"uniform": [0, 0.9]}}), "resume")


def test_seeds_are_added_and_never_lost(tmp_path):
    sweep = {"space": {"qam.k_top": {"choice": [1, 2, 3, 4]}}, "trials": 4, "seeds": [5, 7]}
    folder = make_sweep(tmp_path, status="finished")
    folder.note("sweep_end", status="finished")
    write_atomic(folder.config_path, dump_resolved(make_spec(tmp_path, sweep=sweep)))
    larger = make_spec(tmp_path, sweep=sweep | {"seeds": [1, 7, 5]})
    assert find_sweep(larger, "resume").path == folder.path, "there is more to do"
    assert extend_sweep(larger, folder).sweep.seeds == [5, 7, 1]
    smaller = make_spec(tmp_path, sweep=sweep | {"seeds": [7]})
    assert extend_sweep(smaller, folder).sweep.seeds == [5, 7]
    with pytest.raises(ConfigError, match="has ended; try more"):
        find_sweep(smaller, "resume")
    point = make_spec(tmp_path, sweep=sweep | {"points": [{"qam.k_top": 2}]})
    with pytest.raises(ConfigError, match=r"sweep\.points alone .* sweep\.trials: raise those"):
        find_sweep(point, "resume")
    with pytest.raises(ConfigError, match=r"seeds \[7, 8\] leaves out some of \[5, 7\].*--new"):
        find_sweep(make_spec(tmp_path, sweep=sweep | {"seeds": [7, 8]}), "resume")


def test_points_are_added_and_those_outside_of_a_new_space_are_left_out(tmp_path):
    space = {"qam.k_top": {"choice": [1, 2, 3, 4]}}
    sweep = {"space": space, "search": "random", "points": [{"qam.k_top": 4}, {"qam.k_top": 2}]}
    folder = make_sweep(tmp_path)
    write_atomic(folder.config_path, dump_resolved(make_spec(tmp_path, sweep=sweep)))
    other = {"space": {"qam.k_top": {"choice": [1, 2, 3]}}, "points": [{"qam.k_top": 3}]}
    spec = extend_sweep(make_spec(tmp_path, sweep=sweep | other), folder)
    assert spec.sweep.points == [{"qam.k_top": 2}, {"qam.k_top": 3}]


def test_any_sweep_can_be_named(tmp_path):
    older, newer = make_sweep(tmp_path), make_sweep(tmp_path, "20260102-000000-bbbb")
    spec = make_spec(tmp_path)
    assert find_sweep(spec, "resume").path == newer.path
    for name in (older.path.name, str(older.path)):
        assert find_sweep(spec, "resume", name).path == older.path
    assert find_sweep(spec, "more", "toy").path == newer.path
    trial = make_trial(older, TRIALS[0], "finished")
    trial.update(parent="..")
    with pytest.raises(
        ConfigError, match="aaaa-00 is not a sweep, but a trial of one; `boxseg runs"
    ):
        find_sweep(spec, "resume", trial.path.name)
    with pytest.raises(ConfigError, match=r"other settings: name other \(the sweep has toy\)"):
        find_sweep(make_spec(tmp_path, name="other"), "resume", older.path.name)


def test_only_failures_that_may_not_recur_are_tried_again(tmp_path):
    sweep = make_sweep(tmp_path, status="finished")
    planned = make_planned(tmp_path)
    kinds = ("WorkerLost", "ConfigError", "OutOfMemoryError", "NonFiniteLossError")
    for trial, kind in zip(TRIALS, kinds, strict=True):
        make_trial(sweep, trial, "failed").update(failure=Failure(kind, "gone"))
    assert count_ended(sweep, planned) == 4
    assert count_ended(sweep, planned, retry_failed=True) == 2
    assert [row.has_ended for row in read_past(sweep, planned)] == [True] * 4
    again = read_past(sweep, planned, retry_failed=True)
    assert [row.has_ended for row in again] == [False, True, False, True]
    assert find_sweep(make_spec(tmp_path), "retry_failed").path == sweep.path


def test_more_settings_are_counted_from_what_the_sweep_has(tmp_path):
    space = {"qam.iou_thr": {"uniform": [0.1, 0.8]}}
    spec = make_spec(tmp_path, sweep={"space": space, "trials": 3})
    with pytest.raises(ConfigError, match="there is no sweep toy"):
        find_sweep(spec, "more")
    folder = make_sweep(tmp_path, status="finished")
    folder.note("sweep_end", status="finished")
    write_atomic(folder.config_path, dump_resolved(spec))
    assert find_sweep(spec, "more").path == folder.path
    assert extend_sweep(spec, folder, 4).sweep.trials == 7
    with pytest.raises(ConfigError, match="has ended; try more settings in it with --more N"):
        find_sweep(spec, "resume")
    longer = make_spec(tmp_path, sweep={"space": space, "trials": 5})
    assert find_sweep(longer, "resume").path == folder.path
    assert extend_sweep(longer, folder, 0).sweep.trials == 5
    write_atomic(folder.config_path, dump_resolved(longer))
    assert extend_sweep(spec, folder, 0).sweep.trials == 5, "the file of before knows of fewer"


def test_a_space_that_is_used_up_cannot_get_more(tmp_path):
    sweep = {"space": {"qam.k_top": {"choice": [1, 2, 3, 4]}}, "trials": 4}
    spec = make_spec(tmp_path, sweep=sweep)
    folder = make_sweep(tmp_path, status="finished")
    write_atomic(folder.config_path, dump_resolved(spec))
    with pytest.raises(ConfigError, match="has all 4 trials of its space; widen"):
        extend_sweep(spec, folder, 2)


def test_a_sweep_that_its_budget_ended_can_be_resumed(tmp_path):
    spec = make_spec(tmp_path)
    folder = make_sweep(tmp_path, status="finished")
    folder.note("sweep_start")
    folder.note("sweep_end", status="finished", stopped_by="sweep.patience 2")
    assert find_sweep(spec) is None
    assert find_sweep(spec, "resume").path == folder.path


def test_auto_resume_starts_continues_and_retries_failures(tmp_path):
    spec = make_spec(tmp_path)
    assert choose_start(spec) is None
    sweep = make_sweep(tmp_path)
    sweep.note("sweep_start")
    assert choose_start(spec) == "resume"
    make_trial(sweep, TRIALS[0], "finished")
    failed = make_trial(sweep, TRIALS[1], "failed")
    sweep.note("sweep_end", status="finished")
    sweep.update(status="finished")
    assert choose_start(spec) == "retry_failed"
    failed.update(status="finished")
    write_atomic(sweep.config_path, dump_resolved(spec))
    assert (choose_start(spec), find_done_sweep(spec).path) == (None, sweep.path)
    seeds = {"sweep": {**spec.sweep.model_dump(exclude_defaults=True), "seeds": [0, 1]}}
    assert choose_start(make_spec(tmp_path, **seeds)) == "resume", "the file asks for more"
    assert find_done_sweep(make_spec(tmp_path, **seeds)) is None
    for others in ({"solver": {"lr": 1e-5}}, {"sweep": {"space": {"qam.k_top": {"choice": [7]}}}}):
        other = make_spec(tmp_path, **others)
        assert (choose_start(other), find_done_sweep(other)) == (None, None), "another sweep"
    sweep.update(tags={"data": "boxes.json", "data_fingerprint": "of other boxes"})
    annotations = spec.storage / "boxes.json"
    annotations.write_text("{}")
    source = {"images": tmp_path, "annotations": annotations}
    spec = make_spec(tmp_path, data={"train": source, "val": source})
    write_atomic(sweep.config_path, dump_resolved(spec))
    assert find_done_sweep(spec) is None, "other data"
    sweep.update(tags=look_at_data(spec))
    assert find_done_sweep(spec).path == sweep.path


@pytest.mark.parametrize("status", ["created", "interrupted", "failed"])
def test_auto_resume_of_a_run_continues_the_newest_unless_it_has_finished(tmp_path, status):
    spec = RunSpec.model_validate({"name": "toy", "storage": tmp_path})
    assert find_newest_run(spec) is None
    make_sweep(tmp_path, created=9.0)  # of the same name, but no run
    for number, (id, state) in enumerate([("old", "failed"), ("newer", status)]):
        folder = RunFolder(tmp_path / "toy" / id)
        folder.create(RunStatus(id, "toy", created=number + 1.0), "name: toy")
        folder.update(status=state)
    assert find_newest_run(spec).path.name == "newer"
    newer = RunFolder(tmp_path / "toy" / "newer")
    newer.update(status="finished")
    assert find_newest_run(spec) is None, "of other settings"
    write_atomic(newer.config_path, dump_resolved(spec))
    assert find_newest_run(spec).path.name == "newer"
    longer = spec.model_copy(update={"train": spec.train.model_copy(update={"steps": 9999})})
    assert find_newest_run(longer) is None

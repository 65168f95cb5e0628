"""Run folders survive kills, resumes and late writers, and can be found again."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest

from boxseg.errors import ConfigError, NonFiniteLossError
from boxseg.files.reading import UnreadableError
from orchestration.errors import ExitCode, ResourceError, exit_code_for
from orchestration.record.failures import Failure, error_of
from orchestration.record.find_runs import find_run, list_runs
from orchestration.record.run_folder import RunFolder, RunStatus, new_folder, new_id, own_process


def make_run(storage: Path, run_id: str = "20260101-000000-aaaa", **fields) -> RunFolder:
    fields = {"steps": 100, "created": 1.0, **own_process(), **fields}
    return RunFolder(storage / "toy" / run_id).create(
        RunStatus(run_id, "toy", **fields), "name: toy\n"
    )


@pytest.mark.parametrize("is_killed", [False, True])
def test_the_time_between_an_end_and_the_next_start_does_not_count_as_work(tmp_path, is_killed):
    now, hour = time.time(), 3600
    folder = make_run(tmp_path, created=now - 30 * hour, started=now - 30 * hour)
    folder.update(status="running", pid=2**22 + 1)
    if is_killed:
        os.utime(folder.status_path, (now - 28 * hour, now - 28 * hour))
    else:
        folder.update(status="interrupted", ended=now - 28 * hour)
    folder.open(folder.stored(), "name: toy\n")
    folder.start()  # as whoever supervises it does
    took_s = folder.finish("finished").took_s
    assert took_s == pytest.approx(2 * hour, abs=hour)
    assert folder.update(ended=1.0).took_s == 0  # the clock was set back


def test_a_status_reads_back_as_it_was_written(tmp_path):
    folder = make_run(tmp_path, values={"qam.k_top": 5}, tags={"host": "here"})
    folder.update(
        metrics={"val/mask_ap": 0.25}, failure=Failure("DataError", "bad box"), status="failed"
    )
    status = RunFolder(folder.path).status()
    assert (status.metrics, status.values) == ({"val/mask_ap": 0.25}, {"qam.k_top": 5})
    assert status.failure == Failure("DataError", "bad box")
    assert not list(folder.path.glob(".status*")), "nothing of the scratch file stays"


def test_a_damaged_status_is_named_with_a_way_out(tmp_path):
    folder = make_run(tmp_path)
    folder.status_path.write_text("{")
    with pytest.raises(
        ConfigError,
        match=r"status\.json: is damaged: .*put a copy back, or remove the run's folder",
    ):
        folder.status()


def test_a_request_to_stop_replaces_a_link_in_its_place(tmp_path):
    folder = make_run(tmp_path)
    (folder.path / "stop").symlink_to(tmp_path / "elsewhere")
    folder.request_stop()
    assert folder.stop_requested()
    assert not (tmp_path / "elsewhere").exists()


def test_a_process_that_is_to_train_waits_for_one_that_still_trains_there(tmp_path):
    folder = make_run(tmp_path)
    has_begun = threading.Event()

    def train() -> None:
        with RunFolder(folder.path).training():
            has_begun.set()

    second = threading.Thread(target=train)
    with folder.training():
        second.start()
        assert not has_begun.wait(0.2)
    assert has_begun.wait(30)
    second.join()


def test_ids_sort_by_time_and_are_short():
    assert len(new_id()) == len("20261122-171500-k3f9ab")
    assert new_id()[:15] <= new_id()[:15]


def test_a_thousand_ids_of_a_second_differ(monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda _: "20261122-171500")
    # two are alike in one of two thousand tries
    assert len({new_id() for _ in range(1000)}) >= 999


def make_folders(parent: Path, count: int) -> list[str]:
    """Make folders with ids of the same second, of which there are only 64; for a process of its own."""
    import orchestration.record.run_folder as module

    module.new_id = lambda: f"20261122-171500-{secrets.randbelow(64):02d}"
    return [new_folder(parent).path.name for _ in range(count)]


def test_starts_in_one_second_never_share_a_folder(tmp_path):
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        made = [
            name
            for names in pool.map(make_folders, [tmp_path / "toy"] * 4, [16] * 4)
            for name in names
        ]
    assert len(made) == len(set(made)) == 64
    assert len(list((tmp_path / "toy").iterdir())) == 64


def test_a_torn_last_line_is_skipped_and_the_next_report_is_whole(tmp_path):
    folder = make_run(tmp_path)
    folder.append_metrics(10, {"a": 1.0})
    with folder.metrics_path.open("ab") as file:
        file.write(b'{"step": 20, "ti')
    folder.append_metrics(30, {"a": 3.0})
    assert folder.history("a") == [(10, 1.0), (30, 3.0)]


def test_reports_are_read_on_from_where_the_last_whole_line_ended(tmp_path):
    folder = make_run(tmp_path)
    assert folder.reports_since(0) == ([], 0)
    folder.append_metrics(10, {"a": 1.0})
    with folder.metrics_path.open("ab") as file:
        file.write(b'{"step": 20, "time": 5, "metr')
    reports, offset = folder.reports_since(0)
    assert [report.step for report in reports] == [10]
    with folder.metrics_path.open("ab") as file:
        file.write(b'ics": {}}\n')
    assert [report.step for report in folder.reports_since(offset)[0]] == [20]


def test_the_journal_has_every_event_but_one_that_a_kill_tore(tmp_path):
    folder = make_run(tmp_path)
    folder.note("trial_start", trial="00", values={"qam.k_top": 5}, seed=1)
    with folder.journal_path.open("ab") as file:
        file.write(b'{"time": 1, "eve')
    folder.note("trial_end", trial="00", status="failed", cause="step 3: the loss is nan")
    events = RunFolder(folder.path).journal()
    assert [event["event"] for event in events] == ["trial_start", "trial_end"]
    assert events[0]["values"] == {"qam.k_top": 5}
    assert events[0]["time"] <= events[1]["time"]


def test_reports_after_a_resume_replace_those_beyond_its_checkpoint(tmp_path):
    folder = make_run(tmp_path)
    for step, value in ((20, 1.0), (40, 2.0), (60, 3.0)):
        folder.append_metrics(step, {"a": value})
    folder.append_metrics(40, {"a": 9.0})  # went on from a checkpoint at step 20
    assert folder.history("a") == [(20, 1.0), (40, 9.0)]


def test_training_and_evaluation_of_one_step_are_both_kept(tmp_path):
    folder = make_run(tmp_path)
    folder.append_metrics(20, {"train/loss": 1.0})
    folder.append_metrics(20, {"val/mask_ap": 0.5})
    assert folder.history("train/loss") == [(20, 1.0)]
    assert folder.history("val/mask_ap") == [(20, 0.5)]


def test_another_best_evaluation_has_everything_that_was_reported_for_it(tmp_path):
    folder = make_run(tmp_path)
    first = {"val/mask_ap": 0.2, "cost/step_s": 0.5}
    folder.report(10, {"train/loss": 1.0})
    folder.report(10, first, is_best=True)
    folder.report(20, {"val/mask_ap": 0.4, "cost/step_s": 0.6}, is_best=True)
    folder.keep_best(10, {"val/mask_ap": 0.2})
    assert (folder.stored().best_step, folder.stored().best) == (10, first)
    folder.keep_best(0, {})
    assert (folder.stored().best_step, folder.stored().best) == (None, {})


def test_values_that_are_not_finite_are_valid_json_and_absent(tmp_path):
    folder = make_run(tmp_path)
    folder.append_metrics(1, {"a": float("nan"), "b": float("inf"), "c": 1.0})
    line = folder.metrics_path.read_text()
    assert json.loads(line, parse_constant=pytest.fail)["metrics"] == {
        "a": None,
        "b": None,
        "c": 1.0,
    }
    assert [report.metrics for report in folder.reports_since(0)[0]] == [{"c": 1.0}]


def test_an_end_is_not_overwritten_by_a_later_one(tmp_path):
    folder = make_run(tmp_path)
    folder.finish("stopped")
    folder.finish("failed", RuntimeError("too late"))
    folder.report(50, {"a": 1.0})
    status = folder.status()
    assert (status.status, status.failure, status.step) == ("stopped", None, 0)
    assert not folder.metrics_path.exists()


def test_a_failure_of_ours_replaces_a_foreign_one_but_not_the_other_way_round(tmp_path):
    folder = make_run(tmp_path)
    folder.finish("failed", RuntimeError("connection closed by peer"))
    folder.finish("failed", NonFiniteLossError("step 3"))
    folder.finish("failed", RuntimeError("again"))
    assert folder.status().failure == Failure("NonFiniteLossError", "step 3")
    assert folder.status().failure.is_ours


def test_subclasses_of_our_errors_count_as_their_class():
    failure = Failure.of(
        UnreadableError(Path("a.png"), "is empty", "images are not", "replace it")
    )
    assert (failure.kind, str(failure.failure_class)) == ("DataError", "data")
    assert exit_code_for(error_of(failure)) == ExitCode.DATA


def test_the_last_line_of_a_long_foreign_text_is_kept():
    text = "\n".join(["Traceback of Ray"] * 20 + ["ValueError: the cause"])
    assert Failure.of(RuntimeError(text)) == Failure("RuntimeError", "ValueError: the cause")
    assert Failure.of(RuntimeError()).text == "RuntimeError"


def test_failures_come_back_as_their_own_class():
    assert type(error_of(Failure("ResourceError", "no GPU"))) is ResourceError
    foreign = error_of(Failure("ZeroDivisionError", "division by zero"))
    assert str(foreign) == "ZeroDivisionError: division by zero"


def test_a_stop_is_never_lost_to_a_worker_that_writes_at_the_same_time(tmp_path):
    folder = make_run(tmp_path)
    worker = threading.Thread(
        target=lambda: [folder.report(step, {"a": 1.0}) for step in range(1, 200)]
    )
    worker.start()
    RunFolder(folder.path).finish("stopped")
    worker.join()
    assert folder.status().status == "stopped"


def test_a_run_whose_process_is_gone_reads_as_interrupted(tmp_path):
    import socket

    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    gone = {"pid": process.pid, "pid_created": 1.0, "tags": {"host": socket.gethostname()}}
    assert make_run(tmp_path, "gone", status="running", **gone).status().status == "interrupted"
    alive = {**own_process(), "tags": {"host": socket.gethostname()}}
    assert make_run(tmp_path, "alive", status="running", **alive).status().status == "running"
    reused = {"pid": os.getpid(), "pid_created": 1.0, "tags": {"host": socket.gethostname()}}
    assert (
        make_run(tmp_path, "reused", status="running", **reused).status().status == "interrupted"
    )
    elsewhere = {"pid": process.pid, "pid_created": 1.0, "tags": {"host": "another"}}
    assert (
        make_run(tmp_path, "elsewhere", status="running", **elsewhere).status().status == "running"
    )


def test_a_copy_of_a_running_run_does_not_count_as_running(tmp_path):
    tags = {"host": "another machine"}
    run = RunFolder(tmp_path / "run").create(
        RunStatus("run", "toy", status="running", tags=tags, **own_process()), ""
    )
    assert run.status().status == "running"
    shutil.copytree(run.path, tmp_path / "copy")
    assert RunFolder(tmp_path / "copy").status().status == "interrupted"
    (tmp_path / "link").symlink_to(run.path)
    assert RunFolder(tmp_path / "link").status().status == "running", (
        "the same folder by another name"
    )


def test_runs_are_listed_newest_first_with_the_trials_of_sweeps(tmp_path):
    make_run(tmp_path, "old", created=1.0)
    sweep = make_run(tmp_path, "sweep", kind="sweep", created=2.0)
    RunFolder(sweep.path / "sweep-00").create(RunStatus("sweep-00", "toy", created=3.0), "")
    (tmp_path / "toy" / "broken").mkdir()
    (tmp_path / "toy" / "broken" / "status.json").write_text("{")
    assert [status.id for status in list_runs(tmp_path)] == ["sweep-00", "sweep", "old"]


def test_runs_are_found_by_folder_id_and_best(tmp_path):
    run = make_run(tmp_path, "20260101-000000-aaaa")
    sweep = make_run(tmp_path, "20260102-000000-bbbb", kind="sweep")
    trial = RunFolder(sweep.path / "20260102-000000-bbbb-03").create(
        RunStatus("20260102-000000-bbbb-03", "toy"), ""
    )
    for name in (str(run.path), "20260101-000000-aaaa"):
        assert find_run(tmp_path, name).path == run.path
    with pytest.raises(ConfigError, match="no best trial"):
        find_run(tmp_path, "best:20260102-000000-bbbb")
    sweep.update(best_run=trial.path.name)
    assert find_run(tmp_path, "best:20260102-000000-bbbb").path == trial.path
    with pytest.raises(ConfigError, match="a run and not a sweep; leave out `best:`"):
        find_run(tmp_path, f"best:{trial.path}")
    for name in ("zzzz", "aaaa", "20260101"):
        with pytest.raises(ConfigError, match="no such run"):
            find_run(tmp_path, name)
    again = RunFolder(tmp_path / "other" / run.path.name)
    again.create(RunStatus(run.path.name, "other"), "")
    with pytest.raises(ConfigError, match="2 runs fit"):
        find_run(tmp_path, run.path.name)


def test_a_name_means_the_newest_sweep_of_it_or_else_the_newest_run(tmp_path):
    make_run(tmp_path, "20260101-000000-aaaa", created=1.0)
    newest = make_run(tmp_path, "20260102-000000-bbbb", created=2.0)
    assert find_run(tmp_path, "toy").path == newest.path
    make_run(tmp_path, "20260103-000000-cccc", created=3.0, kind="sweep")
    sweep = make_run(tmp_path, "20260104-000000-dddd", created=4.0, kind="sweep")
    RunFolder(sweep.path / "x-00").create(
        RunStatus("x-00", "toy", kind="run", parent="x", created=5.0), ""
    )
    make_run(tmp_path, "20260105-000000-eeee", created=6.0)
    assert find_run(tmp_path, "toy").path == sweep.path


def test_text_that_is_not_utf8_stays_readable_in_status_and_journal(tmp_path):
    folder = RunFolder(tmp_path / "toy" / "r").create(
        RunStatus("r", "toy", **own_process()), "name: toy"
    )
    folder.note("trial_end", cause="photo \ud83d.jpg 猫")
    folder.finish("failed", Failure("DataError", "photo \udcff.jpg 猫"))
    assert folder.stored().failure.text == "photo ?.jpg 猫"
    assert [event["cause"] for event in folder.journal()] == ["photo ?.jpg 猫"]


def test_a_copy_under_another_name_continues_as_a_run_of_its_own(tmp_path):
    original = make_run(tmp_path)
    original.write_tracking({"run_id": "abc"})
    original.finish("interrupted")
    copy = RunFolder(shutil.copytree(original.path, original.path.with_name("copy")))
    assert [run.id for run in list_runs(tmp_path)] == [original.path.name]
    assert find_run(tmp_path, str(copy.path)).path == copy.path
    copy.open(RunStatus("copy", "toy", steps=100), "name: toy\n")
    assert (copy.stored().id, copy.stored().status, copy.read_tracking()) == (
        "copy",
        "running",
        {},
    )
    assert (original.stored().status, original.read_tracking()) == (
        "interrupted",
        {"run_id": "abc"},
    )
    assert {run.id for run in list_runs(tmp_path)} == {"copy", original.path.name}


def test_a_run_still_counts_as_running_after_the_clock_was_set(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "toy" / "20260101-000000-aaaa")
    tags = {"host": socket.gethostname()}
    folder.create(RunStatus("20260101-000000-aaaa", "toy", tags=tags, **own_process()), "name: t")
    folder.start()
    told = psutil.Process.create_time
    # psutil derives it from the time of day, less what has passed since the start
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: told(process) + 3600)
    assert folder.status().status == "running"
    folder.update(pid_created=own_process()["pid_created"] - 60)
    assert folder.status().status == "interrupted", "another process with the number of ours"

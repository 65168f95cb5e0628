"""A file of a run that holds something odd is named, and hides nothing beside it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import synthetic

from boxseg.errors import ConfigError
from orchestration.cli.app import run
from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import RunSpec, SweepSpec, load_sweep
from orchestration.errors import ExitCode
from orchestration.record import records
from orchestration.record.find_runs import find_run, list_runs
from orchestration.record.journal import newest_sweep, read_past
from orchestration.record.run_folder import RunFolder, RunStatus
from orchestration.record.table import read_table

DEEP = "[" * 100_000 + "]" * 100_000
ODD = [
    "",
    "5",
    "null",
    "[]",
    "{}",
    '"text"',
    "NaN",
    "{",
    "9" * 5000,
    DEEP,
    "\x00\x01",
    "\ufeff{}",
    '{"a": }',
]
"""Texts that are no record of a run, whatever the record is."""


@pytest.fixture(autouse=True)
def nothing_told_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_warned", set())


def sound(run_id: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": run_id,
        "name": "toy",
        "created": 2.0,
        "step": 1,
        "steps": 9,
        "status": "finished",
        **changes,
    }


WRONG = [
    {"id": None},
    {"id": "../up"},
    {"id": ""},
    {"name": 5},
    {"kind": "neither"},
    {"status": "paused"},
    {"created": "yesterday"},
    {"created": 1e300},
    {"created": -1},
    {"created": float("nan")},
    {"step": -3},
    {"step": 10**400},
    {"step": "7"},
    {"step": 1.5},
    {"metrics": []},
    {"metrics": {"val/mask_ap": "high"}},
    {"metrics": {"val/mask_ap": float("inf")}},
    {"best": {"val/mask_ap": None}},
    {"failure": "it broke"},
    {"failure": {"kind": 5}},
    {"retries": "twice"},
    {"values": [1]},
    {"tags": {"host": 5}},
    {"pid": 0},
    {"pid": 2**70},
    {"best_run": "../../other"},
    {"parent": "a\x00b"},
]
"""What makes a sound status unsound."""


def make_run(storage: Path, run_id: str, *, content: str | None = None) -> Path:
    folder = RunFolder(storage / "toy" / run_id)
    folder.create(
        RunStatus(run_id, "toy", created=1.0, status="finished", best={"val/mask_ap": 0.5}),
        "name: toy\n",
    )
    if content is not None:
        folder.status_path.write_text(content)
    return folder.path


@pytest.mark.parametrize("content", [*ODD, *(json.dumps(sound("odd", **each)) for each in WRONG)])
def test_an_odd_status_is_named_and_hides_no_other_run(tmp_path: Path, caplog, content: str):
    make_run(tmp_path, "good")
    odd = make_run(tmp_path, "odd", content=content)
    assert [status.id for status in list_runs(tmp_path)] == ["good"]
    assert caplog.text.count(f"{odd}/status.json: ") == 1
    list_runs(tmp_path)
    assert caplog.text.count(f"{odd}/status.json: ") == 1, "named once is enough"
    records._warned.clear()  # another command
    assert find_run(tmp_path, "good").path.name == "good"
    assert caplog.text.count(f"{odd}/status.json: ") == 1, (
        "who looks for one run is not told of others"
    )
    with pytest.raises(
        ConfigError, match=r"odd/status\.json: is damaged: .*; put a copy back, or remove"
    ):
        find_run(tmp_path, "odd").status()


def test_a_sound_status_may_have_unknown_fields(tmp_path: Path):
    make_run(tmp_path, "new", content=json.dumps(sound("new", colour="red", metrics={"a": 1})))
    assert [(status.id, status.metrics) for status in list_runs(tmp_path)] == [("new", {"a": 1.0})]


def test_anything_but_a_plain_file_is_named_and_not_waited_for(tmp_path: Path, caplog):
    make_run(tmp_path, "good")
    for number, make in enumerate(
        (Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero"))
    ):
        path = make_run(tmp_path, f"odd{number}") / "status.json"
        path.unlink()
        make(path)
    assert [status.id for status in list_runs(tmp_path)] == ["good"]
    for kind in ("a folder", "a pipe", "a device"):
        assert f"status.json: cannot be read: it is {kind}, not a file" in caplog.text


def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, caplog, monkeypatch: pytest.MonkeyPatch
):
    make_run(tmp_path, "good")
    closed = make_run(tmp_path, "closed") / "status.json"
    opened = Path.open

    def refuse(self: Path, *arguments: Any) -> Any:
        if self == closed:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *arguments)

    monkeypatch.setattr(Path, "open", refuse)
    assert [status.id for status in list_runs(tmp_path)] == ["good"]
    assert "closed/status.json: cannot be read: Permission denied; put a copy back" in caplog.text


@pytest.mark.parametrize(
    "line",
    [
        *(text for text in ODD if text),
        '{"step": "1", "time": 1, "metrics": {}}',
        '{"step": 1, "time": 1}',
        '{"step": -1, "time": 1, "metrics": {}}',
        '{"step": 1, "time": 1, "metrics": {"a": "b"}}',
        '{"step": 1, "time": NaN, "metrics": {}}',
        '{"step": 1, "time": 1, "metrics": {"a": Infinity}}',
    ],
)
def test_an_odd_line_of_the_metrics_is_left_out_and_named(tmp_path: Path, caplog, line: str):
    folder = RunFolder(make_run(tmp_path, "run"))
    folder.append_metrics(1, {"a": 1.0})
    with folder.metrics_path.open("a") as file:
        file.write(f"{line}\n{line}\n")
    folder.append_metrics(2, {"a": 2.0})
    assert folder.history("a") == [(1, 1.0), (2, 2.0)]
    assert f"{folder.metrics_path}:2 and 1 other lines: left out" in caplog.text


def test_lines_are_counted_from_the_first_one_even_if_reading_begins_later(tmp_path: Path, caplog):
    folder = RunFolder(make_run(tmp_path, "run"))
    folder.append_metrics(1, {"a": 1.0})
    _, offset = folder.reports_since(0)
    with folder.metrics_path.open("a") as file:
        file.write("5\n")
    assert folder.reports_since(offset) == ([], folder.metrics_path.stat().st_size)
    assert f"{folder.metrics_path}:2: left out" in caplog.text


def test_a_place_beyond_the_end_means_another_file_which_is_read_whole(tmp_path: Path):
    folder = RunFolder(make_run(tmp_path, "run"))
    folder.append_metrics(1, {"a": 1.0})
    assert [report.step for report in folder.reports_since(10**9)[0]] == [1]


@pytest.mark.parametrize(
    "content", [*ODD, '{"uri": 5}', '{"offset": -1}', '{"files": []}', '{"run_id": ["a"]}']
)
def test_an_odd_tracking_record_is_ignored(tmp_path: Path, content: str):
    folder = RunFolder(make_run(tmp_path, "run"))
    folder.tracking_path.write_text(content)
    assert folder.read_tracking() == {}
    assert folder.status().mlflow_run_id is None


SWEEP = "20260101-000000-aaaa"


def make_sweep(storage: Path, sweep_id: str = SWEEP) -> tuple[RunFolder, SweepSpec]:
    space = {"qam.k_top": {"choice": [1, 2, 3, 4]}}
    spec = SweepSpec.model_validate(
        {"name": "toy", "storage": storage, "sweep": {"space": space, "seeds": [7]}}
    )
    folder = RunFolder(storage / "toy" / sweep_id)
    folder.create(
        RunStatus(sweep_id, "toy", kind="sweep", status="interrupted", created=1.0),
        dump_resolved(spec),
    )
    return folder, spec


def make_trial(sweep: RunFolder, number: int, **changes: Any) -> RunFolder:
    folder = RunFolder(sweep.path / f"{sweep.path.name}-{number:02d}")
    tags = {"trial": str(number), "seed": "7"}
    status = RunStatus(
        folder.path.name, "toy", status="finished", values={"qam.k_top": number + 1}, tags=tags
    )
    folder.create(status, dump_resolved(RunSpec()))
    if changes:
        folder.status_path.write_text(
            json.dumps(json.loads(folder.status_path.read_text()) | changes)
        )
    return folder


@pytest.mark.parametrize(
    "line", [*(text for text in ODD if text), '{"event": 5}', '{"event": "trial_drawn"}']
)
def test_an_odd_line_of_the_journal_hides_no_trial(tmp_path: Path, line: str):
    sweep, spec = make_sweep(tmp_path)
    with sweep.journal_path.open("a") as file:
        file.write(f"{line}\n")
    sweep.note("trial_drawn", number=1, values={"qam.k_top": 2}, seed=7)
    (past,) = read_past(sweep, spec.sweep)
    assert (past.number, past.values, past.seed) == (1, {"qam.k_top": 2}, 7)


@pytest.mark.parametrize(
    "changes",
    [
        {"tags": {}},
        {"tags": {"trial": "one", "seed": "7"}},
        {"tags": {"trial": "9" * 30, "seed": "7"}},
        {"tags": {"trial": "8", "seed": "7"}},
        {"tags": {"trial": "1", "seed": "8"}},
        {"values": {}},
        {"values": {"qam.k_top": 99}},
        {"values": {"qam.k_top": 2, "qam.iou_thr": 0.5}},
    ],
)
def test_a_folder_that_is_not_one_of_the_sweeps_trials_is_left_out_and_named(
    tmp_path: Path, caplog, changes: dict
):
    sweep, spec = make_sweep(tmp_path)
    make_trial(sweep, 0)
    odd = make_trial(sweep, 1, **changes)
    assert [past.number for past in read_past(sweep, spec.sweep)] == [0]
    assert f"{odd.status_path}: left out, this sweep cannot have drawn such a trial" in caplog.text


def test_a_trial_with_an_odd_status_is_missing_from_the_table_and_named(tmp_path: Path, caplog):
    sweep, spec = make_sweep(tmp_path)
    make_trial(sweep, 0)
    odd = make_trial(sweep, 1)
    odd.status_path.write_text("[]")
    assert [row.id[-2:] for row in read_table(sweep.path, spec).rows] == ["00"]
    assert caplog.text.count(str(odd.status_path)) == 1


def test_an_older_sweep_does_not_replace_a_damaged_newer_one(tmp_path: Path):
    sweep, _ = make_sweep(tmp_path)
    make_run(tmp_path, "20260101-000001-aaaa", content="[]")  # no sweep: it has no journal
    assert newest_sweep(tmp_path, "toy").path == sweep.path
    newer, _ = make_sweep(tmp_path, "20260101-000002-aaaa")
    newer.note("sweep_start")
    newer.status_path.write_text("[]")
    with pytest.raises(ConfigError, match=r"000002-aaaa/status\.json: is damaged"):
        newest_sweep(tmp_path, "toy")


def test_commands_name_odd_files_and_show_all_the_others(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    storage = tmp_path / "runs"
    sweep, _ = make_sweep(storage)
    trial = make_trial(sweep, 0)
    make_trial(sweep, 1).status_path.write_text("null")
    make_run(storage, "one")
    make_run(storage, "two")
    make_run(storage, "odd", content="[]")
    with trial.metrics_path.open("w") as file:
        file.write("5\n[]\n{}\n")
    assert run(["runs", "ls", "--json"]) == ExitCode.DONE
    assert {each["id"] for each in json.loads(capsys.readouterr().out)} == {
        "one",
        "two",
        SWEEP,
        f"{SWEEP}-00",
    }
    for arguments, code in (
        (["runs", "show", SWEEP], ExitCode.DONE),
        (["runs", "show", "odd"], ExitCode.USAGE),
        (["runs", "show", f"best:{SWEEP}"], ExitCode.USAGE),
        (["runs", "show", "best:" * 5000], ExitCode.USAGE),
        (["runs", "show", "\x00"], ExitCode.USAGE),
        (["runs", "compare", "one", "two"], ExitCode.DONE),
        (["runs", "compare", "one", "odd"], ExitCode.USAGE),
        (["report", SWEEP], ExitCode.DONE),
    ):
        assert run(arguments) == code, arguments
        assert "unexpected" not in capsys.readouterr().err, arguments


def test_a_sweep_that_was_cut_off_is_shown_as_its_trials_are(tmp_path, capsys):
    # its own record was not written any more: 0 trials, no best
    folder = synthetic.write_sweep(tmp_path, settings=4)
    assert (RunFolder(folder).stored().step, RunFolder(folder).stored().best_run) == (0, None)
    assert run(["runs", "show", str(folder)]) == ExitCode.DONE
    shown = capsys.readouterr().out
    best = read_table(folder, load_sweep(folder / "config.yaml")).best()
    assert [line.split()[-1] for line in shown.splitlines() if line.startswith("best trial")] == [
        best.id
    ]
    assert "4 of 4" in shown
    assert f"{best.value:.4f}" in shown

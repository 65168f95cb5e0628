"""The command line: what goes to stdout and stderr, and how it ends."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main
from PIL import Image

from boxseg.data.toy import ensure_toy
from orchestration.cli import output
from orchestration.cli.app import app, run
from orchestration.cli.train import _print_sweep
from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import RunSpec, load_run, load_sweep
from orchestration.errors import ExitCode
from orchestration.execute.sweep import SweepResult
from orchestration.record.failures import Failure
from orchestration.record.run_folder import RunFolder, RunStatus
from orchestration.record.table import make_table

SWEEP = "name: s\nsweep: {search: grid, space: {qam.k_top: {choice: [1, 2]}}}\n"
Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def toy(capsys: Capture) -> dict[str, Any]:
    """A drawn data set: split -> its image folder and annotation file."""
    assert (
        run(
            [
                "data",
                "toy",
                "drawn",
                "--train-images",
                "3",
                "--val-images",
                "2",
                "--size",
                "64",
                "--json",
            ]
        )
        == 0
    )
    drawn: dict[str, Any] = json.loads(capsys.readouterr().out)
    return drawn


def write(text: str, name: str = "exp.yaml") -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


def make_run(
    run_id: str, *, created: float, kind: Any = "run", parent: str | None = None, **changes: Any
) -> RunFolder:
    folder = RunFolder(Path("runs/t") / run_id)
    spec = load_sweep(Path(write(SWEEP))) if kind == "sweep" else RunSpec()
    status = RunStatus(folder.path.name, "t", kind=kind, parent=parent, created=created)
    folder.create(status, dump_resolved(spec))
    folder.update(**changes)
    return folder


def test_the_version_goes_to_stdout(capsys: Capture):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("boxseg 0.")


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["train"],
        ["sweep"],
        ["data", "check"],
        ["runs", "show"],
        ["runs", "compare"],
        ["report"],
        ["config"],
        ["ui"],
        ["label"],
        ["predict"],
        ["eval"],
    ],
)
def test_every_command_has_help(capsys: Capture, command: list[str]):
    assert run([*command, "--help"]) == 0
    assert "Usage: boxseg" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["tarin"], ["train"], ["train", "x.yaml", "--nonsense"], ["ui", "--port", "x"]]
)
def test_wrong_usage_ends_with_2_and_a_message(capsys: Capture, arguments: list[str]):
    assert run(arguments) == 2
    shown = capsys.readouterr()
    assert "Error" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_wrong_setting_ends_with_2_and_one_message_without_traceback(
    capsys: Capture, command: str
):
    assert run([command, write("qam:\n  k_topp: 3\n")]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "error: exp.yaml:2: qam.k_topp is not a setting; did you mean qam.k_top?\n"


def test_too_many_workers_end_with_5_and_leave_nothing_behind(capsys: Capture):
    assert (
        run(["train", write("train: {batch_size: 4096}"), "--set", "resources.workers=4096"]) == 5
    )
    assert "workers 4096" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_missing_data_ends_with_3(capsys: Capture):
    assert run(["train", write("data: {train: {images: i, annotations: none.json}}")]) == 3
    assert "none.json" in capsys.readouterr().err


def test_unwritable_storage_ends_with_2(capsys: Capture):
    Path("file").write_text("")
    assert run(["train", write("storage: file/runs")]) == 2
    assert "a file is in the way" in capsys.readouterr().err


@pytest.fixture
def explode() -> Iterator[None]:
    """A command with a fault of ours."""

    @app.command("explode", hidden=True)
    def explode() -> None:
        raise RuntimeError("the floor is lava")

    typer.main.get_command.cache_clear()
    yield
    app.registered_commands.pop()
    typer.main.get_command.cache_clear()


@pytest.mark.usefixtures("explode")
def test_an_unexpected_error_is_one_line_below_its_traceback(capsys: Capture):
    assert run(["explode"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert shown.endswith("error: RuntimeError: the floor is lava (unexpected; details above)\n")


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_plan_starts_nothing_and_leaves_nothing(capsys: Capture, command: str):
    assert run([command, write(SWEEP), "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["trials"] == (2 if command == "sweep" else 1)
    assert plan["seconds"] > 0  # by size, as nothing was run before
    assert plan["faults"] == []
    assert sorted(path.name for path in Path().iterdir()) == ["exp.yaml"]


def test_a_plan_says_in_words_what_would_be_done(capsys: Capture):
    assert run(["sweep", write(SWEEP), "--plan", "--set", "sweep.seeds=[0, 1]"]) == 0
    shown = capsys.readouterr().out
    for words in ("sweep", "toy: 320 images", "4, ", "unknown: no earlier run", "free"):
        assert words in shown


def test_a_plan_that_could_not_start_says_why_and_ends_so(capsys: Capture):
    assert (
        run(["train", write("data: {train: {images: i, annotations: none.json}}"), "--plan"]) == 3
    )
    shown = capsys.readouterr()
    assert "not usable" in shown.out
    assert "would not start" in shown.err


def test_data_toy_draws_and_names_its_files(toy: dict[str, Any]):
    assert Path(toy["train"]["annotations"]).is_file()
    assert len(list(Path(toy["val"]["images"]).iterdir())) == 2


def test_data_check_passes_a_sound_set(capsys: Capture, toy: dict[str, Any]):
    assert (
        run(
            [
                "data",
                "check",
                toy["val"]["annotations"],
                "--images",
                toy["val"]["images"],
                "--for",
                "val",
            ]
        )
        == 0
    )
    assert "0 errors" in capsys.readouterr().err


def test_data_check_ends_with_3_and_a_table_that_names_file_and_id(
    capsys: Capture, toy: dict[str, Any]
):
    path = Path(toy["train"]["annotations"])
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] = 0
    number = content["annotations"][0]["id"]
    path.write_text(json.dumps(content))
    arguments = ["data", "check", write(f"data: {{train: {json.dumps(toy['train'])}}}")]
    assert run(arguments) == 3
    shown = capsys.readouterr()
    assert "1 errors" in shown.err
    row = next(line for line in shown.out.splitlines() if line.startswith("error"))
    assert path.name in row
    assert str(number) in row.split()
    assert run([*arguments, "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["usable"] is False
    assert found["faults"][0]["annotation_id"] == number


def test_data_check_of_a_generated_set_says_that_there_are_no_files(capsys: Capture):
    assert run(["data", "check", write("name: x")]) == 2
    assert "toy" in capsys.readouterr().err


def test_data_stats_count(capsys: Capture, toy: dict[str, Any]):
    content = json.loads(Path(toy["train"]["annotations"]).read_text())
    assert (
        run(
            [
                "data",
                "stats",
                toy["train"]["annotations"],
                "--images",
                toy["train"]["images"],
                "--json",
            ]
        )
        == 0
    )
    counts = json.loads(capsys.readouterr().out)
    assert counts["images"] == 3
    assert counts["boxes"] == len(content["annotations"]) == sum(counts["classes"].values())
    assert (
        run(["data", "stats", toy["train"]["annotations"], "--images", toy["train"]["images"]])
        == 0
    )
    assert "images with boxes" in capsys.readouterr().out


def test_runs_are_listed_newest_first(capsys: Capture):
    make_run("old", created=100.0, best={"val/mask_ap": 0.25}, status="finished")
    make_run("new", created=200.0, kind="sweep")
    assert run(["runs", "ls", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [each["id"] for each in listed] == ["new", "old"]
    assert {"id", "name", "kind", "status", "metrics", "folder"} <= set(listed[0])
    assert [each["kind"] for each in listed] == ["sweep", "run"]
    assert run(["runs", "ls"]) == 0
    assert "0.25" in capsys.readouterr().out


@pytest.mark.parametrize("width", [60, 80])
def test_ids_are_whole_in_a_narrow_terminal_and_other_columns_go_first(
    capsys: Capture, monkeypatch: Patch, width: int
):
    folder = make_run(
        "20261122-171500-3f9ckd",
        created=1.0,
        status="failed",
        failure=Failure("ValueError", "x " * 99),
    )
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert run(["runs", "ls"]) == 0
    shown = capsys.readouterr()
    lines = re.sub(r"\x1b\[\d*m", "", shown.out).splitlines()
    assert len(lines) == 2
    assert lines[1].startswith(folder.path.name)
    assert "failed" in lines[1]
    assert max(map(len, lines)) <= width
    assert "left out, as the terminal is narrow: folder, why it failed" in shown.err


def test_runs_of_one_sweep_can_be_distinguished_in_a_narrow_terminal(
    capsys: Capture, monkeypatch: Patch
):
    ids = [f"20261122-171500-3f9ckd-0{number}" for number in (0, 1)]
    for number, id in enumerate(ids):
        make_run(id, created=float(number))
    monkeypatch.setenv("COLUMNS", "44")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert run(["runs", "compare", *ids]) == 0
    shown = capsys.readouterr().out
    assert "…" not in shown
    for id in ids:  # wrapped
        assert id[-3:] in shown


def test_no_runs_are_an_empty_list_and_a_message(capsys: Capture):
    assert run(["runs", "ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert run(["runs", "ls"]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "no runs under" in shown.err


def test_a_sweep_is_shown_with_its_trials(capsys: Capture):
    make_run("sweep", created=100.0, kind="sweep", best_run="sweep-01")
    make_run(
        "sweep/sweep-01",
        created=101.0,
        parent="..",
        best={"val/mask_ap": 0.5},
        values={"qam.k_top": 2},
    )
    make_run("other", created=102.0)
    assert run(["runs", "show", "runs/t/sweep"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"trial +k_top +mask_ap", shown)
    assert re.search(r"01 ★ +2 +0\.5000", shown)
    assert re.search(r"^trials +\d+", shown, re.MULTILINE)  # they are no steps of training
    assert "other" not in shown
    assert run(["runs", "show", "sweep-01", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["best"] == {"val/mask_ap": 0.5}


def test_a_sweep_that_was_cut_off_counts_its_trials_in_json_too(capsys: Capture):
    make_run("sweep", created=100.0, kind="sweep", status="interrupted")
    best = {"val/mask_ap": 0.5}
    make_run("sweep/sweep-01", created=101.0, parent="..", status="finished", best=best)
    make_run("sweep/sweep-02", created=102.0, parent="..", status="interrupted")
    assert run(["runs", "show", "runs/t/sweep", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["step"], shown["best_run"], shown["best"]) == (2, "sweep-01", best)


def test_a_sweep_that_ended_before_its_first_trial_shows_no_table(capsys: Capture):
    spec = load_sweep(Path(write(SWEEP)))
    folder = Path("runs/t/sweep")
    nothing = make_table(spec, [])
    _print_sweep(spec, SweepResult(folder, "interrupted", nothing, None, None))
    shown = capsys.readouterr().out
    assert shown.startswith("sweep")
    assert "trial" not in shown


def test_commands_to_copy_quote_names_that_a_shell_would_split(capsys: Capture):
    Path("my set/images").mkdir(parents=True)
    spec = load_sweep(Path(write(SWEEP)), ["storage=my runs"])
    nothing = make_table(spec, [])
    _print_sweep(spec, SweepResult(Path("s"), "interrupted", nothing, None, None))
    assert f"boxseg ui --storage '{Path('my runs').absolute()}'" in capsys.readouterr().out
    assert run(["data", "check", "my set"]) == 2
    assert "`boxseg data import 'my set' --from yolo" in capsys.readouterr().err
    make_run("a sweep", created=100.0, kind="sweep", status="finished")
    assert run(["train", "--from-run", "runs/t/a sweep"]) == 2
    assert "t/a sweep/config.yaml'`" in capsys.readouterr().err


def test_failures_are_listed_and_shown_with_their_cause_on_one_line(capsys: Capture):
    late = Failure("ResourceError", "Ray does not start: raylet: Timed out\nand more")
    make_run("sweep", created=100.0, kind="sweep", status="failed", failure=late)
    make_run(
        "sweep/sweep-00",
        created=101.0,
        parent="..",
        status="failed",
        failure=Failure("DataError", "no t.json"),
    )
    make_run(
        "again",
        created=102.0,
        status="running",
        failure=Failure("WorkerLost", "the process ended"),
    )
    assert run(["runs", "ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [
        line
        for line in lines
        if "Ray does not start: raylet: Timed out" in line and "and more" not in line
    ]
    assert not [line for line in lines if "the process ended" in line], "it runs again"
    assert run(["runs", "show", "runs/t/sweep"]) == 0
    shown = capsys.readouterr().out
    assert "ResourceError: Ray does not start: raylet: Timed out" in shown
    assert "data: no t.json" in shown


def test_an_unknown_run_ends_with_2(capsys: Capture):
    assert run(["runs", "show", "nobody"]) == 2
    assert "nobody" in capsys.readouterr().err


def test_shown_settings_load_again_and_say_where_they_come_from(capsys: Capture):
    path = write("name: x\nqam: {k_top: 7}\nmethod: qam\nprofile: paper\n")
    assert run(["config", "show", path, "--set", "train.steps=9"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "k_top: 7  # exp.yaml:2",
        "steps: 9  # --set train.steps",
        "fusion: weighted  # profile paper",
        "  on: false  # method qam",
        "iou_thr: 0.5  # default",
    ):
        assert words in shown
    assert load_run(Path(write(shown, "again.yaml"))) == load_run(Path(path), ["train.steps=9"])


def test_shown_settings_of_a_sweep_are_those_that_it_uses(capsys: Capture):
    path = write("sweep: {search: grid, space: {qam.k_top: {choice: [1]}}}\n")
    assert run(["config", "show", path]) == 0
    shown = capsys.readouterr().out
    assert "search: grid  # exp.yaml:1" in shown
    assert load_sweep(Path(write(shown, "again.yaml"))) == load_sweep(Path(path))


def test_shown_settings_as_json_name_every_origin(capsys: Capture):
    assert run(["config", "show", write(SWEEP), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["sweep.search"] == {"value": "grid", "from": "exp.yaml:2"}
    assert shown["storage"]["from"] == "default"


def test_the_schema_describes_every_setting(capsys: Capture):
    assert run(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["$defs"]["QamConfig"]["properties"]["k_top"]["description"].startswith(
        "Candidates kept"
    )


def test_ui_without_a_store_says_what_makes_one(capsys: Capture):
    assert run(["ui"]) == 2
    assert "boxseg train" in capsys.readouterr().err


def test_json_output_has_no_numbers_that_json_does_not_know(capsys: Capture):
    output.print_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": Path("x")})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": "x"}


def test_configuration_errors_load_neither_torch_nor_ray(tmp_path: Path):
    (tmp_path / "x.yaml").write_text("qam: {k_top: 0}\nmodel: {backbone: resnet5}")
    program = (
        "import sys\nfrom orchestration.cli.app import run\n"
        "code = run(['sweep', 'x.yaml'])\nprint(code, sorted({'torch', 'ray', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ},
    )
    assert done.stdout.strip() == "2 []"
    assert "resnet50" in done.stderr


@pytest.mark.parametrize("reader", ["head -1", "true"])  # the second has left before we begin
def test_a_reader_that_leaves_early_is_no_error(reader: str):
    command = (
        f"{sys.executable} -m orchestration.cli config schema | {reader}; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_outputs_are_no_error(closed: str):
    command = f"{sys.executable} -m orchestration.cli runs ls --storage none {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_a_current_folder_that_is_gone_is_reported(tmp_path: Path, capsys: Capture):
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    try:
        assert run(["runs", "ls"]) == 2
    finally:
        os.chdir(tmp_path)
    assert "the current folder is gone; change to another" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_after_a_command_has_ended_changes_neither_its_exit_code_nor_its_output(number):
    program = (
        "import atexit, os\nfrom orchestration.cli.app import main\n"
        f"atexit.register(os.kill, os.getpid(), {int(number)})\nmain(['config', 'schema'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "properties" in json.loads(done.stdout)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_a_command_without_state_is_reported_and_ends_it_like_a_second_one(number):
    program = (
        "import os, signal\nfrom orchestration.cli.app import main\nfrom orchestration.config import spec\n"
        # jobs in the background of a shell, and under nohup, begin with these ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        f"spec.load_run = lambda *_: os.kill(os.getpid(), {int(number)})\nmain(['train', 'any.yaml'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_data_split_writes_two_files_that_pass_the_check(capsys: Capture, toy: dict[str, Any]):
    arguments = [
        "data",
        "split",
        toy["train"]["annotations"],
        "--val",
        "0.4",
        "--json",
        "--output",
    ]
    assert run([*arguments, "parts"]) == 0
    parts = json.loads(capsys.readouterr().out)
    counts = []
    for part in parts.values():
        assert run(["data", "check", part["annotations"], "--images", part["images"]]) == 0
        counts.append(len(json.loads(Path(part["annotations"]).read_text())["images"]))
    assert counts == [2, 1]
    assert run([*arguments, "again"]) == 0
    assert Path("again/val.json").read_bytes() == Path("parts/val.json").read_bytes()


def test_data_split_overwrites_nothing_and_explains_wrong_use(
    capsys: Capture, toy: dict[str, Any]
):
    path = Path(toy["train"]["annotations"])
    before = path.read_bytes()
    arguments = ["data", "split", str(path), "--output"]
    assert run([*arguments, str(path.parent)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert run([*arguments, "out", "--group", "colour"]) == 2
    assert run(["data", "split", "none.json", "--output", "out"]) == 3
    assert not Path("out").exists()


def test_a_data_set_in_another_format_is_imported_next_to_its_images(
    capsys: Capture, tmp_path: Path
):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "data.yaml").write_text("names: [car]\nval: images\n")
    for stem in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{stem}.png")
        (tmp_path / "labels" / f"{stem}.txt").write_text("0 0.5 0.5 1 1\n")
    command = ["data", "import", ".", "--from", "yolo", "--output"]
    assert run([*command, "all", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written == {"val": {"images": str(tmp_path), "annotations": "all/val.json"}}
    content = json.loads(Path("all/val.json").read_text())
    assert [each["bbox"] for each in content["annotations"]] == [[0, 0, 8, 8]] * 2
    content["images"] = content["images"][:1]
    Path("some.json").write_text(json.dumps(content))
    assert run([*command, "rest", "--exclude", "some.json"]) == 0
    told = capsys.readouterr()
    assert told.out == f"val: {{images: {tmp_path}, annotations: rest/val.json}}\n"
    assert "1 images left out of the 1 names in some.json" in told.err
    (left,) = json.loads(Path("rest/val.json").read_text())["images"]
    assert left["file_name"] == "images/b.png"
    assert run(["data", "import", "all", "--from", "voc", "--output", "x"]) == 3
    assert not Path("x").exists()


def test_every_format_of_the_command_has_a_converter():
    from boxseg.formats import Format
    from boxseg.formats.convert import CONVERTERS

    assert set(get_args(Format)) == set(CONVERTERS)


def test_a_second_interruption_ends_as_shells_expect(monkeypatch: Patch, capsys: Capture):
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestration.config.spec.load_sweep", interrupted)
    assert run(["sweep", "any.yaml"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("number", "code", "way_out"),
    [
        (errno.ENOSPC, 5, "make room"),
        (errno.EISDIR, 2, "a file is needed there"),
        (errno.EACCES, 2, "change its rights"),
        (errno.ENOENT, 1, "unexpected; details above"),
    ],
)
def test_faults_of_the_disk_are_reported(
    number: int, code: int, way_out: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number), "out.json")

    monkeypatch.setattr("boxseg.data.toy.ensure_toy", refuse)
    assert run(["data", "toy", "x"]) == code
    shown = capsys.readouterr().err
    assert "out.json" in shown
    assert way_out in shown


def test_a_plan_counts_what_a_sweep_is_extended_to(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "exp.yaml"
    file.write_text(
        "name: plan\ndata: {toy: {train_images: 4, val_images: 2, size: 64}}\n"
        "sweep: {trials: 3, seeds: [0, 1], space: {qam.iou_thr: {uniform: [0.3, 0.6]}}}\n"
    )
    folder = RunFolder(tmp_path / "runs" / "plan" / "20260101-000000-aaaa")
    status = RunStatus(folder.path.name, "plan", kind="sweep", status="finished", created=1.0)
    folder.create(status, dump_resolved(load_sweep(file)))
    assert run(["sweep", str(file), "--more", "2", "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trials"] == 10
    assert run(["sweep", str(file), "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trials"] == 6
    assert run(["sweep", str(file), "--more", "2", "--new"]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_a_plan_of_what_cannot_go_on_is_refused_as_the_sweep_is(tmp_path: Path, capsys: Capture):
    file = write(SWEEP + "data: {toy: {train_images: 2, val_images: 1, size: 64}}\n")
    for name in ("20260101-000000-aaaa", "20260102-000000-bbbb"):
        folder = RunFolder(tmp_path / "runs" / "s" / name)
        tags = {"data": "old.json", "data_fingerprint": "0" * 16}
        status = RunStatus(name, "s", kind="sweep", status="interrupted", tags=tags)
        folder.create(status, dump_resolved(load_sweep(Path(file))))
    # nothing is known of a generated set that is not there
    assert run(["sweep", file, "--resume", "--plan"]) == 0
    ensure_toy(tmp_path / "runs" / ".data", load_sweep(Path(file)).data.toy)
    assert run(["sweep", file, "--resume", "--plan"]) == ExitCode.DATA
    assert "of 20260102-000000-bbbb had the fingerprint 0000" in capsys.readouterr().err
    assert run(["sweep", file, "20260101-000000-aaaa", "--more", "1", "--plan"]) == ExitCode.DATA
    assert "of 20260101-000000-aaaa had the fingerprint 0000" in capsys.readouterr().err
    run_folder = RunFolder(tmp_path / "runs" / "s" / "20260103-000000-cccc")
    status = RunStatus(run_folder.path.name, "s", status="interrupted", tags=tags)
    run_folder.create(status, dump_resolved(load_run(Path(file))))
    assert run(["train", file, "--resume", status.id, "--plan"]) == ExitCode.DATA
    other = ["--set", "solver.lr=0.5", "--plan"]
    assert run(["train", file, "--resume", status.id, *other]) == ExitCode.USAGE
    capsys.readouterr()
    said = "say what to do with this sweep: --resume"
    no_name = "takes no sweep; leave the name out"
    for arguments, told in (
        (["--plan"], said),
        ([], said),
        (["--new"], f"--new {no_name}"),
        (["--auto-resume"], f"--auto-resume {no_name}"),
    ):
        assert run(["sweep", file, "20260101-000000-aaaa", *arguments]) == ExitCode.USAGE
        assert told in capsys.readouterr().err


def test_auto_resume_runs_nothing_after_everything_ended_well(tmp_path: Path, capsys: Capture):
    file = write(SWEEP)
    sweep = RunFolder(tmp_path / "runs/s/20260101-000000-aaaa")
    status = RunStatus(sweep.path.name, "s", kind="sweep", status="finished", created=1.0)
    sweep.create(status, dump_resolved(load_sweep(Path(file))))
    for number, value in enumerate((0.2, 0.4)):
        trial = RunFolder(sweep.path / f"{sweep.path.name}-{number:02d}")
        tags = {"trial": str(number), "seed": "0"}
        values = {"qam.k_top": number + 1}
        row = RunStatus(trial.path.name, "s", values=values, tags=tags, parent="..")
        trial.create(row, "name: s\n")
        trial.report(10, {"val/mask_ap": value}, is_best=True)
        trial.finish("finished")
    sweep.note("sweep_start")
    sweep.note("sweep_end", status="finished")
    (sweep.path / "best").mkdir()
    train = RunFolder(tmp_path / "runs/s/20260102-000000-bbbb")
    status = RunStatus(train.path.name, "s", status="finished", created=2.0)
    train.create(status, dump_resolved(load_run(Path(file))))
    train.update(best={"val/mask_ap": 0.3}, best_step=5)
    before = {path: path.read_bytes() for path in tmp_path.glob("runs/**/*") if path.is_file()}

    assert run(["sweep", file, "--auto-resume", "--json"]) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert (result["id"], result["status"], result["best"]["value"]) == (
        sweep.path.name,
        "finished",
        0.4,
    )
    assert result["best"]["checkpoint"] == str(sweep.path / "best")
    assert f"{sweep.path.name} has ended well" in shown.err
    assert run(["train", file, "--auto-resume", "--json"]) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert (result["id"], result["best"]) == (train.path.name, {"val/mask_ap": 0.3})
    assert f"{train.path.name} has ended well" in shown.err
    after = {path: path.read_bytes() for path in tmp_path.glob("runs/**/*") if path.is_file()}
    assert after == before, "and leaves all as it was"
    # with other settings it begins
    assert run(["sweep", file, "--auto-resume", "--plan", "--set", "solver.lr=0.5"]) == 0
    assert "starting a new one" in capsys.readouterr().err
    assert run(["train", file, "--auto-resume", "--plan", "--set", "train.steps=7"]) == 0
    assert "starting a new one" in capsys.readouterr().err

"""The measurements for GPUs, as far as a CPU can test them: their machinery, and the whole command in small."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.gpu import speed
from benchmarks.gpu.children import ChildError, in_child
from benchmarks.gpu.place import NO_TIME, Place, Steps, attempt, in_turns
from benchmarks.gpu.run import PARTS, Report, run_part
from benchmarks.harness import Table
from benchmarks.scenario import Scenario

ROOT = Path(__file__).parents[2]


def place_for(folder, seconds=60.0):
    return Place("cpu", folder, folder, time.monotonic() + seconds)


def test_a_generator_gives_its_values_from_another_process():
    def generate(count):
        yield from ((os.getpid(), number) for number in range(count))

    found = [*in_child(generate, 2, seconds=60)]
    assert [number for _, number in found] == [0, 1]
    assert found[0][0] != os.getpid()


def test_results_from_before_a_fault_a_crash_or_a_hang_are_kept():
    def fail():
        raise ValueError("no | such\nthing")

    faults = {
        "failed: ValueError: no / such": fail,
        "the process ended with -9": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "it took more than 1 s": lambda: time.sleep(60),
    }
    for message, fault in faults.items():

        def generate(fault=fault):
            yield "first"
            fault()
            yield "never"

        values = in_child(generate, seconds=1 if "took" in message else 60)
        assert next(values) == "first"
        with pytest.raises(ChildError, match=message):
            next(values)


def test_a_failing_measurement_says_why_and_the_others_continue(tmp_path):
    found = in_turns(place_for(tmp_path), {"bad": lambda: 1 / 0, "good": lambda: None}, rounds=2)
    assert found["bad"] == "failed: ZeroDivisionError: division by zero"
    assert len(found["good"].ms) == 2


def test_nothing_is_begun_when_the_time_is_over(tmp_path):
    late = place_for(tmp_path, seconds=-1)
    assert attempt(late, lambda: 1) == NO_TIME
    assert in_turns(late, {"a": lambda: None}, rounds=1) == {"a": NO_TIME}
    assert attempt(place_for(tmp_path, seconds=5), lambda: 1, needs_s=20) == NO_TIME


def test_running_out_of_memory_is_reported_in_words(tmp_path):
    def too_large():
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert attempt(place_for(tmp_path), too_large) == "out of memory"


def test_ratios_are_those_of_rounds():
    assert Steps([2.0, 30.0, 2.2], 0).ratio(Steps([1.0, 10.0, 1.0], 0)) == 2.2


def test_each_table_is_written_at_once_and_a_failing_part_does_not_stop_the_others(tmp_path):
    path = tmp_path / "runs" / "gpu.jsonl"
    report = Report(path, {"gpu": "no GPU"})

    def grow(place):
        yield Table("Steps", ("step", "ms"), [("full", 1.0)])
        yield Table("Steps", ("step", "ms"), [("full", 1.0), ("twin", 0.5)])
        raise RuntimeError("the card is gone")

    run_part(report, "speed", grow, place_for(tmp_path))
    run_part(report, "loader", grow, place_for(tmp_path, seconds=1))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"gpu": "no GPU"}
    assert [(each["part"], each["rows"]) for each in lines[1:]] == [
        ("speed", [["full", 1.0], ["twin", 0.5]]),
        ("speed", [["speed", "failed: RuntimeError: the card is gone"]]),
        ("loader", [["loader", NO_TIME]]),
    ]
    assert "| full | 1 |" in report.markdown()


class Event:
    """An event of a GPU that takes no time."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 1000 * (end.at - self.at)


class GpuPlace(Place):
    has_gpu = True


@pytest.fixture
def pretended_gpu(tmp_path, monkeypatch):
    """A place whose GPU is this CPU: what only a GPU runs can be run, and means nothing."""

    def warn(mode):
        if mode == "warn":
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    numbers = {"memory_allocated": 1_000_000, "max_memory_allocated": 3_000_000}
    for name, number in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda number=number: number)
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", warn)
    monkeypatch.setattr(nn.Module, "compile", lambda network, mode: None)
    monkeypatch.setattr(speed, "COMPILE_S", 0)
    monkeypatch.setattr(speed, "ROUNDS", 1)
    return GpuPlace("cpu", tmp_path, tmp_path, time.monotonic() + 600)


@pytest.mark.slow
def test_parts_that_need_a_gpu_run_on_a_pretended_one(pretended_gpu):
    rig = speed.build_rig(pretended_gpu, Scenario(64, boxes=2, batch_size=2, small=True))
    *_, steps = speed.compare(rig, (1, 2))
    assert len(steps.rows) == 10
    assert all(row[4] == 2.0 for row in steps.rows)
    # The command below switches torchvision's detectors as well, which take longest.
    alone, rows = replace(rig, detectors={}), []
    for wanted in (speed.SWITCHES, speed.COMPILED):
        *_, switches = speed.switches(alone, 2, wanted, rows)
    assert len(switches.rows) == 4 * 3 + 2 * 2
    tables = [speed.limit(rig, 2), speed.stages(rig, 2), speed.requests(rig, 2)]
    for table in (steps, switches, *tables):
        assert not [cell for row in table.rows for cell in row if str(cell).startswith("failed")]
    # Above 1 on a machine that has time; another process beside this one can turn it.
    assert dict(tables[0].rows)["full step / (teacher + student)"] > 0
    assert dict(tables[2].rows)["waits"] == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(torch.cuda.is_available(), reason="runs everything in small on a CPU")
def test_the_command_runs_in_small_on_a_cpu_without_ray_and_mlflow(tmp_path):
    for missing in ("ray", "mlflow"):
        (tmp_path / f"{missing}.py").write_text("raise ImportError('not carried')")
    output = tmp_path / "gpu.jsonl"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    line = ["-m", "benchmarks", "--only", "gpu", "--minutes", "6", "--output", str(output)]
    ended = subprocess.run(
        [sys.executable, *line], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    machine, *tables = map(json.loads, output.read_text().splitlines())
    assert machine["gpu"] == "no GPU"
    assert {table["part"] for table in tables} == set(PARTS)
    cells = [str(cell) for table in tables for row in table["rows"] for cell in row]
    assert not [cell for cell in cells if cell.startswith(("failed", "stopped", NO_TIME))]
    titles = {table["title"].split(",")[0] for table in tables}
    assert {"Steps at 64²", "Gap to the limit", "Stages of a full step", "Switches"} <= titles
    assert {"Prediction", "Labels", "Waits of a full step for its images"} <= titles

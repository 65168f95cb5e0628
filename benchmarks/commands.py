"""What a command costs before and beside its training: the demo with Ray and MLflow, and its bare loop."""

from __future__ import annotations

import contextlib
import itertools
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import psutil
import yaml

from benchmarks.harness import Table
from boxseg.build import run_training
from boxseg.config.method import BoxSegConfig
from boxseg.config.presets import merge
from boxseg.engine.events import EvalReport, StartReport, StepReport
from orchestration.record.run_folder import RunFolder

DEMO = Path(__file__).parents[1] / "experiments" / "qam.yaml"
BOXSEG = [sys.executable, "-m", "orchestration.cli"]
RUNNERS = ("inline", "ray_train")
TRIALS = 4
POLL_S = 0.25
"""Time between two looks at a command's processes [s]."""
LIMIT_S = 900
"""A command that takes longer has met a machine too busy to measure on."""


def fixed_costs(folder: Path, steps: int) -> Table:
    """Time until something trains, and a step with Ray and MLflow beside one of the bare loop."""
    began, spent = time.perf_counter(), _ended_children()
    subprocess.run([*BOXSEG, "--help"], check=True, capture_output=True)
    shown = ("boxseg --help", time.perf_counter() - began, _ended_children() - spent)
    few_images = {"data": {"max_val_images": 4}, "storage": str(folder)}
    note = "The demo's network and images. CPU seconds are those of all processes of the command."
    rows = [shown, *_runs(folder, few_images, steps), *_sweeps(folder, few_images)]
    return Table("Fixed costs", ("what", "wall s, or ratio", "CPU s, or ratio"), rows, note)


def _runs(
    folder: Path, settings: dict[str, Any], steps: int
) -> Iterator[tuple[str, float, float]]:
    """Runs beside the bare loop, which is measured before and after them."""
    settings = settings | {"train": {"steps": steps, "eval_every": steps}}
    before = run_demo("bare", folder, settings)
    runs = {
        kind: run_demo("train", folder, settings | {"resources": {"runner": kind}})
        for kind in RUNNERS
    }
    wall, cpu = (
        fmean(both)
        for both in zip(before.pace(), run_demo("bare", folder, settings).pace(), strict=True)
    )
    yield "bare loop: a step", wall, cpu
    for kind, found in runs.items():
        own = found.pace()
        yield f"train, {kind}: a step / bare loop", own[0] / wall, own[1] / cpu
        yield f"train, {kind}: command to report of step 20", *found.until(_first(found.runs[0]))


def _sweeps(folder: Path, settings: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Sweeps of short trials."""
    settings = settings | {"train": {"steps": 4, "eval_every": 4, "report_every": 1}}
    demo = run_demo("sweep", folder, settings | {"sweep": {"trials": TRIALS}})
    yield "demo: command to first step", *demo.until(min(map(_first, demo.runs)))
    for kind in RUNNERS:
        alone = {"sweep": {"trials": TRIALS, "concurrency": 1}, "resources": {"runner": kind}}
        found = run_demo("sweep", folder, settings | alone)
        gaps = [
            found.between(a.stored().ended or 0, _first(b))
            for a, b in itertools.pairwise(found.runs)
        ]
        wall, cpu = map(median, zip(*gaps, strict=True))
        yield f"sweep, {kind}: end of a trial to first step of the next", wall, cpu


@dataclass(frozen=True)
class Watched:
    """A command that has ended, and what it had taken when."""

    samples: list[tuple[float, float]]
    """(seconds since 1970, CPU seconds of all its processes so far), from the start to the end."""
    runs: list[RunFolder]
    """The run, or the trials in order."""

    def until(self, moment: float) -> tuple[float, float]:
        """Wall and CPU seconds from the start to a moment."""
        return self.between(self.samples[0][0], moment)

    def between(self, start: float, end: float) -> tuple[float, float]:
        """Wall and CPU seconds between two moments."""
        times, spent = zip(*self.samples, strict=True)
        cpu = np.interp([start, end], times, spent)
        return end - start, float(cpu[1] - cpu[0])

    def pace(self) -> tuple[float, float]:
        """Wall and CPU seconds of a step, from a third of the steps on: before, ten seconds in, MLflow is loaded."""
        reports = [
            report for report in self.runs[0].reports_since(0)[0] if "train/loss" in report.metrics
        ]
        reports = [report for report in reports if 3 * report.step >= reports[-1].step]
        steps = reports[-1].step - reports[0].step
        wall, cpu = self.between(reports[0].time, reports[-1].time)
        return wall / steps, cpu / steps


def watch(line: list[str], output: Path, runs: Path | None = None) -> Watched:
    """Run a command to its end.

    Args:
        line: Program and arguments.
        output: Gets what the command prints.
        runs: Folder in which it makes the folder of its run or sweep.

    Raises:
        RuntimeError: it failed, or took too long.
    """
    before = set(runs.glob("*")) if runs else set()
    samples = [(time.time(), 0.0)]
    spent: dict[int, float] = {}
    with output.open("w") as file:
        process = psutil.Popen(line, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None and time.time() < samples[0][0] + LIMIT_S:
            spent |= _cpu_times(process)
            samples.append((time.time(), sum(spent.values())))
            time.sleep(POLL_S)
    if process.poll() is None:
        process.kill()
    if process.wait() != 0:
        raise RuntimeError(
            f"{' '.join(line)} failed, or took more than {LIMIT_S} s: {output.read_text()[-2000:]}"
        )
    made = set(runs.glob("*")) - before if runs else set()
    trials = sorted(path.parent for each in made for path in each.glob("*/status.json"))
    return Watched(samples, [RunFolder(path) for path in trials or made])


def _ended_children() -> float:
    """CPU seconds of all commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _cpu_times(process: psutil.Popen) -> dict[int, float]:
    """CPU seconds of a process and of all that it has started, by their numbers."""
    found = {}
    with contextlib.suppress(psutil.Error):
        for each in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                times = each.cpu_times()
                found[each.pid] = times.user + times.system
    return found


def run_demo(command: str, folder: Path, changes: dict[str, Any]) -> Watched:
    """The demo with other settings, by a command of boxseg or by the bare loop."""
    experiment = merge(yaml.safe_load(DEMO.read_text()), changes)
    if command != "sweep":
        del experiment["sweep"]
    path = folder / "costs.yaml"
    path.write_text(yaml.safe_dump(experiment))
    program = (
        [sys.executable, "-m", "benchmarks.commands"] if command == "bare" else [*BOXSEG, command]
    )
    (folder / experiment["name"]).mkdir(exist_ok=True)
    return watch([*program, str(path)], folder / "output.txt", folder / experiment["name"])


def _first(run: RunFolder) -> float:
    """When the run told of its first steps."""
    return next(
        report.time for report in run.reports_since(0)[0] if "train/loss" in report.metrics
    )


class Clock:
    """A reporter that writes down nothing but when each report came."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run

    def on_start(self, report: StartReport) -> None: ...

    def on_best(self, step: int, metrics: dict[str, float]) -> None: ...

    def on_update(self, step: int, metrics: dict[str, Any]) -> None: ...

    def on_step(self, report: StepReport) -> None:
        self._run.append_metrics(report.step, {"train/loss": report.metrics["train/loss"]})

    def on_eval(self, report: EvalReport) -> None: ...

    def should_stop(self) -> bool:
        return False


def main() -> None:
    """The bare loop: train what a file says, without anything of `orchestration` around it."""
    experiment = yaml.safe_load(Path(sys.argv[1]).read_text())
    config = BoxSegConfig.model_validate(
        {key: experiment[key] for key in BoxSegConfig.model_fields if key in experiment}
    )
    storage = Path(experiment["storage"])
    run = RunFolder(storage / experiment["name"] / f"bare-{time.time_ns()}")
    run.path.mkdir(parents=True)
    run_training(config, folder=run.path, data_root=storage / ".data", reporter=Clock(run))


if __name__ == "__main__":
    main()

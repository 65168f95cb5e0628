"""What reporting and MLflow take from a run, beside the same run without them."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

import orchestration.tracking.tracker
from benchmarks.commands import DEMO
from benchmarks.harness import Table, Times, ratio
from boxseg.build import run_training
from boxseg.config.method import BoxSegConfig
from boxseg.config.presets import merge
from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import RunSpec
from orchestration.execute.payload import Payload
from orchestration.execute.reporter import FileReporter
from orchestration.record.run_folder import RunFolder, RunStatus, new_id, own_process
from orchestration.tracking.tracker import Tracker

REPORT_EVERY = 4
"""Steps between reports: five times as often as the default, against the numbers that come out."""


def tracking_cost(folder: Path, rounds: int, steps: int) -> Table:
    """Steps of the demo with and without reports to files and a tracker to SQLite, in turns, in this process."""
    settings = {"storage": folder, "tracking": {"log_model": False}, "data": {"max_val_images": 1}}
    train = {"steps": steps, "eval_every": steps, "report_every": REPORT_EVERY, "panels": 0}
    demo = merge(yaml.safe_load(DEMO.read_text()), settings | {"train": train})
    del demo["sweep"]
    spec = RunSpec.model_validate(demo)
    bare, tracked = Times(), Times()
    reports, tracker = [], []
    for number in range(rounds + 1):
        alone = _Meter(None)
        _train(spec, folder / f"bare-{number}", alone)
        with _tracked_run(spec) as (own, inner, thread_time):
            meter = _Meter(inner, thread_time)
            _train(spec, own.path, meter)
        if number:  # the first warms up
            alone.add_to(bare)
            meter.add_to(tracked)
            reports.append(meter.reporting / tracked.cpu[-1])
            tracker.append((meter.marks[-1][2] - meter.marks[0][2]) / tracked.cpu[-1])
    counted = steps - REPORT_EVERY
    rows: list[tuple[Any, ...]] = [
        ("a step without [CPU s]", bare.median / counted),
        ("with / without, CPU", ratio(tracked, bare)),
        (
            "with / without, wall",
            statistics.median(a / b for a, b in zip(tracked.wall, bare.wall, strict=True)),
        ),
        ("CPU of the reports themselves [% of the steps]", 100 * statistics.median(reports)),
        ("CPU of the tracker's thread [% of the steps]", 100 * statistics.median(tracker)),
    ]
    title = f"Tracking, {counted} steps of the demo, {rounds} rounds in turns"
    note = f"A report every {REPORT_EVERY} steps. The run's start and end in MLflow lie outside of what is measured."
    return Table(title, ("what", "value"), rows, note)


class _Meter:
    """A reporter that passes on and notes when each report was done, and how long passing on took."""

    def __init__(self, inner: FileReporter | None, thread_time: Any = lambda: 0.0) -> None:
        self._inner = inner
        self._thread_time = thread_time
        self.reporting = 0.0
        """CPU seconds of the reports after the first."""
        self.marks: list[tuple[float, float, float]] = []
        """After each report: CPU seconds of the process, wall seconds, CPU seconds of the tracker."""

    def on_start(self, report: Any) -> None: ...

    def on_best(self, step: int, metrics: dict[str, float]) -> None: ...

    def on_update(self, step: int, metrics: dict[str, Any]) -> None: ...

    def on_step(self, report: Any) -> None:
        began = time.thread_time()
        if self._inner is not None:
            self._inner.on_step(report)
        self.reporting += (time.thread_time() - began) if self.marks else 0.0
        self.marks.append((time.process_time(), time.perf_counter(), self._thread_time()))

    def on_eval(self, report: Any) -> None: ...

    def should_stop(self) -> bool:
        return self._inner is not None and self._inner.should_stop()

    def add_to(self, times: Times) -> None:
        """Add what lies between the first report and the last."""
        times.cpu.append(self.marks[-1][0] - self.marks[0][0])
        times.wall.append(self.marks[-1][1] - self.marks[0][1])


@contextlib.contextmanager
def _tracked_run(spec: RunSpec) -> Iterator[tuple[RunFolder, FileReporter, Any]]:
    """A run that MLflow knows already: folder, reporter, and what tells the CPU seconds of the tracker's thread."""
    folder = RunFolder(spec.storage / spec.name / new_id())
    folder.create(
        RunStatus(folder.path.name, spec.name, steps=spec.train.steps, **own_process()),
        dump_resolved(spec),
    )
    folder.start()
    tracker = Tracker(spec.storage, spec.name, logs=folder.logs)
    tracker.add(folder)
    first_look, orchestration.tracking.tracker.FIRST_LOOK_S = (
        orchestration.tracking.tracker.FIRST_LOOK_S,
        0.0,
    )
    tracker.start()
    (thread,) = [each for each in threading.enumerate() if each.name == "tracker"]
    clock = time.pthread_getcpuclockid(thread.ident or 0)
    while not folder.read_tracking().get("described"):
        time.sleep(0.1)
    orchestration.tracking.tracker.FIRST_LOOK_S = first_look
    reporter = FileReporter(folder, Payload(spec, folder.path, spec.storage), rank=0, send=None)
    try:
        yield folder, reporter, lambda: time.clock_gettime(clock)
    finally:
        folder.finish("finished")
        tracker.close()


def _train(spec: RunSpec, folder: Path, reporter: _Meter) -> None:
    config = BoxSegConfig(**spec.model_dump(include=set(BoxSegConfig.model_fields)))
    run_training(config, folder=folder, data_root=spec.storage / ".data", reporter=reporter)

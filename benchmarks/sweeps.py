"""What a sweep costs where trials train nothing: its driver while they run, and reading, copying and resuming after."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import Table, Times, timed
from boxseg.engine.events import EvalReport
from boxseg.engine.train import Progress
from orchestration.config.spec import SweepSpec
from orchestration.execute.search import TrialQueue
from orchestration.execute.sweep import run_sweep
from orchestration.record.journal import newest_sweep, read_past
from orchestration.record.table import read_table
from orchestration.report.page import write_report
from orchestration.tracking.pages import score_name
from orchestration.tracking.store import open_client, tracking_uri
from orchestration.tracking.tracker import catch_up

NAME = "many"
LOOKS = 10
"""How often the driver is looked at while trials end."""


def many_trials(folder: Path, trials: int) -> list[Table]:
    """A sweep of that many trials by Ray Tune, as `boxseg sweep` runs it, and what is done with it afterwards.

    It has a process of its own, whose memory is that of a sweep's driver.
    """
    line = [sys.executable, "-m", "benchmarks.sweeps", str(folder), str(trials)]
    found = json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout)
    return [Table(**{**each, "columns": tuple(each["columns"])}) for each in found]


def run_trials(folder: Path, trials: int) -> list[Table]:
    """`many_trials`, in this process.

    Raises:
        RuntimeError: the sweep did not finish, or left processes behind.
    """
    spec = make_spec(folder, trials)
    watch = Watch(folder, trials)
    watch.start()
    try:
        result = run_sweep(spec, train_fn=train_nothing)
    finally:
        looks = watch.stop()
    left = [
        process
        for process in psutil.Process().children(recursive=True)
        if process.status() != "zombie"
    ]
    if result.status != "finished" or left:
        raise RuntimeError(f"the sweep ended as {result.status} and left the processes {left}")
    columns = (
        "trials ended",
        "seconds",
        "driver [MB]",
        "open files",
        "threads",
        "child processes",
        "all [MB]",
    )
    rows = [
        (
            look.ended,
            look.seconds,
            look.driver_mb,
            look.files,
            look.threads,
            look.children,
            look.all_mb,
        )
        for look in looks
    ]
    note = "Memory of all processes counts shared pages once for each."
    return [
        Table(f"A sweep of {trials} trials that train nothing", columns, rows, note),
        afterwards(spec, result.id),
    ]


def afterwards(spec: SweepSpec, sweep_id: str) -> Table:
    """Seconds of everything that reads a sweep which has ended."""
    folder = newest_sweep(spec.storage, spec.name)
    assert folder is not None

    def resume() -> None:
        TrialQueue(spec.sweep, spec.train.seed, read_past(folder, spec.sweep))

    def query() -> None:
        client = open_client(tracking_uri(spec.storage))
        (experiment,) = client.search_experiments(filter_string=f"name = '{spec.name}'")
        parent = client.search_runs(
            [experiment.experiment_id], f"tags.`boxseg.run` = '{sweep_id}'"
        )[0].info.run_id
        wanted, order = (
            f"tags.mlflow.parentRunId = '{parent}'",
            [f"metrics.`{score_name(spec.sweep.metric)}` DESC"],
        )
        found = client.search_runs(
            [experiment.experiment_id], wanted, order_by=order, max_results=1000
        )
        if len(found) != min(spec.sweep.trials, 1000):
            raise RuntimeError(f"MLflow has {len(found)} trials of {spec.sweep.trials}")

    work: dict[str, Callable[[], object]] = {
        "state of all trials from their files": lambda: read_table(folder.path, spec),
        "what `sweep --resume` reads before the next trial": resume,
        "report": lambda: write_report(folder.path),
        "rest of the copy in MLflow": lambda: catch_up(spec.storage, tracking_uri(spec.storage)),
        "MLflow: the 1,000 best trials": query,
    }
    rows = []
    for name, action in work.items():
        spent = Times()
        with timed(spent):
            action()
        rows.append((name, spent.wall[0], spent.cpu[0]))
    return Table(f"After {spec.sweep.trials} trials", ("what", "seconds", "CPU s"), rows)


def make_spec(storage: Path, trials: int) -> SweepSpec:
    """A random search without early stopping, so that every trial runs to its end."""
    values = {
        "name": NAME,
        "storage": storage,
        "data": {"toy": {"train_images": 4, "val_images": 2, "size": 64}},
        "train": {"steps": 10, "batch_size": 2},
        "sweep": {
            "search": "random",
            "trial_scheduler": "none",
            "trials": trials,
            "space": {
                "qam.iou_thr": {"uniform": [0.1, 0.9]},
                "qam.k_top": {"choice": [1, 5, 10, 20]},
            },
        },
    }
    return SweepSpec.model_validate(values)


def train_nothing(config: Any, *, folder: Path, reporter: Any, **others: Any) -> Progress:
    """A loop that only reports."""
    metrics = {"val/mask_ap": config.qam.iou_thr, "val/box_ap": 0.5}
    for step in (5, 10):
        reporter.on_eval(EvalReport(step, metrics, folder, True))
    return Progress(step=10, metrics=metrics, best=metrics)


@dataclass(frozen=True)
class Look:
    """The driver and its children at one moment."""

    ended: int
    seconds: float
    driver_mb: float
    files: int
    threads: int
    children: int
    all_mb: float


class Watch:
    """Looks at this process and its children from a thread, whenever a tenth more of the trials has ended."""

    def __init__(self, storage: Path, trials: int) -> None:
        self._storage = storage
        self._trials = trials
        self._looks: list[Look] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def start(self) -> None:
        """Begin; seconds count from here."""
        self._thread.start()

    def stop(self) -> list[Look]:
        """End; gives what was seen."""
        self._stop.set()
        self._thread.join()
        return self._looks

    def _work(self) -> None:
        began, due = time.monotonic(), 1
        while not self._stop.wait(0.2):
            folder = newest_sweep(self._storage, NAME)
            ended = folder.stored().step if folder else 0
            if ended >= due:
                self._looks.append(self._look(ended, time.monotonic() - began))
                due = max(self._trials * len(self._looks) // LOOKS, ended + 1)

    @staticmethod
    def _look(ended: int, seconds: float) -> Look:
        driver = psutil.Process()
        children = driver.children(recursive=True)
        driver_mb = memory_mb(driver)
        return Look(
            ended=ended,
            seconds=seconds,
            driver_mb=driver_mb,
            files=driver.num_fds(),
            threads=driver.num_threads(),
            children=len(children),
            all_mb=driver_mb + sum(memory_mb(child) for child in children),
        )


def memory_mb(process: psutil.Process) -> float:
    """Resident memory [MB]; 0 once the process has ended."""
    try:
        return process.memory_info().rss / 1e6
    except psutil.Error:
        return 0.0


if __name__ == "__main__":
    print(json.dumps([asdict(table) for table in run_trials(Path(sys.argv[1]), int(sys.argv[2]))]))

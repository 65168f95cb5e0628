"""Many trials that train nothing, one after the other: does the driver grow, or leave anything behind?

    python -m benchmarks.soak --trials 200

Prints what was seen every ten trials: memory, open files, threads and child processes of the driver, and memory of all
processes. Ends with 1 if the driver grew by more than the ceiling after the first quarter, or a process outlived it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

from boxseg.engine.events import EvalReport
from orchestration.config import SweepSpec
from orchestration.journal import newest_sweep
from orchestration.sweep import run_sweep

CEILING_MB = 50.0
"""How much the driver may grow after the first quarter of the trials."""


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--trials", type=int, default=200)
    trials = arguments.parse_args().trials
    with tempfile.TemporaryDirectory() as storage:
        watch = Watch(Path(storage), trials)
        watch.start()
        result = run_sweep(make_spec(Path(storage), trials), train_fn=train_nothing, progress=False)
        rows = watch.stop()
    print(f"{'ended':>6}{'seconds':>9}{'driver MB':>11}{'files':>7}{'threads':>9}{'children':>10}{'all MB':>9}")
    for row in rows:
        print(
            f"{row.ended:6d}{row.seconds:9.0f}{row.driver_mb:11.0f}{row.files:7d}{row.threads:9d}{row.children:10d}"
            f"{row.all_mb:9.0f}"
        )
    left = [process for process in psutil.Process().children(recursive=True) if process.status() != "zombie"]
    grown = rows[-1].driver_mb - rows[len(rows) // 4].driver_mb
    print(f"{len(result.table.rows)} trials {result.status}; driver grew by {grown:.0f} MB; {len(left)} processes left")
    return int(grown > CEILING_MB or bool(left) or result.status != "finished")


def make_spec(storage: Path, trials: int) -> SweepSpec:
    """A random search without early stopping, so that every trial runs to its end."""
    values = {
        "name": "soak",
        "storage": storage,
        "data": {"toy": {"train_images": 4, "val_images": 2, "size": 64}},
        "train": {"steps": 10, "batch_size": 2},
        "sweep": {
            "search": "random",
            "trial_scheduler": "none",
            "trials": trials,
            "space": {"qam.iou_thr": {"uniform": [0.1, 0.9]}},
        },
    }
    return SweepSpec.model_validate(values)


def train_nothing(config: Any, *, folder: Path, reporter: Any, **others: Any) -> SimpleNamespace:
    """A loop that only reports."""
    metrics = {"val/mask_ap": config.qam.iou_thr}
    for step in (5, 10):
        reporter.on_eval(EvalReport(step, metrics, folder, [], True))
    return SimpleNamespace(step=10, metrics=metrics, best=metrics, finished=True)


class Watch:
    """Looks at this process and its children from a thread, whenever ten more trials have ended."""

    def __init__(self, storage: Path, trials: int) -> None:
        self._storage = storage
        self._trials = trials
        self._rows: list[SimpleNamespace] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> list[SimpleNamespace]:
        self._stop.set()
        self._thread.join()
        return self._rows

    def _work(self) -> None:
        began, due = time.monotonic(), 0
        while not self._stop.wait(0.2):
            folder = newest_sweep(self._storage, "soak")
            ended = folder.stored().step if folder else 0
            if ended >= due:
                self._rows.append(self._look(ended, time.monotonic() - began))
                due = ended + 10

    def _look(self, ended: int, seconds: float) -> SimpleNamespace:
        driver = psutil.Process()
        children = driver.children(recursive=True)
        driver_mb = memory_mb(driver)
        return SimpleNamespace(
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
    sys.exit(main())

"""The content of a report: a sweep as its folders have it now, finished or not, and what it cost."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from boxseg.errors import ConfigError
from orchestration.config.spec import ResourcesConfig, SweepSpec, load_sweep
from orchestration.record.run_folder import RunFolder, RunStatus
from orchestration.record.table import SweepTable, read_table
from orchestration.record.trial import TrialStatus
from orchestration.report.stats import Curves


@dataclass(frozen=True)
class SweepRecord:
    """A sweep as its folders have it now, finished or not."""

    spec: SweepSpec
    status: RunStatus
    table: SweepTable
    curves: Curves

    @property
    def folder(self) -> Path:
        """The sweep's folder."""
        return Path(self.status.folder)

    @property
    def counts(self) -> dict[str, int]:
        """Trials by status, most frequent first."""
        return dict(Counter(row.status for row in self.table.rows).most_common())

    @property
    def is_over(self) -> bool:
        """True once all planned trials have ended."""
        # of a sweep, `steps` counts trials
        return sum(row.is_final for row in self.table.rows) >= self.status.steps

    @property
    def rungs(self) -> list[float]:
        """Steps after which weak trials were stopped; empty without early stopping."""
        # `median` compares at every evaluation instead
        has_rungs = self.spec.sweep.trial_scheduler in ("asha", "hyperband")
        return self.spec.rungs if has_rungs else []

    @property
    def retried(self) -> list[TrialStatus]:
        """Trials that were started again, however they ended."""
        return [row for row in self.table.rows if row.retries]

    @property
    def median(self) -> TrialStatus | None:
        """The trial in the middle of those with a value, by rank."""
        valued = [row for row in self.table.ranked() if row.value is not None]
        return valued[len(valued) // 2] if valued else None


def read_sweep(folder: Path) -> SweepRecord:
    """Read all of a sweep.

    Raises:
        ConfigError: the folder is not one of a sweep, or its settings do not load.
    """
    status = RunFolder(folder).status()
    if status.kind != "sweep":
        way_out = "reports are for sweeps, `boxseg runs show` is for runs"
        raise ConfigError(f"{folder}: a single run; {way_out}")
    spec = load_sweep(folder / "config.yaml")
    table = read_table(folder, spec)
    curves = {row.id: RunFolder(row.folder).history(table.metric) for row in table.rows}
    return SweepRecord(spec, status, table, curves)


@dataclass(frozen=True)
class Cost:
    """What the trials that ended cost."""

    sweep_s: float
    """From the start of the sweep to its end, or to now [s]."""
    trials_s: float
    """All trials together [s]."""
    core_h: float
    gpu_h: float
    price: float | None
    """What the GPU hours cost; None without `resources.price_per_gpu_hour`."""
    best_price: float | None
    """What those of the best trial cost."""
    trials: int
    """Trials that have ended."""
    steps: int
    """Updates done by all trials."""
    steps_planned: int
    """Updates if every trial that was begun had run to its end."""


def cost_of(record: SweepRecord) -> Cost:
    """Time and resources of a sweep."""
    rows, resources, best = record.table.rows, record.spec.resources, record.table.best()
    trials_s = sum(row.seconds or 0.0 for row in rows)
    worker_h = trials_s / 3600 * resources.workers
    gpu_h = trials_s / 3600 * resources.gpus
    began = record.status.started or record.status.created
    ended = record.status.ended or time.time()
    return Cost(
        sweep_s=ended - began,
        trials_s=trials_s,
        core_h=worker_h * resources.cpus_per_worker,
        gpu_h=gpu_h,
        price=resources.price_of(gpu_h) if gpu_h else None,
        best_price=None if best is None else price_of(best, resources),
        trials=sum(row.seconds is not None for row in rows),
        steps=sum(row.step for row in rows),
        steps_planned=sum(row.steps for row in rows),
    )


def price_of(row: TrialStatus, resources: ResourcesConfig) -> float | None:
    """What the GPUs of a trial cost; None before its end, without GPUs, or where no price is known."""
    gpu_h = (row.seconds or 0.0) / 3600 * resources.gpus
    return resources.price_of(gpu_h) if gpu_h else None


def panel_of(row: TrialStatus) -> Path | None:
    """The picture of a trial's best evaluation, or of its latest one; None where none was drawn."""
    samples = Path(row.folder) / "samples"
    # steps have leading zeros, so names of one length sort by them
    pictures = sorted(samples.glob("step-*.png"), key=lambda path: (len(path.name), path.name))
    of_best = samples / f"step-{row.best_step or 0:08d}.png"
    if of_best in pictures:
        return of_best
    return pictures[-1] if pictures else None

"""What the report of a sweep is made from, read from its run folders: trials, learning curves, cost, origin."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from boxseg.errors import ConfigError
from orchestration.config import SweepSpec, load_sweep
from orchestration.report_stats import Curves
from orchestration.run_folder import RunFolder, RunStatus
from orchestration.search_space import asha_rungs
from orchestration.table import SweepTable, TrialRow, read_table


@dataclass(frozen=True)
class SweepRecord:
    """A sweep as its folders tell it now, finished or not."""

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
        return sum(row.is_ended for row in self.table.rows) >= self.status.steps

    @property
    def rungs(self) -> list[float]:
        """Steps after which weak trials were stopped; empty without early stopping."""
        return asha_rungs(self.spec) if self.spec.sweep.trial_scheduler in ("asha", "hyperband") else []

    @property
    def failed(self) -> list[TrialRow]:
        """Trials that failed."""
        return [row for row in self.table.rows if row.status == "failed"]

    @property
    def retried(self) -> list[TrialRow]:
        """Trials that were started again, however they ended."""
        return [row for row in self.table.rows if row.retries]

    @property
    def median(self) -> TrialRow | None:
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
        raise ConfigError(f"{folder}: a single run; reports are for sweeps, `boxseg runs show` is for runs")
    spec = load_sweep(folder / "config.yaml")
    table = read_table(folder, spec)
    curves = {row.id: RunFolder(row.folder).history(table.metric) for row in table.rows}
    return SweepRecord(spec, status, table, curves)


@dataclass(frozen=True)
class Cost:
    """What the trials that ended took."""

    sweep_s: float
    """From the start of the sweep to its end, or to now [s]."""
    trials_s: float
    """All trials together [s]."""
    core_h: float
    gpu_h: float
    steps: int
    """Updates done by all trials."""
    steps_planned: int
    """Updates had every trial that was begun run to its end."""
    hours_by_status: dict[str, float]
    """Trial status -> hours of all its trials."""


def cost_of(record: SweepRecord) -> Cost:
    """Time and resources of a sweep."""
    rows, resources = record.table.rows, record.spec.resources
    hours: dict[str, float] = {}
    for row in rows:
        hours[row.status] = hours.get(row.status, 0.0) + (row.seconds or 0.0) / 3600
    total = sum(hours.values())
    began, ended = record.status.started or record.status.created, record.status.ended or time.time()
    return Cost(
        sweep_s=ended - began,
        trials_s=3600 * total,
        core_h=total * resources.workers * resources.cpus_per_worker,
        gpu_h=total * resources.workers * resources.gpus_per_worker,
        steps=sum(row.step for row in rows),
        steps_planned=sum(row.steps for row in rows),
        hours_by_status=hours,
    )


def panel_of(row: TrialRow) -> Path | None:
    """The picture of a trial's best evaluation, or of its latest one; None where none was drawn."""
    pictures = sorted((row.folder / "samples").glob("step-*.png"))
    of_best = row.folder / "samples" / f"step-{row.best_step or 0:08d}.png"
    return of_best if of_best in pictures else pictures[-1] if pictures else None


def commands_for(record: SweepRecord) -> list[tuple[str, str]]:
    """(what it does, command) to repeat the sweep or its best trial, and to go on from here."""
    tags, config = record.status.tags, _quoted(record.folder / "config.yaml")
    commands = []
    if "git_commit" in tags:
        dirty = " (the checkout had changes)" if tags.get("git_dirty") == "true" else ""
        commands.append((f"the code{dirty}", f"git checkout {tags['git_commit']}"))
    commands.append(("the whole sweep once more", f"boxseg sweep {config}"))
    best = record.table.best()
    if best is not None:
        folder = _quoted(best.folder)
        commands.append(("the best trial once more", f"boxseg train --from-run {folder}"))
        commands.append(("masks of the best trial", f"boxseg predict {folder} IMAGES"))
    if len(record.spec.sweep.seeds) == 1:
        commands.append(("with three seeds, to see the spread", f"boxseg sweep {config} --set 'sweep.seeds=[0, 1, 2]'"))
    return commands


def _quoted(path: Path) -> str:
    """A path for a shell, from the current folder on where it lies in there."""
    path, here = path.absolute(), Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))

"""The trials of a sweep as a table: rows from their folders, the best one, and the same table for all readers."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from boxseg.config.criterion import Criterion
from orchestration.config.spec import SweepSpec
from orchestration.record.find_runs import sound_status
from orchestration.record.run_folder import RunStatus

STYLES = {
    "finished": "green",
    "failed": "red",
    "stopped": "yellow",
    "running": "cyan",
    "interrupted": "magenta",
}


@dataclass(frozen=True)
class TrialRow(RunStatus):
    """The state of one trial; `metrics` are those of its best evaluation, or the latest where it has none."""

    value: float | None = None
    """Deciding metric of the best evaluation; None before one has it."""

    @property
    def seed(self) -> int:
        """Its `train.seed`."""
        return int(self.tags.get("seed", 0))

    @property
    def seconds(self) -> float | None:
        """How long it took, its start included; None before its end."""
        return self.ended - self.created if self.ended else None

    @property
    def label(self) -> str:
        """Short name within the sweep."""
        return f"trial {self.id.rsplit('-', 1)[-1]}"

    @property
    def key(self) -> str:
        """The varied settings as text that is the same for all seeds."""
        return json.dumps(self.values, sort_keys=True, default=str)

    @property
    def outcome(self) -> str:
        """Value of the metric, or why there is none."""
        if self.status == "failed" and self.failure is not None:
            return self.failure.summary
        return "no value" if self.value is None else f"{self.value:.4f}"


@dataclass(frozen=True)
class SweepTable:
    """All trials of a sweep."""

    criterion: Criterion
    rows: list[TrialRow]
    seeds: int = 1
    """Trials per setting."""

    def best(self) -> TrialRow | None:
        """The best trial of the best setting.

        A setting counts with the mean over its seeds. Settings whose trials all ran to the end come first: a value
        from the middle of a stopped trial only counts where there is nothing else.
        """
        rows = next(iter(self.settings()), [])
        valued = [row for row in rows if row.value is not None]
        return max(
            valued,
            key=lambda row: (row.status == "finished", self._score(row)),
            default=None,
        )

    @property
    def metric(self) -> str:
        """Name of the deciding metric."""
        return self.criterion.metric

    @property
    def names(self) -> list[str]:
        """Settings that the trials vary."""
        return list(dict.fromkeys(name for row in self.rows for name in row.values))

    @property
    def failed(self) -> list[TrialRow]:
        """Trials that failed."""
        return [row for row in self.rows if row.status == "failed"]

    def settings(self) -> list[list[TrialRow]]:
        """The trials of each setting, best setting first by the order of `best`; settings without a value last."""
        settings: dict[str, list[TrialRow]] = {}
        for row in self.rows:
            settings.setdefault(row.key, []).append(row)
        return sorted(settings.values(), key=self.merit, reverse=True)

    def ranked(self) -> list[TrialRow]:
        """Best first; trials without a value last."""
        return sorted(self.rows, key=lambda row: (-self._score(row), row.id))

    def merit(self, rows: list[TrialRow]) -> tuple[bool, bool, float]:
        """Larger is better: all seeds of a setting finished, some did, and the mean of those with a value."""
        valued = [row for row in rows if row.value is not None]
        finished = sum(row.status == "finished" for row in valued)
        mean = statistics.fmean(map(self._score, valued)) if valued else -math.inf
        return finished >= self.seeds, finished > 0, mean

    def _score(self, row: TrialRow) -> float:
        """Larger is better, whatever the mode."""
        return self.criterion.score(row.value)


def read_table(
    folder: Path,
    spec: SweepSpec,
    known: Mapping[str, TrialRow] | None = None,
) -> SweepTable:
    """The table of a sweep folder as it is now; `known` rows, by the name of their folder, are not read again.

    A trial whose folder is unsound is left out with a warning.
    """
    known = known or {}
    rows = []
    for path in sorted(folder.iterdir()):
        row = known.get(path.name)
        # os.path, as it gives False for what cannot be read
        if row is None and os.path.exists(path / "status.json"):  # noqa: PTH110
            row = read_row(path, spec)
        if row is not None:
            rows.append(row)
    return SweepTable(spec.sweep.criterion, rows, seeds=len(spec.sweep.seeds))


def read_row(folder: Path, spec: SweepSpec) -> TrialRow | None:
    """The row of a trial's folder as it is now; None for a copy, and with a warning for an unsound folder."""
    status = sound_status(folder)
    if status is None or status.id != folder.name:
        return None
    value = spec.sweep.criterion.value(status.best)
    return TrialRow(**{**vars(status), "metrics": status.best_or_latest, "value": value})


class EndedTrials:
    """Rows of trials that have ended and the best of them, updated with each end without reading the others again."""

    def __init__(self, spec: SweepSpec) -> None:
        self.rows: dict[str, TrialRow] = {}
        """By the name of the trial's folder."""
        self._spec = spec
        self._settings: dict[str, SweepTable] = {}
        self._merits: dict[str, tuple[bool, bool, float]] = {}

    def add(self, folder: Path) -> None:
        """Read a trial for the last time."""
        sweep = self._spec.sweep
        row = read_row(folder, self._spec)
        if row is None:
            return
        self.rows[folder.name] = row
        setting = self._settings.setdefault(
            row.key,
            SweepTable(
                sweep.criterion,
                [],
                seeds=len(sweep.seeds),
            ),
        )
        setting.rows.append(row)
        self._merits[row.key] = setting.merit(setting.rows)

    def best(self) -> TrialRow | None:
        """`SweepTable.best` of these trials."""
        leader = max(self._merits, key=self._merits.__getitem__, default=None)
        return None if leader is None else self._settings[leader].best()


def render_table(
    table: SweepTable,
    *,
    caption: str | None = None,
    most: int | None = None,
) -> Table:
    """For a terminal; of more than `most` trials those at work and the best."""
    best = table.best()
    if most is not None and len(table.rows) > most:
        order = sorted(table.ranked(), key=lambda row: row is not best and row.is_final)
        caption = f"… {len(order) - most} more trials\n{caption or ''}"
        table = replace(table, rows=order[:most])
    drawn = Table(caption=caption, caption_justify="left")
    header, lines = _cells(table, best)
    for title in header:
        is_number = title in (table.metric, "step", "seed")
        drawn.add_column(title, justify="right" if is_number else "left", no_wrap=title == "trial")
    for row, line in zip(table.ranked(), lines, strict=True):
        drawn.add_row(*line, style="bold green" if row is best else STYLES.get(row.status))
    return drawn


def markdown_table(table: SweepTable) -> str:
    """For MLflow and files."""
    header, lines = _cells(table, table.best())
    rule = ["---"] * len(header)
    rows = []
    for line in [header, rule, *lines]:
        # in Markdown a cell is one line, and a bar would end it
        cells = [" ".join(cell.split()).replace("|", "\\|") for cell in line]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def describe(values: dict[str, Any]) -> str:
    """Varied settings in one line, by the last part of their name: `iou_thr=0.61 k_top=10`."""
    parts = [f"{name.rsplit('.', 1)[-1]}={short_value(value)}" for name, value in values.items()]
    return " ".join(parts)


def short_value(value: Any) -> str:
    """A setting's value in four digits, for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cells(table: SweepTable, best: TrialRow | None) -> tuple[list[str], list[list[str]]]:
    """Header and lines, the leading trial first; settings and seeds have columns where they vary."""
    names = table.names
    seeds = ["seed"] if len({row.seed for row in table.rows}) > 1 else []
    lines = []
    for row in table.ranked():
        trial = row.id.rsplit("-", 1)[-1] + (" ★" if row is best else "")
        values = [short_value(row.values.get(name, "")) for name in names]
        metric = "" if row.value is None else f"{row.value:.4f}"
        state = f"{row.status}: {row.outcome}" if row.status == "failed" else row.status
        if row.retries:
            state += f" (started again {len(row.retries)}x, last for {row.retries[-1]})"
        seed = [str(row.seed)] if seeds else []
        lines.append([trial, *values, *seed, metric, str(row.step), state])
    return ["trial", *names, *seeds, table.metric, "step", "status"], lines

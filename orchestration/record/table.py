"""The trials of a sweep as a table: its rows, read from their folders, the best one, and how it is drawn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from boxseg.config.criterion import Criterion
from orchestration.config.spec import SweepSpec
from orchestration.record.run_folder import end_of
from orchestration.record.score import Merit, find_front, merit_of, trials_that_count
from orchestration.record.trial import TrialStatus, read_trial

STYLES = {
    "finished": "green",
    "failed": "red",
    "stopped": "yellow",
    "running": "cyan",
    "interrupted": "magenta",
}


@dataclass
class SweepTable:
    """All trials of a sweep and the order of their settings, which `add` updates without looking at all trials."""

    criterion: Criterion
    rows: list[TrialStatus]
    seeds: int = 1
    """Trials per setting."""
    others: tuple[Criterion, ...] = ()
    """The metrics of `sweep.against`."""

    def __post_init__(self) -> None:
        self._settings: dict[str, list[TrialStatus]] = {}
        self._merits: dict[str, Merit] = {}
        for row in self.rows:
            self._file(row)

    def add(self, row: TrialStatus) -> None:
        """Take in one more trial."""
        self.rows.append(row)
        self._file(row)

    def _file(self, row: TrialStatus) -> None:
        setting = self._settings.setdefault(row.key, [])
        setting.append(row)
        self._merits[row.key] = merit_of(
            setting, self.criterion, seeds=self.seeds, others=self.others
        )

    def best(self) -> TrialStatus | None:
        """The best trial of the best setting; None if no trial has a value."""
        leader = max(self._merits, key=self._merits.__getitem__, default=None)
        counted = [] if leader is None else trials_that_count(self._settings[leader])
        return max(counted, key=self._score, default=None)

    def settings(self) -> list[list[TrialStatus]]:
        """The trials of each setting, best setting first; settings without a value last."""
        keys = sorted(self._merits, key=self._merits.__getitem__, reverse=True)
        return [self._settings[key] for key in keys]

    def front(self) -> list[list[TrialStatus]]:
        """The trials of each setting on the front, best by the deciding metric first; empty for one metric.

        Only settings that have a value of each metric and came as far as the best one are compared.
        """
        leader = max(self._merits.values(), default=None)
        if leader is None or not self.others:
            return []
        as_far = [
            key for key, merit in self._merits.items() if merit[:2] == leader[:2] and merit.has_all
        ]
        front = find_front([self._merits[key].scores for key in as_far])
        return [self._settings[as_far[place]] for place in front]

    def ranked(self) -> list[TrialStatus]:
        """Best first; trials without a value last."""
        return sorted(self.rows, key=lambda row: (-self._score(row), row.id))

    @property
    def metric(self) -> str:
        """Name of the deciding metric."""
        return self.criterion.metric

    @property
    def names(self) -> list[str]:
        """Settings that the trials vary."""
        return list(dict.fromkeys(name for row in self.rows for name in row.values))

    @property
    def failed(self) -> list[TrialStatus]:
        """Trials that failed."""
        return [row for row in self.rows if row.status == "failed"]

    def _score(self, row: TrialStatus) -> float:
        """Larger is better, whatever the mode."""
        return self.criterion.score(row.value)


def read_table(folder: Path, spec: SweepSpec, known: Sequence[TrialStatus] = ()) -> SweepTable:
    """The table of a sweep folder as it is now; rows that are `known` are not read again.

    Trials whose folder is unsound are left out with a warning.
    """
    known_rows = {row.id: row for row in known}
    rows = []
    for path in sorted(folder.iterdir()):
        row = known_rows.get(path.name)
        # os.path returns False where this account may not look
        if row is None and os.path.exists(path / "status.json"):  # noqa: PTH110
            row = read_trial(path, spec.sweep.criterion)
        if row is not None:
            rows.append(row)
    return make_table(spec, rows)


def make_table(spec: SweepSpec, rows: list[TrialStatus]) -> SweepTable:
    """The table of a sweep with these trials."""
    sweep = spec.sweep
    return SweepTable(sweep.criterion, rows, seeds=len(sweep.seeds), others=sweep.others)


def render_table(
    table: SweepTable, *, caption: str | None = None, most: int | None = None
) -> Table:
    """The table for a terminal; if there are more than `most` trials, the running ones and the best ones."""
    best = table.best()
    if most is not None and len(table.rows) > most:
        # False sorts first: the best one and the running ones. Sorting is stable, so the order within both groups
        # stays.
        order = sorted(table.ranked(), key=lambda row: row is not best and row.is_final)
        caption = f"… {len(order) - most} more trials\n{caption or ''}"
        table = replace(table, rows=order[:most])
    drawn = Table(caption=caption, caption_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    header, lines = _cells(table, best)
    short = [title.rsplit(".", 1)[-1].removeprefix("val/") for title in header]
    for title, last_part in zip(header, short, strict=True):
        others = [other.metric for other in table.others]
        is_number = title in (table.metric, *others, "step", "seed")
        shown = last_part if short.count(last_part) == 1 else title
        drawn.add_column(shown, justify="right" if is_number else "left", no_wrap=title == "trial")
    for row, line in zip(table.ranked(), lines, strict=True):
        drawn.add_row(*line, style="bold green" if row is best else STYLES.get(row.status))
    return drawn


def markdown_table(table: SweepTable) -> str:
    """The table as Markdown, for MLflow and files."""
    header, lines = _cells(table, table.best())
    rule = ["---"] * len(header)
    rows = []
    for line in [header, rule, *lines]:
        # in Markdown a cell is a single line, and a bar would end it
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


def _cells(table: SweepTable, best: TrialStatus | None) -> tuple[list[str], list[list[str]]]:
    """Header and lines, the best trial first; settings and seeds have columns if they vary."""
    names = table.names
    others = [other.metric for other in table.others]
    on_front = {row.id for rows in table.front() for row in rows}
    seeds = ["seed"] if len({row.seed for row in table.rows}) > 1 else []
    lines = []
    for row in table.ranked():
        trial = end_of(row.id) + (" ★" if row is best else "")
        # "-" where a setting does not apply to the trial
        values = [short_value(row.values.get(name, "-")) for name in names]
        metric = "" if row.value is None else f"{row.value:.4f}"
        state = f"{row.status}: {row.outcome}" if row.status == "failed" else row.status
        if row.retries:
            state += f" (started again {len(row.retries)}x, last for {row.retries[-1]})"
        if len(row.workers) > 1:
            state += f" (with {', '.join(map(str, row.workers))} workers)"
        seed = [str(row.seed)] if seeds else []
        weighed = [short_value(row.metrics.get(name, "")) for name in others]
        if others:
            weighed.append("front" if row.id in on_front else "")
        lines.append([trial, *values, *seed, metric, *weighed, str(row.step), state])
    weighed = [*others, "front"] if others else []
    return ["trial", *names, *seeds, table.metric, *weighed, "step", "status"], lines

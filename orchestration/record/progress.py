"""Progress on stderr while a run or sweep works, read from the run folders: live on a terminal, else line by line."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self, TypeVar

from rich.console import RenderableType
from rich.live import Live
from rich.text import Text

from orchestration.record.find_runs import sound_status
from orchestration.record.pulse import Beat, read_beat
from orchestration.record.run_folder import Report, RunFolder, Status
from orchestration.record.table import SweepTable, render_table
from orchestration.record.trial import TrialStatus
from orchestration.terminal import printable, safe_console
from orchestration.words import show_duration

HEADLINE = (
    "train/loss",
    "val/mask_ap",
    "val/box_ap",
    "qam/quality",
    "qam/coverage",
    "train/images_per_s",
)
"""Metrics worth a place in one line."""
LINE_EVERY_S = 10.0
"""Time between two lines about a count, if there is no terminal [s]."""
MEASURED = 0.1
"""Share of a run's steps that must have been timed before the time left is shown."""

T = TypeVar("T")


class ProgressDisplay:
    """Context that shows progress on stderr, on a terminal with a part that is redrawn.

    Once nobody reads stderr any more (a closed pipe or terminal), it is silent, and the work goes on.
    """

    def __init__(self) -> None:
        self._console = safe_console(stderr=True, highlight=False)
        # Without a thread of rich: it is only redrawn by `update`, and removed at the end.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._since = time.monotonic()
        self._is_read = True
        self.is_live = self._console.is_terminal

    def __enter__(self) -> Self:
        with self._readers_may_leave():
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_read:
            with self._readers_may_leave():
                self._live.stop()

    @contextlib.contextmanager
    def _readers_may_leave(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._is_read = False
            self._console.quiet = True

    def _line(self, text: str) -> None:
        """A line that stays."""
        with self._readers_may_leave():
            # In a file or pipe, long lines are not wrapped.
            self._console.print(text, soft_wrap=not self.is_live)

    def pass_on(self, text: str) -> None:
        """Show a line: for a moment on a terminal, else for good."""
        if self.is_live:
            self._show(Text(printable(text)))
        else:
            self._line(text)

    def _show(self, content: RenderableType) -> None:
        """Replace the part that changes, on a terminal."""
        with self._readers_may_leave():
            self._live.update(content, refresh=True)

    def _elapsed(self) -> str:
        return show_duration(time.monotonic() - self._since)


class RunProgress(ProgressDisplay):
    """On a terminal, a line that is redrawn, and above it one for each evaluation; else a line for each report."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self._steps = folder.stored().steps
        self._folder = folder
        self._tells_start = True
        self._new_reports = NewReports(folder, self._steps)
        self._new_reports.skip()
        self._old_beat = read_beat(folder)  # of an earlier command
        self._last: Report | None = None
        """The last report with metrics of `HEADLINE`."""
        self._has_line = False
        """Whether a line about the progress was written."""

    def update(self) -> None:
        """Show what is new."""
        reports = self._new_reports.read()
        if reports and self._tells_start:
            self._tells_start = False
            if start := self._folder.stored().start:
                self._line(start)
        shown = [report for report in reports if headline(report.metrics)]
        if shown:
            self._last = shown[-1]
        beat = read_beat(self._folder)
        if beat == self._old_beat:
            beat = None
        if self.is_live:  # before lines are written above it
            self._show(Text(self._now(beat), no_wrap=True, overflow="ellipsis"))
        for report in shown:
            if report.is_evaluation or not self.is_live:
                self._has_line = True
                self._line(self._report_line(report))
        # one line soon after the start, so that without a terminal the first report is not waited for in silence
        if beat is not None and not self._has_line and not self.is_live:
            self._has_line = True
            self._line(self._now(beat))

    def _now(self, beat: Beat | None) -> str:
        """Where the run is."""
        last = self._last
        if beat is not None and (last is None or beat.step >= last.step):
            pace = f"{beat.steps_per_s:.3g} steps/s"
            left = self._left(beat.step, beat.steps_per_s)
            losses = []
            for name, value in beat.losses.items():
                if value is not None:
                    losses.append(f"{name.removeprefix('loss_')} {value:.3g}")
            return f"step {beat.step}/{self._steps}  {pace}{left}  {'  '.join(losses)}"
        if last is not None:
            return self._report_line(last)
        return f"starting … {self._elapsed()}"

    def _report_line(self, report: Report) -> str:
        """A report in one line."""
        left = self._left(report.step)
        # before the metrics, as a terminal may have no room for all of them
        return f"step {report.step}/{self._steps}{left}  {headline(report.metrics)}"

    def _left(self, step: int, steps_per_s: float = 0.0) -> str:
        """Time left: by the pace since the first report, evaluations included, or else by that of updates alone."""
        step_s = self._new_reports.step_s
        if not step_s and steps_per_s:
            step_s = 1 / steps_per_s
        return "" if not step_s else time_left(step_s * (self._steps - step))


class SweepProgress(ProgressDisplay):
    """On a terminal, the table of trials, redrawn; else a line for each evaluation and each end."""

    def __init__(self, name: str, planned: int) -> None:
        super().__init__()
        self._name = name
        self._planned = planned
        self._tells_start = True
        self._at_once = 1
        self._new_reports: dict[str, NewReports] = {}
        self._paces: dict[str, float] = {}
        self._took: dict[str, float] = {}
        self._ended: dict[str, Status] = {}

    def begin(self, table: SweepTable) -> None:
        """Take note of what was there before this command, so that it is not shown again."""
        # without `_tells_start`, as `_look` would say what earlier trials started from
        tells_start, self._tells_start = self._tells_start, False
        for row in table.rows:
            self._look(row)
            if row.is_final:
                self._ended[row.id] = row.status
        self._tells_start = tells_start

    def update(self, table: SweepTable) -> None:
        """Show what is new; trials that ended before are not read again."""
        rows = [row for row in table.rows if self._ended.get(row.id) != row.status]
        new = {row.id: self._look(row) for row in rows}
        self._ended |= {row.id: row.status for row in rows if row.is_final}
        left = time_left(self._seconds_left(table))
        for row in rows:
            for report in new[row.id]:
                place = f"{row.label} step {report.step}/{row.steps}"
                self.pass_on(f"{place}  {headline(report.metrics)}{left}")
            if row.is_final:
                self.pass_on(f"{row.label} {row.status}  {row.outcome}  {row.description}")
        if self.is_live:
            ended = f"{len(self._ended)}/{self._planned} trials ended"
            caption = f"{self._name}: {ended}, {self._elapsed()}{left}"
            # leaves room for the table's borders and header and for the caption
            most = max(self._console.height - 8, 4)
            drawn = render_table(table, caption=caption, most=most)
            # before the first trial there is no table
            self._show(drawn if table.rows else Text(caption))

    def _look(self, row: TrialStatus) -> list[Report]:
        """Evaluations of a trial since the last look; its pace and time are noted."""
        new_reports = self._new_reports.setdefault(
            row.id, NewReports(RunFolder(row.folder), row.steps)
        )
        reports = new_reports.read()
        if reports and self._tells_start:
            self._tells_start = False
            status = sound_status(Path(row.folder))
            if status is not None and status.start:
                self.pass_on(status.start)
        if new_reports.step_s is not None:
            self._paces[row.id] = new_reports.step_s
        if row.is_final:
            del self._new_reports[row.id]
            if row.seconds is not None and row.status in ("finished", "stopped"):
                self._took[row.id] = row.seconds
        return [report for report in reports if report.is_evaluation]

    def _seconds_left(self, table: SweepTable) -> float | None:
        """Time left, if trials to come take as long as those that ended, or as the steps so far; None: unknown."""
        if not self._paces:
            return None
        usual_pace = statistics.fmean(self._paces.values())
        working = [row for row in table.rows if not row.is_final]
        # The most so far, as fewer are running between the end of one trial and the start of the next.
        self._at_once = max(self._at_once, len(working))
        left = []
        for row in working:
            pace = self._paces.get(row.id, usual_pace)
            left.append(pace * (row.steps - row.step))
        if self._took:
            usual_trial = statistics.fmean(self._took.values())
        else:
            usual_trial = usual_pace * max(row.steps for row in table.rows)
        to_come = (self._planned - len(table.rows)) * usual_trial
        # the work is shared by all places, but the longest running trial sets a limit
        shared = (sum(left) + to_come) / self._at_once
        return max([*left, shared])


class NewReports:
    """The reports of one run as they come, and its pace."""

    def __init__(self, folder: RunFolder, steps: int) -> None:
        self._folder = folder
        self._steps = steps
        self._offset = 0
        self._first: Report | None = None
        self.last: Report | None = None

    def skip(self) -> None:
        """Leave out what is there already, from an earlier command."""
        _, self._offset = self._folder.reports_since(0)

    def read(self) -> list[Report]:
        """Reports since the last look."""
        reports, self._offset = self._folder.reports_since(self._offset)
        if reports:
            self._first = self._first or reports[0]
            self.last = reports[-1]
        return reports

    @property
    def step_s(self) -> float | None:
        """Seconds per step since the first report, evaluations included; None until enough steps were timed."""
        if self._first is None or self.last is None:
            return None
        # From the first report on, as loading and slow first steps come before it.
        steps = self.last.step - self._first.step
        if steps <= MEASURED * self._steps:
            return None
        return (self.last.time - self._first.time) / steps


def headline(metrics: dict[str, float]) -> str:
    """The most important metrics in one line."""
    shown = [name for name in HEADLINE if name in metrics]
    return "  ".join(f"{name.split('/')[-1]} {metrics[name]:.4g}" for name in shown)


def time_left(seconds: float | None) -> str:
    """The end of a line, as in `  12 min left`; empty if there is nothing to say."""
    return f"  {show_duration(seconds)} left" if seconds else ""


def counted(items: Iterable[T], total: int, *, what: str) -> Iterator[T]:
    """Yield the items and show the count done and the time left: live on a terminal, else every ten seconds."""
    began = next_at = time.monotonic()
    with ProgressDisplay() as progress:
        for done, item in enumerate(items, start=1):
            now = time.monotonic()
            if now >= next_at or done == total:
                next_at = now + (0.2 if progress.is_live else LINE_EVERY_S)
                left = (now - began) / done * (total - done)
                progress.pass_on(f"{done}/{total} {what}{time_left(left)}")
            yield item

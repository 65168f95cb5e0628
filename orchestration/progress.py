"""Progress on stderr while a run or sweep works, read from the run folders: live on a terminal, else line by line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.text import Text

from orchestration.run_folder import Report, RunFolder, parse_reports
from orchestration.table import SweepTable, render_table

HEADLINE = ("train/loss", "val/mask_ap", "val/box_ap", "qam/quality", "qam/coverage", "train/images_per_s")
"""Metrics worth a place in one line."""


class RunProgress:
    """One line per report, or on a terminal one line that changes."""

    def __init__(self, folder: RunFolder, steps: int, *, shown: bool = True) -> None:
        self._tail = ReportTail(folder, from_now=True)
        self._steps = steps
        self._pace = Pace(steps)
        self._latest: dict[str, float] = {}
        self._screen = Screen(shown=shown)

    def __enter__(self) -> RunProgress:
        self._screen.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._screen.stop()

    def update(self) -> None:
        """Show what is new."""
        for report in self._tail.new():
            self._latest |= report.metrics
            self._pace.add(report.step, report.time)
            line = f"step {report.step}/{self._steps}  {headline(report.metrics)}{self._pace.eta()}"
            if any(name.startswith("val/") for name in report.metrics):
                self._screen.line(line)
            else:
                self._screen.passing(line)
        if not self._latest:
            self._screen.live(lambda: Text(f"starting … {self._screen.elapsed()}"))


class SweepProgress:
    """The table of trials: live on a terminal, else a line per evaluation and per end."""

    def __init__(self, name: str, planned: int, *, shown: bool = True) -> None:
        self._name = name
        self._planned = planned
        self._screen = Screen(shown=shown)
        self._tails: dict[str, ReportTail] = {}
        self._ended: set[str] = set()

    def __enter__(self) -> SweepProgress:
        self._screen.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._screen.stop()

    def update(self, table: SweepTable) -> None:
        """Show what is new."""
        for row in table.rows:
            tail = self._tails.setdefault(row.id, ReportTail(RunFolder(row.folder)))
            for report in tail.new():
                if any(name.startswith("val/") for name in report.metrics):
                    text = f"{row.label} step {report.step}/{row.steps}  {headline(report.metrics)}"
                    self._screen.passing(text + self._eta(table))
            if row.is_ended and row.id not in self._ended:
                self._ended.add(row.id)
                self._screen.passing(f"{row.label} {row.status}  {row.outcome}  {row.settings}")
        self._screen.live(lambda: render_table(table, caption=self._caption(table)))

    def _caption(self, table: SweepTable) -> str:
        done = sum(row.is_ended for row in table.rows)
        return f"{self._name}: {done}/{self._planned} trials ended, {self._screen.elapsed()}{self._eta(table)}"

    def _eta(self, table: SweepTable) -> str:
        """Time left if the trials to come train as fast and as long as those so far."""
        shares = [1.0 if row.is_ended else row.step / max(row.steps, 1) for row in table.rows]
        done = sum(shares)
        if done < 0.05 or done >= self._planned:
            return ""
        return f"  {clock(self._screen.seconds() * (self._planned - done) / done)} left"


class ReportTail:
    """Reads the reports that came since the last look; `from_now` leaves out what is there at the start."""

    def __init__(self, folder: RunFolder, *, from_now: bool = False) -> None:
        self._path = folder.metrics_path
        self._offset = self._path.stat().st_size if from_now and self._path.exists() else 0

    def new(self) -> list[Report]:
        """Reports in whole lines that are new."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        return list(parse_reports(data))


class Pace:
    """Steps per second since the first report of this session, evaluations included."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] | None = None

    def add(self, step: int, at: float) -> None:
        """Note a report at a time [s]."""
        self._first = self._first or (step, at)
        self._last = (step, at)

    def eta(self) -> str:
        """Time left, as in `  1:05 left`; empty while unknown."""
        if self._first is None or self._last is None:
            return ""
        steps, seconds = self._last[0] - self._first[0], self._last[1] - self._first[1]
        left = self._steps - self._last[0]
        return f"  {clock(seconds / steps * left)} left" if steps > 0 and left > 0 else ""


class Screen:
    """stderr: on a terminal a live part at the bottom, otherwise plain lines only; nothing if not shown."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._console = Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._since = time.monotonic()

    def start(self) -> None:
        """Begin the live part, on a terminal."""
        if self._shown and self._console.is_terminal:
            self._live = Live(Text(""), console=self._console, auto_refresh=False, transient=True)
            self._live.start()

    def stop(self) -> None:
        """End the live part."""
        if self._live is not None:
            self._live.stop()

    def line(self, text: str) -> None:
        """A line that stays."""
        if not self._shown:
            return
        if self._live is not None:
            self._console.print(text, markup=False)
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def passing(self, text: str) -> None:
        """A line that stays without a terminal, and is soon replaced on one."""
        if self._live is not None:
            self.live(lambda: Text(text))
        else:
            self.line(text)

    def live(self, render: Callable[[], object]) -> None:
        """Replace the live part, on a terminal."""
        if self._live is not None:
            self._live.update(render(), refresh=True)  # type: ignore[arg-type]

    def seconds(self) -> float:
        """Since this began [s]."""
        return time.monotonic() - self._since

    def elapsed(self) -> str:
        """The same for people."""
        return clock(self.seconds())


def headline(metrics: dict[str, float]) -> str:
    """The few metrics that tell how it goes."""
    return "  ".join(f"{name.split('/')[-1]} {metrics[name]:.4g}" for name in HEADLINE if name in metrics)


def clock(seconds: float) -> str:
    """Minutes and seconds, or hours too: 1:05, 2:03:20."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

"""The pictures of a sweep's report, with texts for readers who cannot see them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from boxseg.drawing import drawing
from boxseg.files.writing import write_atomic
from orchestration.report import charts
from orchestration.report.charts import png_of
from orchestration.report.stats import ImportanceStudy, Standing
from orchestration.report.sweep_record import SweepRecord, panel_of

PANEL_SCALE = 1.6
"""Pixels of a picture of masks for each pixel of the page."""

Plan = tuple[str, Callable[[], bytes], str]
"""Name of a picture, what gives the bytes of its file, and what it shows."""


@dataclass(frozen=True)
class ReportPicture:
    """A PNG file of the report."""

    name: str
    png: bytes
    alt: str
    """What it shows, for those who do not see it."""
    scale: float
    """Pixels of the file for each pixel of the page."""

    @property
    def width(self) -> int:
        """Natural width on the page [px]."""
        # bytes 16 to 19 of every PNG are its width, high byte first
        return round(int.from_bytes(self.png[16:20], "big") / self.scale)

    @property
    def source(self) -> str:
        """The picture itself as a URL."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def draw_all(
    record: SweepRecord, study: ImportanceStudy, standings: Sequence[Standing], output: Path
) -> dict[str, dict[str, ReportPicture]]:
    """Draw all pictures of a report into `output`; gives them by group and name, without those that failed.

    `charts` may have `curves`, `parallel` and `importance`; `fronts` are the metric against each
    other one, `panels` what the best and the median trial see.
    """
    return {
        "charts": _draw(_charts(record, study), output),
        "fronts": _draw(_fronts(record, standings), output),
        "panels": _draw(_panels(record), output, scale=PANEL_SCALE),
    }


def _draw(
    plans: Iterable[Plan], output: Path, *, scale: float = charts.SCALE
) -> dict[str, ReportPicture]:
    pictures = {}
    for name, draw, alt in plans:
        # logs a fault and goes on after the block
        with drawing(output / f"{name}.png") as path:
            picture = ReportPicture(name, draw(), alt, scale)
            write_atomic(path, picture.png)
            pictures[name] = picture
    return pictures


def _charts(record: SweepRecord, study: ImportanceStudy) -> Iterator[Plan]:
    table, best = record.table, record.table.best()
    num_trials, metric = len(table.rows), table.metric
    if any(record.curves.values()):
        draw = partial(png_of, charts.draw_curves, table, record.curves, record.rungs)
        leader = f"; best is {best.label} with {best.outcome}" if best else ""
        alt = f"Learning curves: {metric} over the steps of {num_trials} trials{leader}."
        yield "curves", draw, alt
    if best is not None and table.names:
        draw = partial(png_of, charts.draw_parallel, table, record.spec.sweep.space)
        axes = f"{', '.join(table.names)} and {metric}"
        lines = f"a line for each trial across {axes}; the best has {best.description}"
        yield "parallel", draw, f"Parallel coordinates: {lines}."
    if study.settings:
        shares = []
        for setting in study.settings:
            span = f"{setting.low:.2f} to {setting.high:.2f}"
            shares.append(f"{setting.name} {setting.share:.2f} ({span})")
        alt = f"Importance of the settings: {', '.join(shares)}."
        yield "importance", partial(png_of, charts.draw_importance, study), alt


def _fronts(record: SweepRecord, standings: Sequence[Standing]) -> Iterator[Plan]:
    if all(standing.mean is None for standing in standings):
        return
    metric, others = record.table.metric, [criterion.metric for criterion in record.table.others]
    front = [standing.rows[0].label for standing in standings if standing.is_on_front]
    for place, other in enumerate(others):
        draw = partial(png_of, charts.draw_front, standings, metric, others, place)
        alt = f"{metric} of the settings against {other}; on the front: {', '.join(front) or 'none'}."
        yield f"front-{other}".replace("/", "-"), draw, alt


def _panels(record: SweepRecord) -> Iterator[Plan]:
    best, median = record.table.best(), record.median
    for rank, row in (("best", best), ("median", None if median is best else median)):
        path = None if row is None else panel_of(row)
        if row is not None and path is not None:
            trial = f"The {rank} {row.label} ({row.outcome}) at step {int(path.stem.removeprefix('step-'))}"
            alt = f"{trial}: images, boxes, teacher and student masks."
            yield f"masks-{rank}", path.read_bytes, alt

"""The report of a sweep: one HTML page that needs nothing else, with its pictures and tables as files beside it."""

from __future__ import annotations

import base64
import csv
import io
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from boxseg.files import write_atomic
from orchestration.report_data import SweepRecord, commands_for, cost_of, panel_of, read_sweep
from orchestration.report_stats import RULE, ImportanceStudy, Standing, rank_settings, study_importance
from orchestration.table import TrialRow, show
from orchestration.words import show_duration

PAGE = "index.html"
MAX_STANDINGS = 50
MAX_FAILURES = 30
MAX_SLICES = 12
PANEL_SCALE = 1.6
"""Pixels of a picture of masks for each pixel of the page."""

logger = logging.getLogger("boxseg.report")


@dataclass(frozen=True)
class Picture:
    """A PNG file of the report."""

    name: str
    png: bytes
    alt: str
    """What it shows, for those who do not see it."""
    scale: float = 1.0
    """Pixels of the file for each pixel of the page."""

    @property
    def width(self) -> int:
        """Natural width on the page [px]."""
        return round(int.from_bytes(self.png[16:20], "big") / self.scale)

    @property
    def source(self) -> str:
        """The picture itself as a URL."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the report of a sweep as far as it has come; gives the path of the page.

    Args:
        folder: The sweep's folder.
        output: Where to write; null: `report/` in the sweep's folder.

    Raises:
        ConfigError: the folder is not one of a sweep.
    """
    record = read_sweep(folder)
    output = output or folder / "report"
    output.mkdir(parents=True, exist_ok=True)
    standings = rank_settings(record.table)
    study = study_importance(record.table, record.curves)
    charts, slices, panels = draw_charts(record, study), draw_slices(record, study), list(find_panels(record))
    for picture in [*charts.values(), *slices, *panels]:
        write_atomic(output / f"{picture.name}.png", picture.png)
    write_atomic(output / "trials.csv", _as_csv(_trial_lines(record)))
    write_atomic(output / "settings.csv", _as_csv(_standing_lines(record, standings)))
    if study.settings:
        write_atomic(output / "importance.csv", _as_csv(asdict(each) for each in study.settings))
    page = _template().render(
        record=record,
        spec=record.spec,
        names=record.table.names,
        standings=standings[:MAX_STANDINGS],
        num_standings=len(standings),
        tied=sum(each.verdict == "not distinguishable" for each in standings),
        study=study,
        cost=cost_of(record),
        failed=record.failed[:MAX_FAILURES],
        charts=charts,
        slices=slices,
        panels=panels,
        commands=commands_for(record),
        rule=RULE,
        made=time.strftime("%Y-%m-%d %H:%M"),
    )
    write_atomic(output / PAGE, page)
    return output / PAGE


def try_report(folder: Path) -> Path | None:
    """`write_report` where nobody asked for it: a fault is told and otherwise changes nothing."""
    try:
        return write_report(folder)
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        logger.warning("no report of the sweep (%s); try `boxseg report %s`", text, folder)
        return None


def draw_charts(record: SweepRecord, study: ImportanceStudy) -> dict[str, Picture]:
    """`curves`, `parallel` and `importance`, as far as there is something to draw."""
    from orchestration import report_charts

    table, best, drawn = record.table, record.table.best(), {}
    if any(record.curves.values()):
        leader = f"; best is {best.label} with {best.outcome}" if best else ""
        alt = f"Learning curves: {table.metric} over the steps of {len(table.rows)} trials{leader}."
        drawn["curves"] = (report_charts.draw_curves(table, record.curves, record.rungs), alt)
    if best is not None and table.names:
        alt = (
            f"Parallel coordinates: a line for each trial across {', '.join(table.names)} and {table.metric}; "
            f"the best has {best.settings}."
        )
        drawn["parallel"] = (report_charts.draw_parallel(table, record.spec.sweep.space), alt)
    if study.settings:
        shares = ", ".join(
            f"{each.name} {each.share:.2f} ({each.low:.2f} to {each.high:.2f})" for each in study.settings
        )
        drawn["importance"] = (report_charts.draw_importance(study), f"Importance of the settings: {shares}.")
    return {name: Picture(name, png, alt, report_charts.SCALE) for name, (png, alt) in drawn.items()}


def draw_slices(record: SweepRecord, study: ImportanceStudy) -> list[Picture]:
    """The metric against each setting alone, the most important ones first where that is known."""
    from orchestration import report_charts

    if record.table.best() is None:
        return []
    ranked = [each.name for each in study.settings]
    names = ranked + [name for name in record.table.names if name not in ranked]
    metric, space = record.table.metric, record.spec.sweep.space
    return [
        Picture(
            f"slice-{name}",
            report_charts.draw_slice(record.table, name, space.get(name)),
            f"{metric} of the trials against {name} alone.",
            report_charts.SCALE,
        )
        for name in names[:MAX_SLICES]
    ]


def find_panels(record: SweepRecord) -> Iterator[Picture]:
    """What the best and the median trial see."""
    chosen: dict[str, TrialRow | None] = {"best": record.table.best(), "median": record.median}
    if chosen["best"] is chosen["median"]:
        del chosen["median"]
    for which, row in chosen.items():
        path = panel_of(row) if row is not None else None
        if row is not None and path is not None:
            alt = f"The {which} {row.label} ({row.outcome}) at {path.stem}: images, boxes, teacher and student masks."
            yield Picture(f"masks-{which}", path.read_bytes(), alt, PANEL_SCALE)


def _template() -> Any:
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(show=show, duration=show_duration)
    return environment.from_string(resources.files("orchestration").joinpath("report.html").read_text(encoding="utf-8"))


def _trial_lines(record: SweepRecord) -> Iterator[dict[str, Any]]:
    for row in record.table.ranked():
        about = {"trial": row.id, "seed": row.seed, "status": row.status, "step": row.step, "seconds": row.seconds}
        failure = {"failure": row.failure.failure_class, "cause": row.failure.text} if row.failure else {}
        yield about | row.values | row.metrics | failure


def _standing_lines(record: SweepRecord, standings: Sequence[Standing]) -> Iterator[dict[str, Any]]:
    for rank, each in enumerate(standings, start=1):
        numbers = {"mean": each.mean, "standard_deviation": each.spread, "seeds": len(each.values)}
        yield {"rank": rank} | each.rows[0].values | numbers | {"against_best": each.verdict}


def _as_csv(lines: Iterable[dict[str, Any]]) -> str:
    found = list(lines)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for line in found for name in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return file.getvalue()

"""The report of a sweep: one HTML page that needs nothing else, with its pictures and tables as files beside it."""

from __future__ import annotations

import base64
import logging
import math
import os
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from boxseg.drawing import drawing, visible
from boxseg.errors import ConfigError
from boxseg.files.writing import csv_text, write_atomic
from orchestration.config.domain import is_logarithmic
from orchestration.config.spec import ResourcesConfig, SweepSpec, load_sweep
from orchestration.execute.schedulers import asha_rungs
from orchestration.record.run_folder import RunFolder, RunStatus
from orchestration.record.table import SweepTable, read_table, short_value
from orchestration.record.trial import TrialStatus
from orchestration.report.stats import (
    RULE,
    Curves,
    ImportanceStudy,
    Standing,
    rank_settings,
    study_importance,
    thin_out,
)
from orchestration.store.places import address_of
from orchestration.words import show_duration

PAGE = "index.html"
MAX_STANDINGS = 50
MAX_FAILURES = 30
MAX_SLICES = 12
MAX_POINTS = 100
"""Points of a curve that the page's script gets; of more, evenly spaced ones."""
PANEL_SCALE = 1.6
"""Pixels of a picture of masks for each pixel of the page."""

logger = logging.getLogger("boxseg.report")


@dataclass(frozen=True)
class ReportPicture:
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
        # bytes 16 to 19 of every PNG are its width, high byte first
        return round(int.from_bytes(self.png[16:20], "big") / self.scale)

    @property
    def source(self) -> str:
        """The picture itself as a URL."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the report of a sweep as far as it has come, to `output` or its own folder; gives the path of the page.

    Raises:
        ConfigError: the folder is not one of a sweep.
    """
    record = read_sweep(folder)
    output = output or folder / "report"
    output.mkdir(parents=True, exist_ok=True)
    standings = rank_settings(record.table)
    study = study_importance(record.table, record.curves)
    charts, slices = draw_charts(record, study, output), draw_slices(record, study, output)
    fronts = draw_fronts(record, standings, output)
    panels = find_panels(record, output)
    write_atomic(output / "trials.csv", visible(csv_text(_trial_lines(record))))
    write_atomic(output / "settings.csv", visible(csv_text(_standing_lines(record, standings))))
    if study.settings:
        importance = csv_text(asdict(importance) for importance in study.settings)
        write_atomic(output / "importance.csv", visible(importance))
    page = _template().render(
        record=record,
        spec=record.spec,
        names=record.table.names,
        standings=standings[:MAX_STANDINGS],
        num_standings=len(standings),
        tied=sum(standing.verdict == "not distinguishable" for standing in standings),
        study=study,
        cost=cost_of(record),
        failed=record.table.failed[:MAX_FAILURES],
        charts=charts,
        slices=slices,
        fronts=fronts,
        front=[standing for standing in standings if standing.is_on_front][:MAX_STANDINGS],
        panels=panels,
        commands=commands_for(record),
        rule=RULE,
        trial_data=trial_data(record, output),
        script=_script(),
        made=time.strftime("%Y-%m-%d %H:%M"),
    )
    # last, as it names the files beside it
    write_atomic(output / PAGE, page)
    return output / PAGE


def try_report(folder: Path) -> Path | None:
    """`write_report` where nobody asked for it: a fault is logged and otherwise changes nothing."""
    try:
        return write_report(folder)
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        logger.warning("no report of the sweep (%s); try `boxseg report %s`", text, folder)
        return None


def draw_charts(
    record: SweepRecord, study: ImportanceStudy, output: Path
) -> dict[str, ReportPicture]:
    """`curves`, `history`, `timeline`, `parallel` and `importance`; files in `output` too.

    Those are left out for which there is nothing to draw.
    """
    from orchestration.report import charts as report_charts

    table, best = record.table, record.table.best()
    scale = report_charts.SCALE
    charts: dict[str, ReportPicture | None] = {}
    if any(record.curves.values()):
        leader = f"; best is {best.label} with {best.outcome}" if best else ""
        steps = f"over the steps of {len(table.rows)} trials"
        alt = f"Learning curves: {table.metric} {steps}{leader}."
        draw = partial(report_charts.draw_curves, table, record.curves, record.rungs)
        charts["curves"] = _draw(output, "curves", draw, alt, scale)
    if best is not None and len(table.rows) > 1:
        alt = f"{table.metric} of {len(table.rows)} trials in the order of their start; best is {best.outcome}."
        draw = partial(report_charts.draw_history, table)
        charts["history"] = _draw(output, "history", draw, alt, scale)
    if table.rows:
        counts = ", ".join(f"{count} {status}" for status, count in record.counts.items())
        alt = f"When each trial began and ended: {counts}."
        draw = partial(report_charts.draw_timeline, table, time.time())
        charts["timeline"] = _draw(output, "timeline", draw, alt, scale)
    if best is not None and table.names:
        alt = (
            f"Parallel coordinates: a line for each trial across {', '.join(table.names)} and "
            f"{table.metric}; the best has {best.description}."
        )
        draw = partial(report_charts.draw_parallel, table, record.spec.sweep.space)
        charts["parallel"] = _draw(output, "parallel", draw, alt, scale)
    if study.settings:
        shares = []
        for setting in study.settings:
            span = f"{setting.low:.2f} to {setting.high:.2f}"
            shares.append(f"{setting.name} {setting.share:.2f} ({span})")
        alt = f"Importance of the settings: {', '.join(shares)}."
        draw = partial(report_charts.draw_importance, study)
        charts["importance"] = _draw(output, "importance", draw, alt, scale)
    return {name: picture for name, picture in charts.items() if picture is not None}


def draw_slices(record: SweepRecord, study: ImportanceStudy, output: Path) -> list[ReportPicture]:
    """The metric against each setting alone, the most important ones first where that is known; files in `output`."""
    from orchestration.report import charts as report_charts

    if record.table.best() is None:
        return []
    ranked = [importance.name for importance in study.settings]
    names = ranked + [name for name in record.table.names if name not in ranked]
    metric, space = record.table.metric, record.spec.sweep.space
    drawn = [
        _draw(
            output,
            f"slice-{name}",
            partial(report_charts.draw_slice, record.table, name, space.get(name)),
            f"{metric} of the trials against {name} alone.",
            report_charts.SCALE,
        )
        for name in names[:MAX_SLICES]
    ]
    return [picture for picture in drawn if picture is not None]


def draw_fronts(
    record: SweepRecord, standings: Sequence[Standing], output: Path
) -> list[ReportPicture]:
    """The deciding metric against each of the others; files in `output` too."""
    from orchestration.report import charts as report_charts

    metric, others = record.table.metric, [each.metric for each in record.table.others]
    if all(standing.mean is None for standing in standings):
        return []
    names = [standing.rows[0].label for standing in standings if standing.is_on_front]
    drawn = [
        _draw(
            output,
            f"front-{other}".replace("/", "-"),
            partial(report_charts.draw_front, standings, metric, others, place),
            f"{metric} of the settings against {other}; on the front: {', '.join(names) or 'none'}.",
            report_charts.SCALE,
        )
        for place, other in enumerate(others)
    ]
    return [picture for picture in drawn if picture is not None]


def find_panels(record: SweepRecord, output: Path) -> list[ReportPicture]:
    """What the best and the median trial see; files in `output` too."""
    chosen: dict[str, TrialStatus | None] = {"best": record.table.best(), "median": record.median}
    if chosen["best"] is chosen["median"]:
        del chosen["median"]
    pictures = []
    for rank, row in chosen.items():
        path = panel_of(row) if row is not None else None
        if row is not None and path is not None:
            trial = f"The {rank} {row.label} ({row.outcome}) at {path.stem}"
            alt = f"{trial}: images, boxes, teacher and student masks."
            pictures.append(_draw(output, f"masks-{rank}", path.read_bytes, alt, PANEL_SCALE))
    return [picture for picture in pictures if picture is not None]


def _draw(
    output: Path,
    name: str,
    draw: Callable[[], bytes],
    alt: str,
    scale: float,
) -> ReportPicture | None:
    """A picture of the page, also as a file; None, with a warning, where it cannot be drawn."""
    # tells of a fault and goes on behind the block
    with drawing(output / f"{name}.png") as path:
        picture = ReportPicture(name, draw(), alt, scale)
        write_atomic(path, picture.png)
        return picture
    return None


def _template() -> Any:
    from jinja2 import Environment

    environment = Environment(
        autoescape=True,  # names and messages come from files of others
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    # settings in the file's order
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    environment.filters.update(show=short_value, duration=show_duration)
    return environment.from_string(
        resources.files("orchestration.report").joinpath("page.html").read_text(encoding="utf-8")
    )


def _script() -> Any:
    from markupsafe import Markup

    text = resources.files("orchestration.report").joinpath("page.js").read_text(encoding="utf-8")
    # our own program: escaping would break it
    return Markup(text)


def trial_data(record: SweepRecord, output: Path) -> dict[str, Any]:
    """What the page's script shows of each trial, best first, as plain values for JSON.

    Pictures of masks stay where they are: the page names them as seen from `output`.
    """
    trials = []
    on_front = {row.id for rows in record.table.front() for row in rows}
    began = min((row.created for row in record.table.rows), default=0.0)
    for row in record.table.ranked():
        panel = panel_of(row)
        # Path.relative_to refuses to go up; names can hold what ends a URL, such as # and ?
        place = None if panel is None else quote(os.path.relpath(panel, output))
        about = {"label": row.label, "status": row.status, "seed": row.seed, "score": row.value}
        values = {name: _visible(value) for name, value in row.values.items()}
        about |= {"step": row.step, "seconds": row.seconds, "values": values}
        about["began"] = row.created - began
        about |= {"metrics": _finite(row.metrics), "folder": row.folder, "panel": place}
        about["front"] = row.id in on_front
        trials.append(about | {"curve": thin_out(record.curves.get(row.id, []), MAX_POINTS)})
    space = record.spec.sweep.space
    logarithmic = [name for name, domain in space.items() if is_logarithmic(domain)]
    return {"metric": record.table.metric, "trials": trials, "logarithmic": logarithmic}


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Without what JSON has no number for."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _visible(value: Any) -> Any:
    """What a page shows of a value: `visible` text, which is escaped later; markup of the page itself as it is."""
    # not isinstance: markup is a str as well
    return visible(value) if type(value) is str else value


def _trial_lines(record: SweepRecord) -> Iterator[dict[str, Any]]:
    for row in record.table.ranked():
        about = {
            "trial": row.id,
            "seed": row.seed,
            "status": row.status,
            "step": row.step,
            "seconds": row.seconds,
        }
        if (price := price_of(row, record.spec.resources)) is not None:
            about["price"] = round(price, 4)
        failure = {}
        if row.failure:
            failure = {"failure": row.failure.failure_class, "cause": row.failure.text}
        yield about | row.values | row.metrics | failure


def _standing_lines(
    record: SweepRecord, standings: Sequence[Standing]
) -> Iterator[dict[str, Any]]:
    others = [each.metric for each in record.table.others]
    for rank, standing in enumerate(standings, start=1):
        weighed: dict[str, Any] = dict(zip(others, standing.others, strict=True))
        if others:
            weighed["front"] = standing.is_on_front
        yield {
            "rank": rank,
            **standing.rows[0].values,
            "mean": standing.mean,
            "standard_deviation": standing.spread,
            "seeds": len(standing.values),
            "against_best": standing.verdict,
            **weighed,
        }


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
        # of a sweep, `steps` counts trials
        return sum(row.is_final for row in self.table.rows) >= self.status.steps

    @property
    def rungs(self) -> list[float]:
        """Steps after which weak trials were stopped; empty without early stopping."""
        # `median` compares at every evaluation instead
        has_rungs = self.spec.sweep.trial_scheduler in ("asha", "hyperband")
        return asha_rungs(self.spec) if has_rungs else []

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
    """What the trials that ended took."""

    sweep_s: float
    """From the start of the sweep to its end, or to now [s]."""
    trials_s: float
    """All trials together [s]."""
    core_h: float
    gpu_h: float
    price: float | None
    """What the GPU hours cost; None without `resources.price_per_gpu_hour`."""
    best_price: float | None
    """The same of the best trial."""
    trials: int
    """Trials that have ended."""
    steps: int
    """Updates done by all trials."""
    steps_planned: int
    """Updates had every trial that was begun run to its end."""


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
    # steps have leading zeros, so names sort by them
    pictures = sorted(samples.glob("step-*.png"))
    of_best = samples / f"step-{row.best_step or 0:08d}.png"
    if of_best in pictures:
        return of_best
    return pictures[-1] if pictures else None


def commands_for(record: SweepRecord) -> list[tuple[str, str]]:
    """(what it does, command) to repeat the sweep or its best trial, and to go on from here."""
    tags, config = record.status.tags, _quoted(record.folder / "config.yaml")
    # of a storage that was moved: the settings name the place where the sweep was made
    storage = record.folder.parent.parent
    there = ""
    if record.spec.storage.absolute() != storage.absolute():
        there = f" --set storage={address_of(storage) or _quoted(storage)}"
    commands = []
    if "git_commit" in tags:
        # the commit alone does not give back what was run
        dirty = " (the checkout had changes)" if tags.get("git_dirty") == "true" else ""
        commands.append((f"the code{dirty}", f"git checkout {tags['git_commit']}"))
    commands.append(("the whole sweep once more", f"boxseg sweep {config}{there}"))
    best = record.table.best()
    if best is not None:
        folder = _quoted(Path(best.folder))
        commands.append(("the best trial once more", f"boxseg train --from-run {folder}{there}"))
        commands.append(("masks of the best trial", f"boxseg predict {folder} IMAGES"))
    if len(record.spec.sweep.seeds) == 1:
        command = f"boxseg sweep {config}{there} --set 'sweep.seeds=[0, 1, 2]'"
        commands.append(("with three seeds, to see the spread", command))
    return commands


def _quoted(path: Path) -> str:
    """A path for a shell, from the current folder on where it lies in there."""
    path, here = path.absolute(), Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))

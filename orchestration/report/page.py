"""The report of a sweep: one HTML page that needs nothing else, with its pictures and tables as files beside it."""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from boxseg.drawing import visible
from boxseg.files.writing import csv_text, write_atomic
from orchestration.config.domain import is_logarithmic
from orchestration.record.run_folder import only_finite
from orchestration.record.table import short_value
from orchestration.report.stats import RULE, Standing, rank_settings, study_importance, thin_out
from orchestration.report.sweep_record import SweepRecord, cost_of, panel_of, price_of, read_sweep
from orchestration.store.places import address_of
from orchestration.words import show_duration

PAGE = "index.html"
MAX_STANDINGS = 50
MAX_FAILURES = 30
MAX_POINTS = 100
"""Points of a curve that the page's script gets; of more, evenly spaced ones."""

logger = logging.getLogger("boxseg.report")


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the report of a sweep, finished or not, to `output` or its own folder; gives the path of the page.

    Raises:
        ConfigError: the folder is not one of a sweep.
    """
    record = read_sweep(folder)
    # loads matplotlib
    from orchestration.report.pictures import draw_all

    output = output or folder / "report"
    output.mkdir(parents=True, exist_ok=True)
    standings = rank_settings(record.table)
    study = study_importance(record.table, record.curves)
    pictures = draw_all(record, study, standings, output)
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
        front=[standing for standing in standings if standing.is_on_front][:MAX_STANDINGS],
        **pictures,
        commands=commands_for(record),
        rule=RULE,
        trial_data=trial_data(record, output),
        made=time.strftime("%Y-%m-%d %H:%M"),
    )
    # last, as it names the files beside it
    write_atomic(output / PAGE, page)
    return output / PAGE


def try_report(folder: Path) -> Path | None:
    """`write_report` for a report that was not asked for: a fault is logged, not raised."""
    try:
        return write_report(folder)
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        logger.warning("no report of the sweep (%s); try `boxseg report %s`", text, folder)
        return None


def _template() -> Any:
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("orchestration", "report"),
        autoescape=True,  # names and messages come from files of others
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    # settings in the file's order
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    environment.filters.update(show=short_value, duration=show_duration)
    return environment.get_template("page.html")


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
        about = {
            "label": row.label,
            "status": row.status,
            "seed": row.seed,
            "score": row.value,
            "step": row.step,
            "seconds": row.seconds,
            "values": {name: _visible(value) for name, value in row.values.items()},
            "began": row.created - began,
            "metrics": only_finite(row.metrics),
            "folder": row.folder,
            "panel": place,
            "front": row.id in on_front,
            "curve": thin_out(record.curves.get(row.id, []), MAX_POINTS),
        }
        trials.append(about)
    space = record.spec.sweep.space
    logarithmic = [name for name, domain in space.items() if is_logarithmic(domain)]
    return {"metric": record.table.metric, "trials": trials, "logarithmic": logarithmic}


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
        if record.spec.resources.min_workers:
            about["workers"] = " ".join(map(str, row.workers))
        failure = {}
        if row.failure:
            failure = {"failure": row.failure.failure_class, "cause": row.failure.text}
        yield about | row.values | row.metrics | failure


def _standing_lines(
    record: SweepRecord, standings: Sequence[Standing]
) -> Iterator[dict[str, Any]]:
    others = [other.metric for other in record.table.others]
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

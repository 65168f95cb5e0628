"""The charts of a sweep's report, as figures; sizes suit a telephone, where two do not fit side by side."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from boxseg.drawing import figure_label
from orchestration.config.domain import Choice, Domain, is_logarithmic
from orchestration.record.table import SweepTable, short_value
from orchestration.record.trial import TrialStatus
from orchestration.report.stats import Curves, ImportanceStudy, Standing, thin_out

BLUE, ORANGE, GREY, RED = "#0072B2", "#D55E00", "#9a9a9a", "#B00020"
HIGHLIGHTS = (ORANGE, BLUE, "#009E73", "#CC79A7", "#56B4E9")
"""Colours that colour-blind people can tell apart."""
DASHES = ("-", "--", ":", "-.")
"""With which the same colours stand for more trials."""
MANY_NAMED = len(HIGHLIGHTS)
"""Trials that are named where these looks are too few for all."""
SCALE = 2.0
"""Pixels of the file for each pixel of the page."""
MAX_LINES = 300
"""Most trials that are drawn as grey lines; of more, evenly spaced ones are drawn (every second, every third, …)."""
MAX_TICKS = 8
NOT_APPLYING = -0.12
"""Height of a trial on the axis of a setting that does not apply to it; values stand from 0 to 1."""
LEGEND_LETTERS = 34
"""Letters in a line of the legend, of which two stand side by side below the curves."""

STYLE: Any = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
}


def draw_curves(table: SweepTable, curves: Curves, rungs: Sequence[float]) -> Figure:
    """The deciding metric over the steps, early ends as crosses, rungs as dashed lines.

    All trials are named, or of many the best and the number of the others.
    """
    figure, axes = _figure(5.2, 4.2)
    ranked = [row for row in table.ranked() if curves.get(row.id)]
    looks = [(colour, dashes) for dashes in DASHES for colour in HIGHLIGHTS]
    named = len(ranked) if len(ranked) <= len(looks) else MANY_NAMED
    # from the worst to the best, so that the better ones lie on top
    for row in reversed(thin_out(ranked[named:], MAX_LINES)):
        _draw_curve(axes, row, curves, colour=GREY, width=0.8)
    for row, (colour, dashes) in reversed(list(zip(ranked[:named], looks, strict=False))):
        name = figure_label(f"{row.label}: {row.outcome}", LEGEND_LETTERS)
        _draw_curve(axes, row, curves, colour=colour, dashes=dashes, width=2.0, label=name)
    for rung in rungs:
        axes.axvline(rung, color="#555555", linestyle="--", linewidth=1)
    axes.set(xlabel="step", ylabel=table.metric)
    # where training begins, which is before the first evaluation
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    handles, labels = axes.get_legend_handles_labels()
    if len(ranked) > named:
        handles = [Line2D([], [], color=GREY, linewidth=0.8), *handles]
        labels = [f"{len(ranked) - named} more trials", *labels]
    if handles:
        # three rows of the legend fit as it is; each further one takes 0.18 inches
        figure.set_figheight(4.2 + 0.18 * max(0, math.ceil(len(handles) / 2) - 3))
        figure.legend(
            # drawn worst first, named best first
            handles[::-1],
            labels[::-1],
            loc="outside lower center",
            ncols=2,
            fontsize=9,
            frameon=False,
        )
    return figure


def _draw_curve(
    axes: Axes,
    row: TrialStatus,
    curves: Curves,
    *,
    colour: str,
    width: float,
    dashes: str = "-",
    label: str | None = None,
) -> None:
    steps, values = zip(*curves[row.id], strict=True)
    axes.plot(
        steps,
        values,
        dashes,
        color=colour,
        linewidth=width,
        marker="o",
        markersize=3,
        label=label,
    )
    if row.status in ("stopped", "failed", "interrupted"):
        axes.plot(
            steps[-1:],
            values[-1:],
            marker="x",
            markersize=7,
            color=RED if row.status == "failed" else colour,
        )


def draw_parallel(table: SweepTable, space: dict[str, Domain]) -> Figure:
    """One line for each trial with a value across an axis for each setting; colour is the metric, stopped ones grey."""
    rows = [row for row in table.rows if row.value is not None]
    names = table.names
    figure, axes = _figure(max(5.2, 1.3 * (len(names) + 1)), 4.2)
    axes.grid(visible=False)
    columns = []
    for at, name in enumerate(names):
        has_it = np.array([name in row.values for row in rows])
        heights = np.full(len(rows), NOT_APPLYING)
        present = [row.values[name] for row in rows if name in row.values]
        heights[has_it], ticks = scale_values(present, space.get(name)) if present else ([], [])
        if not has_it.all():
            ticks = [(NOT_APPLYING, "-"), *ticks]
        columns.append(heights)
        _draw_axis(axes, at, ticks)
    columns.append(scale_values(_values(rows), None)[0])
    lowest, highest = short_value(min(_values(rows))), short_value(max(_values(rows)))
    _draw_axis(axes, len(names), [(0.0, lowest), (1.0, highest)])
    finished = np.array([row.status == "finished" for row in rows])
    high_is_good = table.criterion.mode == "max"
    _draw_trials(axes, np.column_stack(columns), finished, high_is_good=high_is_good)
    labels = [*map(_short, names), table.metric]
    axes.set_xticks(range(len(labels)), labels, rotation=20, ha="right")
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def _draw_trials(
    axes: Axes, places: NDArray[np.float64], finished: NDArray[np.bool_], *, high_is_good: bool
) -> None:
    """The lines of all trials by their `places` (trials, axes), the metric on the last axis."""
    across = np.broadcast_to(np.arange(float(places.shape[1])), places.shape)
    # (trials, axes, 2): x and y of each corner of a trial's line
    lines = np.stack([across, places], axis=-1)
    axes.add_collection(
        LineCollection(list(lines[~finished]), colors=GREY, alpha=0.35, linewidths=0.8)
    )
    values = places[:, -1]
    # the best are drawn last, on top of the others
    order = np.argsort(values if high_is_good else -values)
    top = [index for index in order if finished[index]]
    shown = LineCollection(
        list(lines[top]),
        array=values[top],
        cmap="viridis_r" if high_is_good else "viridis",  # dark, which shows on white, is good
        # many thick lines would cover one another
        linewidths=1.8 if len(top) <= 60 else 0.8,
        alpha=0.85,
    )
    # the range of all trials, or else matplotlib takes that of the finished ones
    shown.set_clim(0, 1)
    axes.add_collection(shown)
    # the texts of the last axis need room on its right
    axes.set_xlim(-0.15, places.shape[1] - 0.55)
    axes.set_ylim(places.min() - 0.06, 1.06)


def _draw_axis(axes: Axes, at: int, ticks: list[tuple[float, str]]) -> None:
    axes.axvline(at, color="#555555", linewidth=1)
    for height, text in ticks[:: math.ceil(len(ticks) / MAX_TICKS)]:
        box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
        axes.text(
            at + 0.04,
            height,
            figure_label(text, 14),
            fontsize=9,
            va="center",
            bbox=box,
            zorder=5,  # above the lines, which cross here
        )


def scale_values(
    values: list[Any], domain: Domain | None
) -> tuple[NDArray[np.float64], list[tuple[float, str]]]:
    """Where the values of a setting stand between 0 and 1, and its ticks as (place, text).

    Numbers from a range stand by their size, or its logarithm; listed values stand in their order, evenly.
    """
    texts = list_values(values, domain)
    if texts:
        heights = np.linspace(0, 1, len(texts)) if len(texts) > 1 else np.array([0.5])
        places = [texts.index(str(value)) for value in values]
        return heights[places], list(zip(heights.tolist(), texts, strict=True))
    numbers = np.array(values, dtype=float)
    if is_logarithmic(domain):
        numbers = np.log(numbers)
    low, high = numbers.min(), numbers.max()
    if low == high:
        return np.full(len(numbers), 0.5), [(0.5, short_value(values[0]))]
    tick_values = np.linspace(low, high, 5)
    if is_logarithmic(domain):
        tick_values = np.exp(tick_values)
    texts = [short_value(float(value)) for value in tick_values]
    ticks = zip(np.linspace(0, 1, 5).tolist(), texts, strict=True)
    return (numbers - low) / (high - low), list(ticks)


def list_values(values: list[Any], domain: Domain | None) -> list[str]:
    """What a setting can be, in the order of its list; empty for numbers from a range."""
    if isinstance(domain, Choice):
        # what no trial drew has its place as well
        values = [*domain.choice, *values]
    elif all(isinstance(value, int | float) for value in values):
        return []
    return list(dict.fromkeys(map(str, values)))


def draw_front(
    standings: Sequence[Standing], metric: str, others: Sequence[str], at: int
) -> Figure:
    """The settings by the deciding metric and another one, those that no other beats in colour and with their names.

    Args:
        standings: The settings, with their means.
        metric: The deciding metric, which goes up.
        others: Those that it is weighed against.
        at: Place of the one among them that goes across.
    """
    figure, axes = _figure(5.2, 4.2)
    shown = []
    for standing in standings:
        across, up = standing.others[at], standing.mean
        if across is not None and up is not None:
            shown.append((across, up, standing))
    finished = [standing.rows[0].status == "finished" for _, _, standing in shown]
    edges = [
        ORANGE if standing.is_on_front else BLUE if ended else GREY
        for (_, _, standing), ended in zip(shown, finished, strict=True)
    ]
    faces = [edge if ended else "none" for edge, ended in zip(edges, finished, strict=True)]
    places = [across for across, _, _ in shown], [up for _, up, _ in shown]
    axes.scatter(*places, s=26, facecolors=faces, edgecolors=edges, alpha=0.85)
    front = sorted((across, up) for across, up, standing in shown if standing.is_on_front)
    # with a third metric, what is on the front need not be in line here
    if len(others) == 1 and front:
        axes.plot(*zip(*front, strict=True), color=ORANGE, linewidth=1.2)
    named = [point for point in shown if point[2].is_on_front][:MANY_NAMED]
    for across, up, standing in named:
        name = standing.rows[0].label
        axes.annotate(name, (across, up), (5, 4), textcoords="offset points", fontsize=9)
    axes.set(xlabel=others[at], ylabel=metric)
    return figure


def draw_importance(study: ImportanceStudy) -> Figure:
    """A bar for each setting with the middle 90 % of the resamples; filled where nearly all say that it matters."""
    # matplotlib counts bars from below, and the most important one is to be on top
    shown = study.settings[:20][::-1]
    figure, axes = _figure(5.2, 1.2 + 0.36 * len(shown))
    for place, importance in enumerate(shown):
        colour = BLUE if importance.is_shown else GREY
        # below 0 is chance alone; only the line of the resamples shows it
        axes.barh(place, max(importance.share, 0.0), color=colour, height=0.6, alpha=0.85)
        axes.plot(
            [importance.low, importance.high],
            [place, place],
            color="#222222",
            linewidth=1.6,
            marker="|",
            markersize=8,
        )
    labels = [figure_label(importance.name) for importance in shown]
    axes.set_yticks(range(len(shown)), labels)
    axes.axvline(0, color="#222222", linewidth=1)
    axes.set_xlabel("share of the variance that goes with it")
    return figure


def _values(rows: list[TrialStatus]) -> list[float]:
    return [row.value for row in rows if row.value is not None]


def _short(name: str) -> str:
    return figure_label(name if len(name) <= 22 else f"…{name[-21:]}")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one plot; width and height in inches, each 96 pixels of the page."""
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()


def png_of(draw: Callable[..., Figure], *arguments: Any) -> bytes:
    """The file of a chart, by the function that draws it; the same chart has the same bytes."""
    file = io.BytesIO()
    figure = draw(*arguments)
    with rc_context(STYLE):
        # without matplotlib's version
        figure.savefig(file, format="png", dpi=96 * SCALE, metadata={"Software": None})
    return file.getvalue()

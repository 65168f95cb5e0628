"""What the trials of a sweep say: settings compared over their seeds, and how much each setting matters."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from orchestration.record.score import mean_of, trials_that_count
from orchestration.record.table import SweepTable
from orchestration.record.trial import TrialStatus

T = TypeVar("T")
Verdict = Literal[
    "best",
    "not distinguishable",
    "worse",
    "one seed",
    "stopped early",
    "not finished",
    "no value",
]

RULE = (
    "Two settings count as distinguishable if the 95 % interval of the difference of their means "
    "leaves out 0 (Welch's t, each seed a sample). One seed has no spread, so nothing can be "
    "said; values of trials that were stopped early come from the middle of training and are not "
    "compared."
)

MIN_SETTINGS = 10
"""Importance is not computed from fewer different settings, nor from fewer than three for each setting varied."""
BOOTSTRAPS = 30
TREES = 50
SHUFFLES = 3


@dataclass(frozen=True)
class Standing:
    """One setting with all its seeds."""

    rows: list[TrialStatus]
    values: list[float]
    """The deciding metric of the trials that count: finished ones, or all where none finished."""
    verdict: Verdict
    others: list[float | None] = field(default_factory=list)
    """Means of the metrics that the deciding one is weighed against."""
    is_on_front: bool = False
    """Whether no other setting beats it in all metrics; False for one metric."""

    @property
    def mean(self) -> float | None:
        """Mean over the seeds; None without a value."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def rank_settings(table: SweepTable) -> list[Standing]:
    """The settings of a sweep, best first, each compared with the best by `RULE`."""
    groups = table.settings()
    front = {rows[0].key for rows in table.front()}
    values = [
        [row.value for row in trials_that_count(rows) if row.value is not None] for rows in groups
    ]
    standings: list[Standing] = []
    for rows, setting_values in zip(groups, values, strict=True):
        is_best = not standings
        verdict = _verdict(rows, setting_values, best=values[0], is_best=is_best)
        others = [mean_of(trials_that_count(rows), other) for other in table.others]
        on_front = rows[0].key in front
        standings.append(Standing(rows, setting_values, verdict, others, is_on_front=on_front))
    return standings


def _verdict(
    rows: list[TrialStatus], values: list[float], *, best: list[float], is_best: bool
) -> Verdict:
    if not values:
        return "no value"
    if is_best:
        return "best"
    if all(row.status != "finished" for row in rows):
        return "stopped early" if any(row.status == "stopped" for row in rows) else "not finished"
    if len(values) < 2 or len(best) < 2:
        return "one seed"
    return "worse" if differ(values, best) else "not distinguishable"


def differ(one: Sequence[float], other: Sequence[float]) -> bool:
    """True if the 95 % interval of the difference of two means leaves out 0 (Welch); both have two values or more."""
    # takes a while to load
    from scipy.stats import ttest_ind

    # without any spread the test divides by zero
    if np.ptp(one) == np.ptp(other) == 0:
        return one[0] != other[0]
    return bool(ttest_ind(one, other, equal_var=False).pvalue < 0.05)


@dataclass(frozen=True)
class Importance:
    """How much one setting matters."""

    name: str
    share: float
    """Share of the metric's variance that is due to the setting, alone or with others: median."""
    low: float
    """5 % of the resamples are below."""
    high: float
    """5 % of the resamples are above."""

    @property
    def is_shown(self) -> bool:
        """True if nearly all resamples agree that the setting matters."""
        return self.low > 0


@dataclass(frozen=True)
class ImportanceStudy:
    """The importance of every setting, or why there is none."""

    step: int
    """Trials are compared by their scores at this step."""
    trials: int
    """Trials with an evaluation at the step."""
    settings: list[Importance]
    """Most important first; empty if `reason` is not."""
    explained: float = 0.0
    """Share of the variance that the forest explains of settings that it has not seen: median."""
    reason: str = ""


Curves = dict[str, list[tuple[int, float]]]
"""Trial id -> (step, deciding metric) of its evaluations, steps rising."""


def study_importance(table: SweepTable, curves: Curves) -> ImportanceStudy:
    """Importance of each setting with its uncertainty.

    A random forest learns the metric from the settings of a bootstrap resample, and predicts the settings that the
    resample left out; then once more with the values of one setting shuffled among them. All seeds of a setting go
    together. Half of the growth of the mean squared error is the variance that goes with the setting, because a
    shuffled value is as far off as two random draws are from each other. Trials are compared at the latest step that at
    least half of them reached, so that early stopping does not look like an effect.
    """
    step = common_step(curves)
    targets: dict[str, float] = {}
    for trial, curve in curves.items():
        # as everywhere, trials are judged by their best evaluation so far
        score = table.criterion.best(value for at, value in curve if at <= step)
        if score is not None and step in dict(curve):
            targets[trial] = score
    rows = [row for row in table.rows if row.id in targets]
    # as text, since values can be lists
    names = [name for name in table.names if len({str(row.values.get(name)) for row in rows}) > 1]
    index = {row.id: place for place, row in enumerate(rows)}
    groups = []  # places of the trials of each setting
    for trials in table.settings():
        places = [index[row.id] for row in trials if row.id in index]
        if places:
            groups.append(places)
    needed = max(MIN_SETTINGS, 3 * len(names))
    if len(groups) < needed:
        have = f"{len(groups)} {'setting has' if len(groups) == 1 else 'settings have'} a value at step {step}"
        reason = f"{have}; fewer than {needed} say nothing reliable"
        return ImportanceStudy(step, len(rows), [], reason=reason)
    target = np.array([targets[row.id] for row in rows])
    if not names or np.ptp(target) == 0:
        return ImportanceStudy(
            step, len(rows), [], reason="all trials have the same value or settings"
        )
    inputs = np.column_stack([encode([row.values.get(name) for row in rows]) for name in names])
    # a fixed seed: the same trials give the same importance
    shares, explained = _resample(inputs, target, groups, np.random.default_rng(0))
    low, middle, high = np.quantile(shares, [0.05, 0.5, 0.95], axis=0)
    settings = []
    for place, name in enumerate(names):
        span = float(low[place]), float(high[place])
        settings.append(Importance(name, float(middle[place]), *span))
    settings.sort(key=lambda importance: -importance.share)
    return ImportanceStudy(step, len(rows), settings, explained=float(np.median(explained)))


def common_step(curves: Curves) -> int:
    """The latest step at which at least half of the trials with evaluations have one; 0 without any."""
    counts = Counter(step for curve in curves.values() for step, _ in curve)
    enough = sum(bool(curve) for curve in curves.values()) / 2
    return max((step for step, count in counts.items() if count >= enough), default=0)


def encode(values: list[Any]) -> NDArray[np.float64]:
    """Values of one setting as float (rows,): numbers as they are, anything else by its place in the alphabet.

    None, for a setting that does not apply, stands below all numbers.
    """
    numbers = [value for value in values if value is not None]
    if numbers and all(isinstance(value, int | float) for value in numbers):
        below = min(numbers) - 1
        return np.array([below if value is None else value for value in values], dtype=float)
    # trees ask for an order and no distances, so any order serves
    return np.unique(list(map(str, values)), return_inverse=True)[1].astype(float)


def thin_out(items: list[T], limit: int) -> list[T]:
    """At most `limit` of the items, evenly spread."""
    return items[:: math.ceil(len(items) / limit)] if items else []


def _resample(
    inputs: NDArray[np.float64],
    target: NDArray[np.float64],
    groups: list[list[int]],
    random: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares of variance: due to each setting (resamples, settings), and explained in all (resamples,)."""
    # takes a while to load
    from sklearn.ensemble import RandomForestRegressor

    shares: list[NDArray[np.float64]] = []
    explained: list[float] = []
    while len(shares) < BOOTSTRAPS:
        # drawn with repeats, which leaves out a bit more than a third of the settings
        drawn = random.integers(len(groups), size=len(groups))
        left_out = np.setdiff1d(np.arange(len(groups)), drawn)
        if len(left_out) < 2:
            continue  # nothing to shuffle
        inside = np.concatenate([groups[setting] for setting in drawn])
        outside = np.concatenate([groups[setting] for setting in left_out])
        state = int(random.integers(2**31))
        forest = RandomForestRegressor(TREES, random_state=state, min_samples_leaf=2)
        forest.fit(inputs[inside], target[inside])
        unseen, truth = inputs[outside], target[outside]
        error = np.mean((forest.predict(unseen) - truth) ** 2)
        # (settings, shuffles, trials, settings): predicted together, as each call takes longer than its rows
        shuffled = np.tile(unseen, (inputs.shape[1], SHUFFLES, 1, 1))
        for setting, copies in enumerate(shuffled):
            copies[..., setting] = random.permuted(copies[..., setting], axis=-1)
        predicted = forest.predict(shuffled.reshape(-1, inputs.shape[1]))
        errors = (predicted.reshape(shuffled.shape[:-1]) - truth) ** 2
        explained.append(1 - error / target.var())
        shares.append((errors.mean(axis=(1, 2)) - error) / (2 * target.var()))
    return np.array(shares), np.array(explained)

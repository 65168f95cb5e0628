"""What decides between trials and between settings: the same for table, report, search, early stopping and MLflow.

The score of a trial is the deciding metric of its best evaluation so far, also while it runs and after it was resumed.
A setting is judged by the mean over its seeds. Settings of which all seeds finished come first, then those of which
some did: a value from the middle of training only counts if there is nothing else.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from boxseg.config.criterion import Criterion
from orchestration.record.run_folder import RunFolder
from orchestration.record.trial import TrialStatus


class Merit(NamedTuple):
    """How good a setting is; of two merits the larger one is better."""

    all_finished: bool
    """Whether all of its seeds finished."""
    some_finished: bool
    score: float
    """`Criterion.score` of the mean over its seeds."""
    others: tuple[float, ...] = ()
    """The same for the metrics of `sweep.against`; they decide between settings with equal scores."""

    @property
    def scores(self) -> tuple[float, ...]:
        """All scores, that of the deciding metric first."""
        return (self.score, *self.others)

    @property
    def has_all(self) -> bool:
        """Whether there is a value of each metric."""
        return min(self.scores) > -math.inf


def merit_of(
    rows: Sequence[TrialStatus],
    criterion: Criterion,
    *,
    seeds: int,
    others: Sequence[Criterion] = (),
) -> Merit:
    """How good a setting is by its trials so far.

    Args:
        rows: Its trials.
        criterion: What decides.
        seeds: Number of trials that a setting has in the end.
        others: Metrics of `sweep.against`; their values are those of the evaluation that `criterion` found best.
    """
    counted = trials_that_count(rows)
    finished = sum(row.status == "finished" for row in counted)
    score = criterion.score(_mean(row.value for row in counted))
    scores = [other.score(mean_of(counted, other)) for other in others]
    return Merit(finished >= seeds, finished > 0, score, tuple(scores))


def mean_of(rows: Sequence[TrialStatus], other: Criterion) -> float | None:
    """Mean of a metric at the best evaluations of some trials; None if none has it."""
    return _mean(other.value(row.metrics) for row in rows)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def find_front(points: Sequence[tuple[float, ...]]) -> list[int]:
    """Indices of the points that no other point beats, best first.

    Args:
        points: Scores, of which larger ones are better.
    """
    front: list[int] = []
    # whatever beats a point comes before it in this order, and is itself on the front or beaten by a point of it
    for place in sorted(range(len(points)), key=points.__getitem__, reverse=True):
        point = points[place]
        if not any(beats(points[other], point) for other in front):
            front.append(place)
    return front


def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether one is as good in all numbers and better in at least one."""
    return one != other and all(mine >= its for mine, its in zip(one, other, strict=True))


def trials_that_count(rows: Sequence[TrialStatus]) -> list[TrialStatus]:
    """The trials of a setting that count: those that finished, or else all with a value; of each seed the first."""
    valued = [row for row in rows if row.value is not None]
    finished = [row for row in valued if row.status == "finished"]
    by_seed: dict[int, TrialStatus] = {}
    for row in finished or valued:
        by_seed.setdefault(row.seed, row)  # a repetition tells nothing new
    return list(by_seed.values())


Scores = list[tuple[int, float]]
"""(step, score) after each evaluation of a trial, steps rising."""


def read_scores(trial: RunFolder, criterion: Criterion) -> Scores:
    """The score of a trial after each of its evaluations, as the trial scheduler got it."""
    scores: dict[int, float] = {}
    best: float | None = None
    for report in trial.reports():
        if report.is_evaluation:
            best = criterion.best([best, criterion.value(report.metrics)])
            scores[report.step] = criterion.value_or_worst(best)
    return list(scores.items())

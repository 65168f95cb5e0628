"""What decides between trials and between settings: the same for table, report, search, early stopping and MLflow.

The score of a trial is the deciding metric of its best evaluation so far, whether it works, has ended or was resumed.
A setting is judged by the mean over its seeds. Settings whose seeds all ran to their ends come first, then those of
which some did: a value from the middle of training only counts where there is nothing else.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from boxseg.config.criterion import Criterion
from orchestration.record.run_folder import RunFolder
from orchestration.record.trial import TrialStatus


class Merit(NamedTuple):
    """How good a setting is; the larger one is better."""

    all_finished: bool
    """Whether all of its seeds ran to their ends."""
    some_finished: bool
    score: float
    """`Criterion.score` of the mean over its seeds."""


def merit_of(rows: Sequence[TrialStatus], criterion: Criterion, *, seeds: int) -> Merit:
    """How good a setting is by its trials so far; `seeds` is how many it is to have."""
    counted = counting(rows)
    mean = (
        statistics.fmean(row.value for row in counted if row.value is not None)
        if counted
        else None
    )
    finished = sum(row.status == "finished" for row in counted)
    return Merit(finished >= seeds, finished > 0, criterion.score(mean))


def counting(rows: Sequence[TrialStatus]) -> list[TrialStatus]:
    """The trials of a setting that count: those that finished, or else all with a value; of each seed the first."""
    valued = [row for row in rows if row.value is not None]
    finished = [row for row in valued if row.status == "finished"]
    by_seed: dict[int, TrialStatus] = {}
    for row in finished or valued:
        by_seed.setdefault(row.seed, row)  # the same once more tells nothing new
    return list(by_seed.values())


Scores = list[tuple[int, float]]
"""(step, score) after each evaluation of a trial, steps rising."""


def read_scores(trial: RunFolder, criterion: Criterion) -> Scores:
    """The score of a trial after each of its evaluations, as a trial scheduler was told it."""
    scores: dict[int, float] = {}
    best: float | None = None
    for report in trial.reports():
        if report.is_evaluation:
            best = criterion.best([best, criterion.value(report.metrics)])
            scores[report.step] = criterion.told(best)
    return list(scores.items())

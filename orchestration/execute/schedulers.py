"""Stopping weak trials early: the trial schedulers of Ray Tune, and how a resumed sweep tells them its past."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from orchestration.config.spec import SweepSpec
from orchestration.record.score import Scores

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler


def make_asha(spec: SweepSpec, brackets: int = 1) -> TrialScheduler:
    """Asynchronous successive halving over training steps; nothing is stopped within the burn-in."""
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(
        time_attr="step",
        max_t=spec.train.steps + 1,  # a run ends by itself; reaching max_t would count as stopped
        grace_period=round(spec.rungs[0]),
        reduction_factor=spec.sweep.reduction,
        brackets=brackets,
    )


def make_median(spec: SweepSpec) -> TrialScheduler:
    """Median stopping: after the burn-in, a trial whose best value is below the median of the others' running means."""
    from ray.tune.schedulers import MedianStoppingRule

    return MedianStoppingRule(
        time_attr="step",
        grace_period=spec.rungs[0],
        # otherwise it would pause trials while it has seen too few
        min_time_slice=math.inf,  # type: ignore[arg-type]  # never
    )


TRIAL_SCHEDULERS: dict[str, Callable[[SweepSpec], TrialScheduler | None]] = {
    "none": lambda spec: None,
    "asha": make_asha,
    # Asynchronous HyperBand: each bracket begins to stop trials a rung later, and most trials are in the first.
    "hyperband": lambda spec: make_asha(spec, brackets=len(spec.rungs)),
    "median": make_median,
}


def replay_past(
    scheduler: TrialScheduler,
    *,
    ended: Mapping[int, Scores],
    going_on: Mapping[int, Scores],
    metric: str,
) -> None:
    """Have a scheduler learn what trials reported before the sweep was interrupted.

    The bracket of a trial depends on its number alone, so that it stays in the same one after the interruption.

    Args:
        scheduler: Is changed; learns the past as soon as the first trial starts.
        ended: Number -> scores of the trials that have ended.
        going_on: Number -> scores of the trials that have not.
        metric: Name of the deciding metric.
    """
    from ray.tune.schedulers import MedianStoppingRule

    # `on_trial_result` also decides whether to stop the trial. Halving remembers which trials passed a rung, so it may
    # decide again without harm. The median rule must not: it gets `on_trial_complete`, which only records.
    record: Any = scheduler.on_trial_result
    if isinstance(scheduler, MedianStoppingRule):
        record = scheduler.on_trial_complete
    waiting = dict(ended)
    add = scheduler.on_trial_add

    def replay(controller: Any, tune_trial: Any, number: int, scores: Scores) -> None:
        np.random.seed(number)  # noqa: NPY002  # the scheduler draws the bracket from here
        add(controller, tune_trial)
        for step, score in scores:
            record(controller, tune_trial, {"step": step, metric: score})

    def on_trial_add(controller: Any, tune_trial: Any) -> None:
        # only now, as the scheduler learns the name of the metric after it is made
        while waiting:
            number, scores = waiting.popitem()
            replay(controller, _TuneTrial(f"past-{number}"), number, scores)
        number = tune_trial.config["trial"].number
        # its process repeats the last one itself
        replay(controller, tune_trial, number, going_on.get(number, [])[:-1])

    scheduler.on_trial_add = on_trial_add  # type: ignore[assignment]


class _TuneTrial(NamedTuple):
    """Stands for Tune's object of a trial that has ended; schedulers look at its id alone."""

    trial_id: str

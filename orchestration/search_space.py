"""How trials are chosen and stopped early: a sweep's space in terms of Optuna, its trials in terms of Ray Tune."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestration.config import SweepConfig, SweepSpec
from orchestration.domains import Choice, Domain, LogUniform, RandInt, Uniform

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import Searcher


def make_random(sweep: SweepConfig, seed: int) -> BaseSampler:
    """Independent draws."""
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


def make_tpe(sweep: SweepConfig, seed: int) -> BaseSampler:
    """Tree-structured Parzen estimator; the first third of the trials (at most 10) is drawn at random."""
    from optuna.samplers import TPESampler

    startup = min(10, max(1, sweep.trials // 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant_liar is called experimental; it keeps parallel trials apart
        return TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)


SEARCHERS: dict[str, Callable[[SweepConfig, int], BaseSampler]] = {
    "grid": make_random,  # draws nothing: all combinations wait in Optuna's queue
    "random": make_random,
    "tpe": make_tpe,
}


def make_asha(spec: SweepSpec) -> TrialScheduler:
    """Asynchronous successive halving over training steps; nothing is stopped within the burn-in."""
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(
        time_attr="step",
        max_t=spec.train.steps + 1,  # a run ends by itself; reaching max_t would count as stopped
        grace_period=round(asha_rungs(spec)[0]),
        reduction_factor=spec.sweep.reduction,
    )


def asha_rungs(spec: SweepSpec) -> list[float]:
    """Steps after which ASHA stops weak trials, rising: the burn-in, and each `reduction` times the one before."""
    rungs = [float(max(1, min(spec.train.steps, round(spec.sweep.burn_in * spec.train.steps))))]
    while rungs[-1] * spec.sweep.reduction < spec.train.steps:
        rungs.append(rungs[-1] * spec.sweep.reduction)
    return rungs


def make_no_scheduler(spec: SweepSpec) -> None:
    """Every trial runs to its end."""


TRIAL_SCHEDULERS: dict[str, Callable[[SweepSpec], TrialScheduler | None]] = {
    "none": make_no_scheduler,
    "asha": make_asha,
}


@dataclass(frozen=True)
class Trial:
    """One trial to run."""

    number: int
    """From 0, in the order of asking."""
    values: dict[str, Any]
    """Setting name -> value."""
    seed: int


class TrialQueue:
    """Settings times seeds, one trial after the other; all seeds of a setting come in a row.

    Settings are judged by the mean over their seeds, once all of them have ended.
    """

    def __init__(self, sweep: SweepConfig, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = SEARCHERS[sweep.search](sweep, seed)
        self._study = optuna.create_study(direction="maximize" if sweep.mode == "max" else "minimize", sampler=sampler)
        for indices in grid(sweep) if sweep.search == "grid" else ():
            self._study.enqueue_trial(indices)
        self._sweep = sweep
        self._asked: list[Any] = []  # Optuna's trials, one for each setting
        self._scores: dict[int, list[float | None]] = {}
        self._numbers = iter(range(count_trials(sweep)))

    def next(self) -> Trial | None:
        """The next trial; None when all have been handed out."""
        number = next(self._numbers, None)
        if number is None:
            return None
        which = number % len(self._sweep.seeds)
        if which == 0:
            self._asked.append(self._study.ask())
        values = {name: suggest(self._asked[-1], name, domain) for name, domain in self._sweep.space.items()}
        return Trial(number, values, self._sweep.seeds[which])

    def ended(self, number: int, score: float | None) -> None:
        """Say how good a trial was; None if it has no value of the metric."""
        from optuna.trial import TrialState

        setting = number // len(self._sweep.seeds)
        scores = self._scores.setdefault(setting, [])
        scores.append(score)
        if len(scores) < len(self._sweep.seeds):
            return
        known = [each for each in scores if each is not None and math.isfinite(each)]
        if known:
            self._study.tell(self._asked[setting], sum(known) / len(known))
        else:
            self._study.tell(self._asked[setting], state=TrialState.FAIL)


def make_searcher(queue: TrialQueue, metric: str, mode: str) -> Searcher:
    """A Tune searcher that hands out `{"trial": Trial}` and reports ends back to the queue."""
    from ray.tune.search import Searcher

    class QueueSearcher(Searcher):
        def __init__(self) -> None:
            super().__init__(metric=metric, mode=mode)
            self._numbers: dict[str, int] = {}

        def suggest(self, trial_id: str) -> dict[str, Any] | Any:
            trial = queue.next()
            if trial is None:
                return Searcher.FINISHED
            self._numbers[trial_id] = trial.number
            return {"trial": trial}

        def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
            score = None if error or not result else result.get(metric)
            queue.ended(self._numbers[trial_id], score)

    return QueueSearcher()


def count_trials(sweep: SweepConfig) -> int:
    """Trials of the whole sweep: settings times seeds."""
    settings = len(grid(sweep)) if sweep.search == "grid" else sweep.trials
    return settings * len(sweep.seeds)


def grid(sweep: SweepConfig) -> list[dict[str, int]]:
    """All combinations as places in the lists of values; the settings have made sure that every domain is a list."""
    places = [range(len(domain.choice)) for domain in sweep.space.values() if isinstance(domain, Choice)]
    return [dict(zip(sweep.space, chosen, strict=True)) for chosen in itertools.product(*places)]


def suggest(trial: Any, name: str, domain: Domain) -> Any:
    """The value of a setting in one of Optuna's trials."""
    match domain:
        case Uniform(uniform=(low, high)):
            return trial.suggest_float(name, low, high)
        case LogUniform(loguniform=(low, high)):
            return trial.suggest_float(name, low, high, log=True)
        case RandInt(randint=(low, high)):
            return trial.suggest_int(name, low, high - 1)
        case Choice(choice=values):
            return values[trial.suggest_categorical(name, range(len(values)))]

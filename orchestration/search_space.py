"""How trials are chosen and stopped early: a sweep's space in terms of grid, random numbers, Optuna and Ray Tune."""

from __future__ import annotations

import itertools
import math
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from orchestration.config import SweepConfig, SweepSpec
from orchestration.domains import Choice, Domain, LogUniform, RandInt, Uniform

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import Searcher

Values = dict[str, Any]
"""Setting name -> value."""


class Proposals(Protocol):
    """Proposes settings, and hears how good they were."""

    def ask(self) -> Values | None:
        """The next settings; None when there are no more."""
        ...

    def tell(self, number: int, score: float | None) -> None:
        """The value of the deciding metric for the `number`-th settings asked for (from 0); None: none was reached."""
        ...


class GridProposals:
    """All combinations of the listed values; the last setting changes fastest."""

    def __init__(self, sweep: SweepConfig, seed: int) -> None:
        self._left = iter(grid(sweep))

    def ask(self) -> Values | None:
        """The next combination."""
        return next(self._left, None)

    def tell(self, number: int, score: float | None) -> None:
        """A grid learns nothing."""


class RandomProposals:
    """Independent draws."""

    def __init__(self, sweep: SweepConfig, seed: int) -> None:
        self._sweep = sweep
        self._random = random.Random(seed)

    def ask(self) -> Values:
        """The next draw."""
        return {name: draw(domain, self._random) for name, domain in self._sweep.space.items()}

    def tell(self, number: int, score: float | None) -> None:
        """Draws learn nothing."""


class TpeProposals:
    """Optuna's tree-structured Parzen estimator; the first third of the trials (at most 10) is drawn at random."""

    def __init__(self, sweep: SweepConfig, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        startup = min(10, max(1, sweep.trials // 3))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constant_liar is called experimental; it keeps parallel trials apart
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)
        self._sweep = sweep
        self._study = optuna.create_study(direction="maximize" if sweep.mode == "max" else "minimize", sampler=sampler)
        self._asked: list[Any] = []

    def ask(self) -> Values:
        """What Optuna would try next."""
        trial = self._study.ask()
        self._asked.append(trial)
        return {name: _suggest(trial, name, domain) for name, domain in self._sweep.space.items()}

    def tell(self, number: int, score: float | None) -> None:
        """Pass the score on; settings without one count as failed."""
        from optuna.trial import TrialState

        if score is None or not math.isfinite(score):
            self._study.tell(self._asked[number], state=TrialState.FAIL)
        else:
            self._study.tell(self._asked[number], score)


SEARCHERS: dict[str, Callable[[SweepConfig, int], Proposals]] = {
    "grid": GridProposals,
    "random": RandomProposals,
    "tpe": TpeProposals,
}


def make_asha(spec: SweepSpec) -> TrialScheduler:
    """Asynchronous successive halving over training steps; nothing is stopped within the burn-in."""
    from ray.tune.schedulers import ASHAScheduler

    steps = spec.train.steps
    return ASHAScheduler(
        time_attr="step",
        max_t=steps + 1,  # a run ends by itself; reaching max_t would count as stopped
        grace_period=max(1, min(steps, round(spec.sweep.burn_in * steps))),
        reduction_factor=spec.sweep.reduction,
    )


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
    values: Values
    seed: int


class TrialQueue:
    """Settings times seeds, one trial after the other; all seeds of a setting come in a row.

    Settings are judged by the mean over their seeds, once all of them have ended.
    """

    def __init__(self, sweep: SweepConfig, seed: int) -> None:
        self._proposals = SEARCHERS[sweep.search](sweep, seed)
        self._seeds = sweep.seeds
        self._total = count_trials(sweep)
        self._settings: list[Values] = []
        self._scores: dict[int, list[float | None]] = {}
        self._asked = 0

    def next(self) -> Trial | None:
        """The next trial; None when all have been handed out."""
        if self._asked >= self._total:
            return None
        which = self._asked % len(self._seeds)
        if which == 0:
            values = self._proposals.ask()
            if values is None:
                return None
            self._settings.append(values)
        trial = Trial(self._asked, self._settings[-1], self._seeds[which])
        self._asked += 1
        return trial

    def ended(self, number: int, score: float | None) -> None:
        """Say how good a trial was; None if it has no value of the metric."""
        setting = number // len(self._seeds)
        scores = self._scores.setdefault(setting, [])
        scores.append(score)
        if len(scores) == len(self._seeds):
            known = [each for each in scores if each is not None]
            self._proposals.tell(setting, sum(known) / len(known) if known else None)


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


def grid(sweep: SweepConfig) -> list[Values]:
    """All combinations of the listed values; the settings have made sure that every domain is a list."""
    lists = [domain.choice for domain in sweep.space.values() if isinstance(domain, Choice)]
    return [dict(zip(sweep.space, values, strict=True)) for values in itertools.product(*lists)]


def draw(domain: Domain, source: random.Random) -> Any:
    """One random value of a domain."""
    match domain:
        case Uniform(uniform=(low, high)):
            return source.uniform(low, high)
        case LogUniform(loguniform=(low, high)):
            return math.exp(source.uniform(math.log(low), math.log(high)))
        case RandInt(randint=(low, high)):
            return source.randrange(low, high)
        case Choice(choice=values):
            return source.choice(values)


def _suggest(trial: Any, name: str, domain: Domain) -> Any:
    match domain:
        case Uniform(uniform=(low, high)):
            return trial.suggest_float(name, low, high)
        case LogUniform(loguniform=(low, high)):
            return trial.suggest_float(name, low, high, log=True)
        case RandInt(randint=(low, high)):
            return trial.suggest_int(name, low, high - 1)
        case Choice(choice=values):
            return values[trial.suggest_categorical(name, range(len(values)))]

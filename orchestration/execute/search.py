"""How trials are chosen: a sweep's space in terms of Optuna, and the queue of trials that Ray Tune asks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from boxseg.config.criterion import Criterion
from orchestration.config.space import (
    Choice,
    Domain,
    LogRandInt,
    LogUniform,
    QRandInt,
    QUniform,
    RandInt,
    Uniform,
    count_settings,
    is_same,
    nth_setting,
    stepped_values,
)
from orchestration.config.spec import SweepConfig
from orchestration.record.score import merit_of
from orchestration.record.trial import Trial, TrialStatus, setting_key

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
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
        # constant_liar is called experimental; it keeps parallel trials apart
        warnings.simplefilter("ignore")
        return TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)


DRAWS = 20
"""How often a search may draw a setting that was drawn before; then it gets one that no trial has."""

SEARCHERS: dict[str, Callable[[SweepConfig, int], BaseSampler]] = {
    "grid": make_random,  # draws nothing: settings are taken by their number
    "random": make_random,
    "tpe": make_tpe,
}


class TrialQueue:
    """Settings times seeds, one trial after the other; all seeds of a setting come in a row.

    The points that the sweep names come first, and no setting comes twice. They are judged by `merit_of` their
    seeds, once all of them have ended. What is drawn for a setting depends only on the sweep's seed, the setting's
    number and the scores so far. A resumed sweep therefore draws what it would have drawn without the interruption.
    """

    def __init__(self, sweep: SweepConfig, seed: int, past: Sequence[TrialStatus] = ()) -> None:
        """`past` trials keep their values; those that have ended are not handed out again."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # `Criterion.score` is larger where a value is better, whatever the mode
        self._study = optuna.create_study(direction="maximize")
        self._sweep = sweep
        self._seed = seed
        self._known: dict[int, dict[str, Any]] = {}
        """Values of past settings, by place of the setting."""
        for row in past:
            self._known[row.number // len(sweep.seeds)] = row.values
        self._asked: dict[int, Any] = {}
        """Optuna's trials, by place of the setting."""
        self._taken: set[str] = set()
        """`setting_key` of each."""
        self._ended: dict[int, list[TrialStatus | None]] = {}
        """Trials that have ended, by place of the setting."""
        # asked for again in their order, so that Optuna knows the past before it draws
        for setting in sorted(self._known):
            self._values(setting)
        ended = [row for row in past if row.has_ended]
        for row in ended:
            self.ended(row.number, row)
        left = set(range(sweep.num_trials)) - {row.number for row in ended}
        self._left = iter(sorted(left))

    def next(self, *, may_begin: Callable[[], bool] = lambda: True) -> Trial | None:
        """The next trial; None when all have been handed out, or `may_begin` does not let another setting begin."""
        number = next(self._left, None)
        if number is None:
            return None
        setting, seed_index = divmod(number, len(self._sweep.seeds))
        if setting not in self._asked and not may_begin():
            self._left = iter(())
            return None
        return Trial(number, self._values(setting), self._sweep.seeds[seed_index])

    def ended(self, number: int, row: TrialStatus | None) -> None:
        """Say how a trial stands at its end; None if nobody knows."""
        setting = number // len(self._sweep.seeds)
        ended = self._ended.setdefault(setting, [])
        ended.append(row)
        if len(ended) == len(self._sweep.seeds):
            self._judge(setting, [row for row in ended if row is not None])

    def _judge(self, setting: int, rows: list[TrialStatus]) -> None:
        """Tell Optuna how good a setting is, in the order of `Merit`: for it, pruned comes behind complete."""
        from optuna.trial import TrialState

        merit = merit_of(rows, self._sweep.criterion, seeds=len(self._sweep.seeds))
        if merit.score == -math.inf:
            self._study.tell(self._asked[setting], state=TrialState.FAIL)
        elif merit.all_finished:
            self._study.tell(self._asked[setting], merit.score)
        else:
            # of two pruned ones Optuna takes that of the later step
            self._asked[setting].report(merit.score, step=int(merit.some_finished))
            self._study.tell(self._asked[setting], state=TrialState.PRUNED)

    def _values(self, setting: int) -> dict[str, Any]:
        """Setting name -> value of the setting at a place, drawn when it is first asked for."""
        if setting not in self._asked:
            self._asked[setting] = self._draw(setting)
        return self._suggested(self._asked[setting])

    def _draw(self, setting: int) -> Any:
        """Optuna's trial with values that no other setting has."""
        from optuna.trial import TrialState

        if setting in self._known:
            return self._ask_for(self._known[setting])
        if setting < len(self._sweep.points):
            return self._ask_for(self._sweep.points[setting])
        if self._sweep.search == "grid":
            return self._ask_for(nth_setting(self._sweep.space, setting))
        for attempt in range(DRAWS):
            # a new sampler for each: what it draws does not depend on how many were drawn before
            seed = self._seed_of(setting, attempt)
            self._study.sampler = SEARCHERS[self._sweep.search](self._sweep, seed)
            drawn = self._study.ask()
            values = self._suggested(drawn)
            if setting_key(values) not in self._taken:
                self._taken.add(setting_key(values))
                return drawn
            self._study.tell(drawn, state=TrialState.FAIL)  # which samplers do not look at
        return self._ask_for(self._untried(seed))

    def _seed_of(self, setting: int, attempt: int) -> int:
        words = [self._seed % 2**32, setting, *([attempt] if attempt else [])]
        return int(np.random.SeedSequence(words).generate_state(1)[0])

    def _ask_for(self, values: dict[str, Any]) -> Any:
        """Optuna's trial with these values."""
        space = self._sweep.space
        self._taken.add(setting_key(values))
        self._study.enqueue_trial(
            {name: place_in(space[name], value) for name, value in values.items()}
        )
        return self._study.ask()

    def _untried(self, seed: int) -> dict[str, Any]:
        """A setting of a finite space that no trial has yet; there is one, as a sweep has no more trials than that."""
        space = self._sweep.space
        size = count_settings(space)
        assert size is not None  # real numbers do not repeat
        for number in range(seed % size, seed % size + size):
            values = nth_setting(space, number % size)
            if setting_key(values) not in self._taken:
                return values
        raise AssertionError

    def _suggested(self, drawn: Any) -> dict[str, Any]:
        return {name: suggest(drawn, name, domain) for name, domain in self._sweep.space.items()}


def make_searcher(
    queue: TrialQueue,
    criterion: Criterion,
    *,
    note: Callable[[Trial], None],
    status_of: Callable[[Trial], TrialStatus | None],
    may_begin: Callable[[], bool] = lambda: True,
) -> Searcher:
    """A Tune searcher that hands out `{"trial": Trial}` and reports ends back to the queue.

    Args:
        queue: The trials to come.
        criterion: What decides.
        note: Hears of each trial before Tune does.
        status_of: How a trial stands. Tune would tell the last evaluation, which need not be the best.
        may_begin: Whether another setting may begin.
    """
    from ray.tune.search import Searcher

    class QueueSearcher(Searcher):
        def __init__(self) -> None:
            super().__init__(metric=criterion.metric, mode=criterion.mode)
            self._trials: dict[str, Trial] = {}

        def suggest(self, trial_id: str) -> dict[str, Any] | Any:
            trial = queue.next(may_begin=may_begin)
            if trial is None:
                return Searcher.FINISHED
            self._trials[trial_id] = trial
            note(trial)
            return {"trial": trial}

        def on_trial_complete(
            self,
            trial_id: str,
            result: dict | None = None,
            error: bool = False,
        ) -> None:
            trial = self._trials[trial_id]
            queue.ended(trial.number, status_of(trial))

        def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
            # Tune stores it to restore an experiment; our journal serves for that
            return object, ()

    return QueueSearcher()


def suggest(trial: Any, name: str, domain: Domain) -> Any:
    """The value of a setting in one of Optuna's trials."""
    # by the place, so that a value is the same number however often it is drawn
    match domain:
        case Uniform(uniform=(low, high)):
            return trial.suggest_float(name, low, high)
        case LogUniform(loguniform=(low, high)):
            return trial.suggest_float(name, low, high, log=True)
        case RandInt(randint=(low, high)):
            return trial.suggest_int(name, low, high - 1)
        case LogRandInt(lograndint=(low, high)):
            return trial.suggest_int(name, low, high - 1, log=True)
        case QRandInt() | QUniform():
            values = stepped_values(domain)
            return values[trial.suggest_int(name, 0, len(values) - 1)]
        case Choice(choice=values):
            return values[trial.suggest_categorical(name, range(len(values)))]


def place_in(domain: Domain, value: Any) -> Any:
    """The value as Optuna knows it, the inverse of `suggest`: for a choice or a range with steps its position."""
    match domain:
        case Choice(choice=values):
            return next(place for place, other in enumerate(values) if is_same(value, other))
        case QRandInt() | QUniform():
            return stepped_values(domain).index(value)
    return value

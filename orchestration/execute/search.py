"""How trials are chosen: the queue that Ray Tune takes them from, and a sweep's space in terms of Optuna."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestration.config.domain import (
    Choice,
    Domain,
    Together,
    ends_of,
    is_logarithmic,
    is_same,
    values_of,
)
from orchestration.config.space import applies, count_settings, draw, settings_of, value_in
from orchestration.config.spec import SweepConfig
from orchestration.record.score import merit_of
from orchestration.record.trial import Trial, TrialStatus, setting_key

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


def make_random(sweep: SweepConfig, seed: int) -> BaseSampler:
    """Independent draws."""
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


def make_tpe(sweep: SweepConfig, seed: int) -> BaseSampler:
    """Tree-structured Parzen estimator, for one metric or several.

    The first third of the trials (at most 10) is drawn at random.
    """
    from optuna.samplers import TPESampler

    startup = min(10, max(1, sweep.trials // 3))
    with warnings.catch_warnings():
        # constant_liar is called experimental; it keeps parallel trials apart
        warnings.simplefilter("ignore")
        return TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)


DRAWS = 20
"""After this many draws of settings that trials have already, a setting that no trial has is taken at random."""
MAX_SKIPPED = 10_000
"""The search for an untried setting in a finite space begins behind a random number of settings, at most this many."""

SEARCHERS: dict[str, Callable[[SweepConfig, int], BaseSampler]] = {
    "grid": make_random,  # draws nothing: settings are taken by their number
    "random": make_random,
    "tpe": make_tpe,
}


class TrialQueue:
    """Settings times seeds, one trial after the other; all seeds of a setting come in a row.

    The points that the sweep names come first, and no setting comes twice. A setting is judged by `merit_of` its
    trials, once those of all seeds have ended. What is drawn for a setting depends only on the sweep's seed, the
    setting's place and the scores so far. So a resumed sweep draws what it would have drawn without the interruption.
    Trials keep their numbers; trials that are added to a sweep later, also those of new seeds, get numbers that are
    free.
    """

    def __init__(self, sweep: SweepConfig, seed: int, past: Sequence[TrialStatus] = ()) -> None:
        """Trials of the `past` keep their values; those that have ended are not handed out again."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # `Criterion.score` is larger where a value is better, whatever the mode
        self._study = optuna.create_study(directions=["maximize"] * (1 + len(sweep.against)))
        self._sweep = sweep
        self._seed = seed
        self._optuna_trials: list[Any] = []
        """One for each setting; the index in this list is the setting's place."""
        self._taken: set[str] = set()
        """`setting_key` of each setting."""
        self._place_of: dict[int, int] = {}
        """Number of a trial -> place of its setting."""
        self._ended: dict[int, dict[int, TrialStatus | None]] = {}
        """Place of a setting -> number -> its trials that have ended."""
        self._grid = settings_of(sweep.space)
        places: dict[str, int] = {}
        past = sorted(past, key=lambda row: row.number)
        # proposed again in their order, so that Optuna knows the past before it draws
        for row in past:
            if row.key not in places:
                places[row.key] = len(self._optuna_trials)
                self._optuna_trials.append(self._ask_for(row.values))
            self._place_of[row.number] = places[row.key]
        for row in past:
            if row.has_ended:
                self.note_end(row.number, row)
        self._left = self._trials_left(past)

    def _trials_left(self, past: Sequence[TrialStatus]) -> Iterator[tuple[int, int, int]]:
        """(number, place of the setting, seed) of the trials that have not ended, in the order in which they start."""
        numbers = {(self._place_of[row.number], row.seed): row.number for row in past}
        ended = {row.number for row in past if row.has_ended}
        used = set(numbers.values())
        free = (number for number in itertools.count() if number not in used)
        settings = range(self._sweep.num_trials // len(self._sweep.seeds))
        for place, seed in itertools.product(settings, self._sweep.seeds):
            number = numbers[place, seed] if (place, seed) in numbers else next(free)
            if number not in ended:
                yield number, place, seed

    def next(self, *, may_begin: Callable[[], bool] = lambda: True) -> Trial | None:
        """The next trial; None when all have been handed out, or `may_begin` lets no further setting begin."""
        number, place, seed = next(self._left, (None, 0, 0))
        if number is None:
            return None
        if place == len(self._optuna_trials):
            if not may_begin():
                self._left = iter(())
                return None
            self._optuna_trials.append(self._draw(place))
        self._place_of[number] = place
        return Trial(number, self._suggested(self._optuna_trials[place]), seed)

    def note_end(self, number: int, row: TrialStatus | None) -> None:
        """Take the final state of a trial; None if it cannot be known."""
        place = self._place_of[number]
        ended = self._ended.setdefault(place, {})
        ended[number] = row
        if len(ended) == len(self._sweep.seeds):
            self._judge(
                self._optuna_trials[place], [row for row in ended.values() if row is not None]
            )

    def _judge(self, optuna_trial: Any, rows: list[TrialStatus]) -> None:
        """Tell Optuna how good a setting is, so that its order is that of `Merit`: it puts pruned behind complete."""
        from optuna.trial import TrialState

        sweep = self._sweep
        merit = merit_of(rows, sweep.criterion, seeds=len(sweep.seeds), others=sweep.others)
        if not merit.has_all:
            self._study.tell(optuna_trial, state=TrialState.FAIL)
        elif merit.all_finished:
            self._study.tell(optuna_trial, list(merit.scores))
        else:
            if not merit.others:  # with more than one metric, Optuna takes pruned ones as alike
                # of two pruned trials, Optuna prefers the one with the later step
                optuna_trial.report(merit.score, step=int(merit.some_finished))
            self._study.tell(optuna_trial, state=TrialState.PRUNED)

    def _draw(self, place: int) -> Any:
        """Optuna's trial with values that no other setting has."""
        from optuna.trial import TrialState

        given = self._grid if self._sweep.search == "grid" else self._sweep.points
        for values in given:
            if setting_key(values) not in self._taken:
                return self._ask_for(values)
        is_endless = count_settings(self._sweep.space) is None
        for attempt in itertools.count():
            seed = self._seed_of(place, attempt)
            if attempt >= DRAWS and not is_endless:
                return self._ask_for(self._untried(seed))
            # a search may keep coming back to what it drew; a random draw is new sooner or later
            search = self._sweep.search if attempt < DRAWS else "random"
            # a new sampler for each draw, which does not depend on how many were drawn before
            self._study.sampler = SEARCHERS[search](self._sweep, seed)
            optuna_trial = self._study.ask()
            values = self._suggested(optuna_trial)
            if setting_key(values) not in self._taken:
                self._taken.add(setting_key(values))
                return optuna_trial
            self._study.tell(optuna_trial, state=TrialState.FAIL)  # samplers ignore failed trials
        raise AssertionError

    def _seed_of(self, place: int, attempt: int) -> int:
        words = [self._seed % 2**32, place, *([attempt] if attempt else [])]
        return int(np.random.SeedSequence(words).generate_state(1)[0])

    def _ask_for(self, values: dict[str, Any]) -> Any:
        """Have Optuna propose exactly these values, which count as taken from now on."""
        self._taken.add(setting_key(values))
        places = {}
        for name, domain in self._sweep.space.items():
            if applies(domain, values):
                places[name] = place_in(domain, value_in(values, name, domain))
        self._study.enqueue_trial(places)
        optuna_trial = self._study.ask()
        self._suggested(optuna_trial)  # Optuna notes a value once it is suggested
        return optuna_trial

    def _untried(self, seed: int) -> dict[str, Any]:
        """A setting of a finite space that no trial has yet; there is one, as no sweep has more settings than that."""
        space = self._sweep.space
        size = count_settings(space)
        assert size is not None  # real numbers do not repeat
        # from a random one on, so that the rest is not tried in the order of the space
        begin = seed % min(size, MAX_SKIPPED)
        for values in itertools.chain(
            itertools.islice(settings_of(space), begin, None), settings_of(space)
        ):
            if setting_key(values) not in self._taken:
                return values
        raise AssertionError

    def _suggested(self, optuna_trial: Any) -> dict[str, Any]:
        return draw(self._sweep.space, functools.partial(suggest, optuna_trial))


def suggest(trial: Any, name: str, domain: Domain) -> Any:
    """The value of a setting in one of Optuna's trials."""
    values, is_log = values_of(domain), is_logarithmic(domain)
    if values is None:
        return trial.suggest_float(name, *ends_of(domain), log=is_log)
    if isinstance(values, range):
        return trial.suggest_int(name, values[0], values[-1], log=is_log)
    # by its place in the list, so that a value is exactly the same number each time it is drawn
    if isinstance(domain, Choice | Together):
        return values[trial.suggest_categorical(name, range(len(values)))]
    return values[trial.suggest_int(name, 0, len(values) - 1)]


def place_in(domain: Domain, value: Any) -> Any:
    """A value as Optuna has it, the inverse of `suggest`: its place if the values are in a list."""
    values = values_of(domain)
    if not isinstance(values, list):
        return value
    return next(place for place, other in enumerate(values) if is_same(value, other))

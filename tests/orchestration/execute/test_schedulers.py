"""Weak trials are stopped early, nothing within the burn-in; what was reported before an interruption counts."""

from dataclasses import dataclass

import pytest
from pydantic import ValidationError

from orchestration.config.spec import SweepConfig, SweepSpec
from orchestration.execute.schedulers import TRIAL_SCHEDULERS, replay_past
from orchestration.record.trial import Trial


def test_every_name_of_the_settings_has_an_entry():
    assert set(TRIAL_SCHEDULERS) == set(
        SweepConfig.model_fields["trial_scheduler"].annotation.__args__
    )


@dataclass(frozen=True, eq=False)
class TuneTrial:
    """The part of a trial that schedulers look at."""

    trial_id: str
    config: dict


def add(scheduler, number: int):
    tune_trial = TuneTrial(f"now-{number}", {"trial": Trial(number, {}, 0)})
    scheduler.on_trial_add(None, tune_trial)
    return tune_trial


def test_asha_remembers_what_trials_reported_before_the_sweep_was_interrupted():
    spec = SweepSpec.model_validate(
        {"train": {"steps": 100}, "sweep": {"burn_in": 0.1, "reduction": 2}}
    )
    scheduler = TRIAL_SCHEDULERS["asha"](spec)
    scheduler.set_search_properties("val/mask_ap", "max")
    going_on = {2: [(10, 0.2), (20, 0.6)], 4: [(10, 0.1)]}
    ended = {number: [(10, 0.5), (20, 0.6)] for number in range(2)}
    replay_past(scheduler, ended=ended, going_on=going_on, metric="val/mask_ap")
    going_on, new, stopped = (add(scheduler, number) for number in (2, 3, 4))

    def report(tune_trial, step: int, value: float) -> str:
        return scheduler.on_trial_result(None, tune_trial, {"step": step, "val/mask_ap": value})

    assert report(stopped, 10, 0.1) == "STOP", "this answer went with the driver"
    assert report(going_on, 10, 0.2) == "CONTINUE", "it was let through at this rung before"
    assert report(going_on, 20, 0.6) == "CONTINUE"
    assert report(new, 10, 0.3) == "STOP"


def make_scheduler(name: str, ended=None, going_on=None, **sweep):
    spec = SweepSpec.model_validate(
        {"train": {"steps": 200}, "sweep": {"burn_in": 0.1, "reduction": 3, **sweep}}
    )
    scheduler = TRIAL_SCHEDULERS[name](spec)
    scheduler.set_search_properties("val/mask_ap", "max")
    past = {"ended": ended or {}, "going_on": going_on or {}}
    replay_past(scheduler, **past, metric="val/mask_ap")
    return scheduler


def test_every_scheduler_stops_weak_trials_but_nothing_within_the_burn_in():
    for name in sorted(set(TRIAL_SCHEDULERS) - {"none"}):
        scheduler = make_scheduler(name)
        trials = [add(scheduler, number) for number in range(20)]
        stopped: dict[int, int] = {}
        for step in range(5, 200, 5):
            for value, trial in reversed(list(enumerate(trials))):
                report = {"step": step, "val/mask_ap": value / 20 + step / 1000}
                if (
                    value not in stopped
                    and scheduler.on_trial_result(None, trial, report) == "STOP"
                ):
                    stopped[value] = step
        assert min(stopped.values()) == 20, name
        assert 0 in stopped, name
        assert 19 not in stopped, name


def test_the_brackets_of_hyperband_begin_later_and_later_and_a_trial_stays_in_its_own():
    scheduler = make_scheduler("hyperband")
    first = [min(milestone for milestone, _ in bracket._rungs) for bracket in scheduler._brackets]
    assert first == [20, 60, 180]

    def brackets_of(scheduler) -> list[int]:
        added = [add(scheduler, number).trial_id for number in range(30)]
        return [scheduler._brackets.index(scheduler._trial_info[id]) for id in added]

    chosen = brackets_of(scheduler)
    assert chosen.count(0) > chosen.count(1) > chosen.count(2) > 0
    ended, going_on = {number: [] for number in range(5)}, {5: [], 6: []}
    resumed = make_scheduler("hyperband", ended, going_on)
    assert brackets_of(resumed) == chosen, "so too after a resume"


def test_the_median_rule_remembers_what_trials_reported_before_the_sweep_was_interrupted():
    ended = {number: [(20, 0.5), (40, 0.6)] for number in range(3)}
    scheduler = make_scheduler("median", ended, {3: [(20, 0.1), (40, 0.7)]})
    going_on, weak = add(scheduler, 3), add(scheduler, 4)
    assert (
        scheduler.on_trial_result(None, going_on, {"step": 40, "val/mask_ap": 0.7}) == "CONTINUE"
    )
    assert scheduler.on_trial_result(None, weak, {"step": 20, "val/mask_ap": 0.3}) == "STOP"
    few = make_scheduler("median", {number: ended[number] for number in range(2)})
    assert (
        few.on_trial_result(None, add(few, 4), {"step": 20, "val/mask_ap": 0.3}) == "CONTINUE"
    ), "too few to judge by"


def test_what_is_not_offered_says_what_to_use_instead():
    with pytest.raises(ValidationError, match=r"pbt is not offered.*asha, hyperband or median"):
        SweepConfig.model_validate({"trial_scheduler": "pbt"})
    with pytest.raises(ValidationError, match=r"nsga2 is not offered.*search: tpe"):
        SweepConfig.model_validate({"search": "nsga2"})

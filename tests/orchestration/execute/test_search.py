"""Trials are proposed as the sweep asks: the whole grid, draws in range, TPE that learns, seeds one after the other."""

import math
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from boxseg.config.criterion import Criterion
from orchestration.config.spec import SweepConfig
from orchestration.execute.search import SEARCHERS, TrialQueue
from orchestration.execute.tune import make_searcher
from orchestration.record.table import SweepTable
from orchestration.record.trial import Trial, TrialStatus

RANGES = {
    "qam.iou_thr": {"uniform": [0.4, 0.8]},
    "solver.lr": {"loguniform": [1e-4, 1e-1]},
    "qam.k_top": {"randint": [2, 5]},
    "qam.fusion": {"choice": ["vote", "weighted"]},
}


def make_sweep(**settings) -> SweepConfig:
    return SweepConfig.model_validate(settings)


def all_trials(sweep: SweepConfig, seed: int = 0) -> list:
    queue = TrialQueue(sweep, seed)
    return list(iter(queue.next, None))


def test_every_name_of_the_settings_has_an_entry():
    assert set(SEARCHERS) == set(SweepConfig.model_fields["search"].annotation.__args__)


def test_a_grid_has_all_combinations_times_seeds_with_the_seeds_of_a_setting_in_a_row():
    space = {"qam.k_top": {"choice": [1, 5]}, "qam.fusion": {"choice": ["vote", "weighted"]}}
    sweep = make_sweep(search="grid", seeds=[3, 4], space=space)
    trials = all_trials(sweep)
    assert sweep.num_trials == len(trials) == 8
    assert [trial.number for trial in trials] == list(range(8))
    assert [trial.seed for trial in trials] == [3, 4] * 4
    settings = [(trial.values["qam.k_top"], trial.values["qam.fusion"]) for trial in trials]
    assert (
        settings[::2]
        == settings[1::2]
        == [(1, "vote"), (1, "weighted"), (5, "vote"), (5, "weighted")]
    )


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_values_lie_in_their_domains_and_the_seed_repeats_them(search):
    sweep = make_sweep(search=search, trials=20, space=RANGES)
    trials = all_trials(sweep)
    for values in (trial.values for trial in trials):
        assert 0.4 <= values["qam.iou_thr"] <= 0.8
        assert 1e-4 <= values["solver.lr"] <= 1e-1
        assert values["qam.k_top"] in (2, 3, 4)
        assert values["qam.fusion"] in ("vote", "weighted")
    assert {trial.values["qam.k_top"] for trial in trials} == {2, 3, 4}
    assert trials == all_trials(sweep)
    assert trials != all_trials(sweep, seed=1)
    below = sum(math.log10(trial.values["solver.lr"]) < -2.5 for trial in trials)
    assert 3 <= below <= 17, "half of a logarithmic scale lies below its middle"


STEPS = {
    "qam.iou_thr": {"quniform": [0.1, 0.75, 0.2]},
    "qam.k_top": {"qrandint": [1, 20, 5]},
    "train.batch_size": {"lograndint": [1, 65]},
}


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_ranges_with_steps_give_the_numbers_that_people_would_write(search):
    sweep = make_sweep(search=search, trials=40, space=STEPS)
    trials = all_trials(sweep)
    assert {trial.values["qam.iou_thr"] for trial in trials} == {0.1, 0.3, 0.5, 0.7}
    assert {trial.values["qam.k_top"] for trial in trials} == {1, 6, 11, 16}
    sizes = [trial.values["train.batch_size"] for trial in trials]
    assert all(isinstance(size, int) and 1 <= size <= 64 for size in sizes)
    assert 10 <= sum(size <= 8 for size in sizes) <= 30, "half of the logarithmic scale is up to 8"
    # A sweep that goes on draws what it would have drawn: each value finds its place again.
    queue, past = TrialQueue(sweep, 0), []
    for number in range(20):
        past.append(status_of(queue.next(), 0.1 * number))
        queue.note_end(number, past[-1])
    assert TrialQueue(sweep, 0, past).next() == queue.next()


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_given_points_come_first_and_the_others_are_drawn_as_without_them(search):
    points = [
        {"qam.iou_thr": 0.5, "solver.lr": 1e-3, "qam.k_top": 4, "qam.fusion": "weighted"},
        {"qam.iou_thr": 0.8, "solver.lr": 1e-4, "qam.k_top": 2, "qam.fusion": "vote"},
    ]
    trials = all_trials(make_sweep(search=search, trials=6, space=RANGES, points=points))
    assert [trial.values for trial in trials[:2]] == points
    if search == "random":
        plain = all_trials(make_sweep(search=search, trials=6, space=RANGES))
        assert trials[2:] == plain[2:]


def status_of(trial: Trial, value: float | None, status: str = "finished") -> TrialStatus:
    tags = {"trial": str(trial.number), "seed": str(trial.seed)}
    return TrialStatus(
        f"x-{trial.number:02d}", "x", status=status, value=value, values=trial.values, tags=tags
    )


def run_tpe(score, mode: str, trials: int = 40) -> list[float]:
    sweep = make_sweep(
        search="tpe", mode=mode, trials=trials, space={"qam.iou_thr": {"uniform": [0.0, 1.0]}}
    )
    queue = TrialQueue(sweep, seed=0)
    tried = []
    while (trial := queue.next()) is not None:
        tried.append(trial.values["qam.iou_thr"])
        queue.note_end(trial.number, status_of(trial, score(tried[-1])))
    return tried


def test_tpe_moves_towards_good_values_and_respects_the_mode():
    for mode, sign in (("max", -1), ("min", 1)):
        tried = run_tpe(lambda value, sign=sign: sign * (value - 0.8) ** 2, mode)
        late = tried[-15:]
        assert sum(abs(value - 0.8) < 0.2 for value in late) >= 9, (mode, late)


def test_trials_without_a_value_do_not_stop_the_search():
    tried = run_tpe(
        lambda value: None if value < 0.6 else value,
        "max",
        trials=15,
    )
    assert len(tried) == 15


def test_a_setting_is_judged_by_the_mean_over_its_seeds():
    sweep = make_sweep(
        search="random", trials=2, seeds=[0, 1, 2], space={"qam.iou_thr": {"uniform": [0.0, 0.9]}}
    )
    queue = TrialQueue(sweep, seed=0)
    told = []
    queue._study.tell = lambda trial, value=None, state=None: told.append((trial.number, value))
    trials = [queue.next() for _ in range(6)]
    for number, value in ((0, 1.0), (4, None), (1, 2.0), (2, 3.0)):
        queue.note_end(number, status_of(trials[number], value))
    assert told == [(0, [2.0])]
    queue.note_end(3, None)
    queue.note_end(5, status_of(trials[5], None))
    assert told == [(0, [2.0]), (1, None)]


def test_tpe_does_not_follow_values_from_the_middle_of_stopped_trials():
    space = {"qam.iou_thr": {"uniform": [0.0, 1.0]}}
    sweep = make_sweep(search="tpe", trials=40, space=space)
    queue = TrialQueue(sweep, seed=0)
    tried = []
    while (trial := queue.next()) is not None:
        value = trial.values["qam.iou_thr"]
        tried.append(value)
        stopped = status_of(trial, 0.9, "stopped")  # the table has it behind all that finished
        queue.note_end(trial.number, stopped if value < 0.5 else status_of(trial, value / 2))
    assert sum(value >= 0.5 for value in tried[-15:]) >= 12


def test_the_tune_searcher_hands_out_all_trials_once_and_passes_scores_back():
    sweep = make_sweep(search="grid", space={"qam.k_top": {"choice": [1, 5]}})
    queue = TrialQueue(sweep, seed=0)
    told = []
    queue.note_end = lambda number, row: told.append((number, row))
    noted = []
    rows = {0: None, 1: status_of(Trial(1, {}, 0), 0.5)}
    trials = SimpleNamespace(
        payload=SimpleNamespace(spec=SimpleNamespace(sweep=sweep)),
        note_drawn=noted.append,
        status_of=lambda trial: rows[trial.number],
        may_begin=lambda: True,
    )
    searcher = make_searcher(trials, queue)
    assert searcher.suggest("a")["trial"].values == {"qam.k_top": 1}
    assert searcher.suggest("b")["trial"].number == 1
    assert searcher.suggest("c") == searcher.FINISHED
    searcher.on_trial_complete("b", {"val/mask_ap": 0.1})  # of the last evaluation
    searcher.on_trial_complete("a", None, error=True)
    assert told == [(1, rows[1]), (0, None)]
    assert [trial.number for trial in noted] == [0, 1]


FINITE = {"qam.k_top": {"randint": [1, 4]}, "qam.fusion": {"choice": ["vote", "weighted"]}}


@pytest.mark.parametrize("search", ["random", "tpe"])
@pytest.mark.parametrize("trials", [5, 30])
def test_no_setting_of_a_finite_space_is_drawn_twice(search, trials):
    sweep = make_sweep(search=search, trials=trials, seeds=[3, 4], space=FINITE)
    queue, drawn = TrialQueue(sweep, seed=0), []
    while (trial := queue.next()) is not None:
        drawn.append((tuple(trial.values.values()), trial.seed))
        queue.note_end(trial.number, status_of(trial, float(trial.values["qam.k_top"])))
    assert len(set(drawn)) == len(drawn) == sweep.num_trials == 2 * min(trials, 6)


def score_of(trial) -> float:
    return trial.values["qam.iou_thr"] + 0.01 * trial.seed


@pytest.mark.parametrize("is_finite", [True, False])
@pytest.mark.parametrize("search", ["grid", "random", "tpe"])
def test_a_resumed_sweep_draws_the_same_values_and_repeats_no_ended_trial(search, is_finite):
    space = {"qam.iou_thr": {"choice": [0.4, 0.5, 0.6, 0.7, 0.8]}}
    if search != "grid" and not is_finite:
        space = RANGES
    sweep = make_sweep(search=search, trials=12, seeds=[3, 4], space=space)
    queue, undisturbed = TrialQueue(sweep, seed=1), []
    while (trial := queue.next()) is not None:
        undisturbed.append(trial)
        queue.note_end(trial.number, status_of(trial, score_of(trial)))
    past = [status_of(trial, score_of(trial)) for trial in undisturbed[:7]]
    past[5] = status_of(undisturbed[5], 0.0, "created")  # trial 5 was interrupted
    queue, resumed = TrialQueue(sweep, 1, past), []
    while (trial := queue.next()) is not None:
        resumed.append(trial)
        queue.note_end(trial.number, status_of(trial, score_of(trial)))
    assert resumed == [undisturbed[5], *undisturbed[7:]]


def run_all(sweep: SweepConfig, past: list[TrialStatus]) -> list[TrialStatus]:
    """The sweep to its end: `past` and what comes after it, each trial with `score_of` it."""
    queue, rows = TrialQueue(sweep, 1, past), list(past)
    while (trial := queue.next()) is not None:
        rows.append(status_of(trial, score_of(trial)))
        queue.note_end(trial.number, rows[-1])
    return rows


def runs_of(rows: list[TrialStatus]) -> set[tuple[str, int]]:
    """Settings and seeds that were run, each once and with its own number."""
    runs = {(row.key, row.seed) for row in rows}
    assert len(runs) == len(rows) == len({row.number for row in rows})
    return runs


THRESHOLDS = {"qam.iou_thr": {"choice": [0.4, 0.5, 0.6, 0.7, 0.8]}}


@pytest.mark.parametrize("interrupted_after", [2, 6])
@pytest.mark.parametrize("search", ["grid", "random"])
def test_more_trials_and_seeds_give_what_would_have_been_planned(search, interrupted_after):
    space = THRESHOLDS if search == "grid" else RANGES
    short = make_sweep(search=search, trials=3, seeds=[3, 4], space=space)
    past = run_all(short, [])[:interrupted_after]
    long = make_sweep(search=search, trials=5, seeds=[3, 4, 9], space=space)
    extended, planned = run_all(long, past), run_all(long, [])
    assert runs_of(extended) == runs_of(planned)
    assert extended[:interrupted_after] == past
    if interrupted_after == 6:
        # first the new seed of the three settings that were run, then the others with all seeds
        assert [row.seed for row in extended[6:]] == [9, 9, 9, *[3, 4, 9] * 2]
        assert [row.number for row in extended[6:]] == list(range(6, 15))


def test_a_grid_that_is_larger_runs_the_new_settings_alone():
    past = run_all(make_sweep(search="grid", space=THRESHOLDS), [])
    space = {"qam.iou_thr": {"choice": [0.3, *THRESHOLDS["qam.iou_thr"]["choice"], 0.9]}}
    larger = make_sweep(search="grid", space=space)
    extended = run_all(larger, past)
    assert [row.values["qam.iou_thr"] for row in extended[5:]] == [0.3, 0.9]
    assert runs_of(extended) == runs_of(run_all(larger, []))


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_a_larger_space_keeps_the_earlier_trials(search):
    narrow = make_sweep(search=search, trials=8, space={"qam.iou_thr": {"uniform": [0.4, 0.5]}})
    past = run_all(narrow, [])
    space = {"qam.iou_thr": {"uniform": [0.0, 0.9]}}
    extended = run_all(make_sweep(search=search, trials=24, space=space), past)
    assert extended[:8] == past
    values = [row.values["qam.iou_thr"] for row in extended[8:]]
    assert max(values) > 0.6
    if search == "tpe":  # scores grow with the threshold
        assert sum(values) / len(values) > 0.6


def test_points_that_come_later_are_tried_before_the_next_draw():
    past = run_all(make_sweep(search="random", trials=2, space=RANGES), [])
    late = {"qam.iou_thr": 0.5, "solver.lr": 1e-3, "qam.k_top": 4, "qam.fusion": "vote"}
    points = [past[1].values, late]
    extended = run_all(make_sweep(search="random", trials=4, space=RANGES, points=points), past)
    assert [row.values for row in extended[2:]] == [
        late,
        all_trials(make_sweep(search="random", trials=4, space=RANGES), seed=1)[3].values,
    ]


def test_a_resumed_sweep_keeps_values_that_the_seed_alone_would_not_give_again():
    sweep = make_sweep(search="tpe", trials=4, space=RANGES)
    values = {"qam.iou_thr": 0.5, "solver.lr": 0.0123, "qam.k_top": 3, "qam.fusion": "weighted"}
    queue = TrialQueue(sweep, 0, [status_of(Trial(0, values, 0), None, "created")])
    assert queue.next() == Trial(0, values, 0)
    assert queue.next().number == 1


def test_what_is_not_offered_says_what_to_use_instead():
    with pytest.raises(
        ValidationError, match=r"bohb is not offered: .*trial_scheduler: hyperband"
    ):
        make_sweep(search="bohb")


METHODS = {
    "method": {"choice": ["boxinst", "qam", "full"]},
    "qam.k_top": {"choice": [5, 10], "when": {"method": ["qam", "full"]}},
    "qam.iou_thr": {"choice": [0.3, 0.5, 0.7], "when": {"method": "full"}},
}


def score_of_method(values: dict) -> float:
    """boxinst 0.4; qam 0.305 or 0.31; full 0.5 with k_top 10 and iou_thr 0.5, and less with the others."""
    if values["method"] == "boxinst":
        return 0.4
    if values["method"] == "qam":
        return 0.3 + values["qam.k_top"] / 1000
    return 0.49 + values["qam.k_top"] / 1000 - abs(values["qam.iou_thr"] - 0.5)


def run_scored(sweep: SweepConfig, score, past=()) -> list[TrialStatus]:
    queue, rows = TrialQueue(sweep, 1, past), list(past)
    while (trial := queue.next()) is not None:
        rows.append(status_of(trial, score(trial.values)))
        queue.note_end(trial.number, rows[-1])
    return rows


@pytest.mark.parametrize("search", ["grid", "random", "tpe"])
def test_a_conditional_space_is_searched_by_the_settings_that_apply(search):
    sweep = make_sweep(search=search, trials=40, seeds=[3, 4], space=METHODS)
    rows = run_scored(sweep, score_of_method)
    assert len(rows) == sweep.num_trials == 2 * (1 + 2 + 6)
    assert len(runs_of(rows)) == 18, "nothing twice, whatever does not apply"
    assert {tuple(row.values) for row in rows} == {
        ("method",),
        ("method", "qam.k_top"),
        ("method", "qam.k_top", "qam.iou_thr"),
    }
    best = SweepTable(Criterion("m"), rows, seeds=2).best()
    assert best.values == {"method": "full", "qam.k_top": 10, "qam.iou_thr": 0.5}
    # interrupted and gone on with, it is the same sweep
    past = [status_of(Trial(row.number, row.values, row.seed), row.value) for row in rows[:7]]
    again = run_scored(sweep, score_of_method, past)
    assert [(row.number, row.values) for row in again] == [
        (row.number, row.values) for row in rows
    ]


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_a_used_up_branch_leaves_the_search_to_the_infinite_ones(search):
    space = {
        "method": {"choice": ["boxinst", "boxteacher", "supervised", "qam"]},
        "qam.iou_thr": {"uniform": [0.0, 0.9], "when": {"method": "qam"}},
    }
    sweep = make_sweep(search=search, trials=25, space=space)

    def score(values: dict) -> float:
        return (
            0.9 if values["method"] == "boxinst" else 0.8 - abs(values.get("qam.iou_thr", 1) - 0.7)
        )

    rows = run_scored(sweep, score)
    assert len(runs_of(rows)) == 25
    assert sum("qam.iou_thr" not in row.values for row in rows) <= 3
    assert SweepTable(Criterion("m"), rows).best().values == {"method": "boxinst"}


@pytest.mark.parametrize("search", ["grid", "random", "tpe"])
def test_settings_that_move_together_are_drawn_together(search):
    groups = [{"train.steps": 10 * n, "boxinst.warmup": 5 * n} for n in (1, 2, 3)]
    space = {"length": {"together": groups}, "qam.k_top": {"choice": [1, 5]}}
    sweep = make_sweep(search=search, trials=40, space=space)
    rows = run_scored(sweep, lambda values: values["boxinst.warmup"] - values["qam.k_top"])
    assert len(runs_of(rows)) == sweep.num_trials == 6
    assert all(row.values["train.steps"] == 2 * row.values["boxinst.warmup"] for row in rows)
    best = SweepTable(Criterion("m"), rows).best()
    assert best.values == {"train.steps": 30, "boxinst.warmup": 15, "qam.k_top": 1}

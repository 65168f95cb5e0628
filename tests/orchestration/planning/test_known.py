"""What earlier sweeps tell a new one: scores where they would be the same here, else settings to try."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from boxseg.config.criterion import Criterion
from boxseg.errors import ConfigError
from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import SweepSpec
from orchestration.execute.search import TrialQueue
from orchestration.planning.known import find_known, note_known, read_told
from orchestration.record.run_folder import RunFolder, RunStatus
from orchestration.record.score import Merit

SPACE = {"qam.iou_thr": {"uniform": [0.0, 0.9]}}
NONE: list[str] = []


def make_spec(storage: Path, start_from: list[str] = NONE, **changes: Any) -> SweepSpec:
    sweep = {"space": SPACE, "search": "tpe", "trials": 6, "start_from": start_from}
    sweep |= changes.pop("sweep", {})
    values = {"name": "new", "storage": storage, "train": {"steps": 40}, "sweep": sweep}
    return SweepSpec.model_validate(values | changes)


Scores = dict[float, float | None]


def make_earlier(storage: Path, scores: Scores, **changes: Any) -> RunFolder:
    """A sweep of the name `old` whose trials had these thresholds and scores."""
    spec = make_spec(storage, name="old", **changes)
    number = len(list((storage / "old").glob("*")))
    folder = RunFolder(storage / "old" / f"20260101-00000{number}-aaaa")
    folder.create(
        RunStatus(folder.path.name, "old", kind="sweep", status="finished"), dump_resolved(spec)
    )
    for place, (threshold, score) in enumerate(scores.items()):
        trial = RunFolder(folder.path / f"{folder.path.name}-{place:02d}")
        values = {"qam.iou_thr": threshold}
        tags = {"trial": str(place), "seed": "0"}
        status = RunStatus(trial.path.name, "old", values=values, tags=tags, parent="..")
        trial.create(status, dump_resolved(spec.trial(values, 0)))
        if score is not None:
            trial.report(40, {"val/mask_ap": score}, is_best=True)
            trial.finish("finished")
    best = max((score, place) for place, score in enumerate(scores.values()) if score is not None)
    folder.update(best_run=f"{folder.path.name}-{best[1]:02d}")
    return folder


SCORES: Scores = {0.1: 0.2, 0.5: 0.6, 0.3: 0.4, 0.7: None}


def test_scores_count_where_nothing_but_the_space_differs(tmp_path: Path):
    make_earlier(tmp_path, SCORES)
    wider = {"space": {"qam.iou_thr": {"uniform": [0.2, 0.95]}}, "trials": 20}
    known = find_known(make_spec(tmp_path, ["old"], sweep=wider))
    assert [(each.values["qam.iou_thr"], each.merit.score) for each in known.told] == [
        (0.5, 0.6),
        (0.3, 0.4),
    ]
    assert known.points == []
    assert known.sentences == ["start_from old: 2 settings with their scores"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train": {"steps": 80}}, "train.steps is 40 there and 80 here"),
        ({"qam": {"k_top": 9}}, "qam.k_top is 20 there and 9 here"),
        ({"sweep": {"metric": "val/box_ap"}}, "it was judged by val/mask_ap max"),
        ({"sweep": {"mode": "min"}}, "it was judged by val/mask_ap max"),
        ({"sweep": {"against": {"val/box_ap": "min"}}}, "it weighed that against nothing"),
        ({"sweep": {"search": "random"}}, "search random does not learn"),
        ({"data": {"toy": {"size": 64}}}, "data.toy.size is 128 there and 64 here"),
    ],
)
def test_else_the_best_third_is_tried_first(tmp_path: Path, changes: dict[str, Any], reason: str):
    make_earlier(tmp_path, SCORES)
    known = find_known(make_spec(tmp_path, ["old"], **changes))
    assert known.told == []
    assert known.points == [{"qam.iou_thr": 0.5}, {"qam.iou_thr": 0.3}]
    assert known.sentences == [
        f"start_from old: 2 settings to try; scores do not count, as {reason}"
    ]


def test_settings_that_are_tried_anyway_leave_their_room_to_the_next_best(tmp_path: Path):
    make_earlier(tmp_path, SCORES)
    own_was_best = {"search": "random", "trials": 3, "points": [{"qam.iou_thr": 0.5}]}
    known = find_known(make_spec(tmp_path, ["old", "best:old"], sweep=own_was_best))
    assert known.points == [{"qam.iou_thr": 0.3}]
    assert known.sentences[1] == "start_from best:old: 0 settings to try; they are tried anyway"
    full = own_was_best | {"trials": 1}
    (sentence,) = find_known(make_spec(tmp_path, ["old"], sweep=full)).sentences
    assert sentence.endswith("; sweep.trials has no room left")


def test_other_annotations_make_scores_count_no_more(tmp_path: Path, monkeypatch):
    folder = make_earlier(tmp_path, SCORES)
    folder.update(tags={"data_fingerprint": "1"})
    now = {"data_fingerprint": "1"}
    monkeypatch.setattr("orchestration.planning.known.look_at_data", lambda spec: now)
    moved = make_spec(tmp_path, ["old"], data={"toy": {"seed": 5}})
    assert len(find_known(moved).told) == 3, "the same annotations at another place"
    now["data_fingerprint"] = "2"
    assert find_known(moved).sentences[0].endswith("as its annotation files are others")


def test_the_best_setting_of_a_sweep_is_tried_once(tmp_path: Path):
    folder = make_earlier(tmp_path, SCORES)
    sweep = {"points": [{"qam.iou_thr": 0.8}], "trials": 3}
    spec = make_spec(tmp_path, ["best:old", f"best:{folder.path}"], sweep=sweep)
    known = find_known(spec)
    assert known.points == [{"qam.iou_thr": 0.5}]
    assert known.sentences[0] == "start_from best:old: 1 settings to try"
    tried = spec.trying(known.points).sweep
    queue = TrialQueue(tried, 0)
    assert [queue.next().values["qam.iou_thr"] for _ in range(2)] == [0.8, 0.5]


def test_names_that_vary_now_have_the_value_of_before(tmp_path: Path):
    make_earlier(tmp_path, SCORES, qam={"k_top": 7})
    space = SPACE | {"qam.k_top": {"choice": [7, 20]}}
    known = find_known(make_spec(tmp_path, ["old"], sweep={"space": space}))
    assert [each.values for each in known.told[:1]] == [{"qam.iou_thr": 0.5, "qam.k_top": 7}]
    space = SPACE | {"qam.k_top": {"choice": [8, 20]}}
    reason = r"sweep\.start_from\.0: old: none .* \(trial 01: qam\.k_top is 7, which .*\); widen the space"
    with pytest.raises(ConfigError, match=reason):
        find_known(make_spec(tmp_path, ["old"], sweep={"space": space}))


def test_what_varied_before_counts_where_it_was_as_in_the_file(tmp_path: Path):
    make_earlier(tmp_path, {0.1: 0.2, 0.5: 0.6})
    space = {"qam.k_top": {"choice": [20, 5]}}
    own = make_spec(tmp_path, ["old"], sweep={"space": space}, qam={"iou_thr": 0.1})
    assert [(each.values, each.merit.score) for each in find_known(own).told] == [
        ({"qam.k_top": 20}, 0.2)
    ]
    other = make_spec(tmp_path, ["old"], sweep={"space": space}, qam={"iou_thr": 0.3})
    assert find_known(other).sentences[0].endswith("as qam.iou_thr varies there")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "sweep.start_from.0: nothing: no such run"),
        ("20260101-000000-aaaa-00", "is no sweep; `boxseg runs ls` lists them"),
        ("old", "none of its trials has a value yet; widen the space, or leave the sweep out"),
    ],
)
def test_what_tells_nothing_is_refused(tmp_path: Path, name: str, message: str):
    folder = make_earlier(tmp_path, {0.1: 0.2})
    if name == "old":
        RunFolder(folder.path / f"{folder.path.name}-00").update(best={})
    with pytest.raises(ConfigError, match=re.escape(message)):
        find_known(make_spec(tmp_path, [name]))


@pytest.mark.parametrize("name", ["old", "20260101-000000-aaaa"])
def test_a_sweep_that_is_named_twice_is_refused_whatever_it_is_called(tmp_path: Path, name: str):
    make_earlier(tmp_path, SCORES)
    with pytest.raises(ConfigError, match=f"start_from.1: {name}: is the sweep of old as well"):
        find_known(make_spec(tmp_path, ["old", name]))


def test_a_grid_starts_from_nothing():
    with pytest.raises(ValueError, match="start_from: search grid tries every setting; leave"):
        SweepSpec.model_validate({"sweep": {"search": "grid", "start_from": ["x"]}})


def test_what_was_told_is_read_from_the_journal_and_learned_from(tmp_path: Path):
    """Scores grow towards 0.75, and TPE draws near it from its first draw on."""
    scores: Scores = {0.05 * place: 1 - abs(0.05 * place - 0.75) for place in range(18)}
    make_earlier(tmp_path, scores)
    spec = make_spec(tmp_path, ["old"], sweep={"trials": 8})
    folder = RunFolder(tmp_path / "new" / "20260102-000000-aaaa")
    folder.create(RunStatus(folder.path.name, "new", kind="sweep"), dump_resolved(spec))
    note_known(folder, find_known(spec))
    told = read_told(folder, spec.sweep)
    assert told[0].merit == Merit(all_finished=True, some_finished=True, score=1.0)

    def draws(told) -> list[float]:
        queue = TrialQueue(spec.sweep, 0, told=told)
        return [queue.next().values["qam.iou_thr"] for _ in range(8)]

    distances = [abs(value - 0.75) for value in draws(told)]
    assert sum(distances) / 8 < 0.15
    assert sum(abs(value - 0.75) for value in draws([])) / 8 > 0.2
    narrow = make_spec(tmp_path, sweep={"space": {"qam.iou_thr": {"uniform": [0.7, 0.8]}}})
    assert {each.values["qam.iou_thr"] for each in read_told(folder, narrow.sweep)} == {
        value for value in scores if 0.7 <= value <= 0.8
    }
    assert Criterion("val/mask_ap") == spec.sweep.criterion

"""What a new sweep takes from earlier ones: their best settings, which it tries first."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from boxseg.errors import ConfigError
from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import SweepSpec
from orchestration.execute.search import TrialQueue
from orchestration.planning.known import find_known
from orchestration.record.run_folder import RunFolder, RunStatus

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


def test_the_best_third_is_tried_first(tmp_path: Path):
    make_earlier(tmp_path, SCORES)
    known = find_known(make_spec(tmp_path, ["old"]))
    assert known.points == [{"qam.iou_thr": 0.5}, {"qam.iou_thr": 0.3}]
    assert known.sentences == ["start_from old: 2 settings to try"]


def test_only_settings_in_the_space_are_tried(tmp_path: Path):
    make_earlier(tmp_path, SCORES)
    narrow = {"space": {"qam.iou_thr": {"uniform": [0.05, 0.4]}}, "trials": 20}
    known = find_known(make_spec(tmp_path, ["old"], sweep=narrow))
    assert known.points == [{"qam.iou_thr": 0.3}, {"qam.iou_thr": 0.1}]


def test_a_sweep_that_minimises_gives_its_smallest_first(tmp_path: Path):
    make_earlier(tmp_path, SCORES, sweep={"mode": "min"})
    assert find_known(make_spec(tmp_path, ["old"])).points[0] == {"qam.iou_thr": 0.1}


def test_settings_that_are_tried_anyway_leave_their_place_to_the_next_best(tmp_path: Path):
    make_earlier(tmp_path, SCORES)
    own_was_best = {"search": "random", "trials": 3, "points": [{"qam.iou_thr": 0.5}]}
    known = find_known(make_spec(tmp_path, ["old", "best:old"], sweep=own_was_best))
    assert known.points == [{"qam.iou_thr": 0.3}]
    assert known.sentences[1] == "start_from best:old: 0 settings to try; they are tried anyway"
    full = own_was_best | {"trials": 1}
    (sentence,) = find_known(make_spec(tmp_path, ["old"], sweep=full)).sentences
    assert sentence.endswith("; sweep.trials has no room left")


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


def test_settings_that_vary_only_now_take_their_earlier_value(tmp_path: Path):
    make_earlier(tmp_path, SCORES, qam={"k_top": 7})
    space = SPACE | {"qam.k_top": {"choice": [7, 20]}}
    known = find_known(make_spec(tmp_path, ["old"], sweep={"space": space}))
    assert known.points[0] == {"qam.iou_thr": 0.5, "qam.k_top": 7}
    space = SPACE | {"qam.k_top": {"choice": [8, 20]}}
    reason = r"sweep\.start_from\.0: old: none .* \(trial 01: qam\.k_top is 7, which .*\); widen the space"
    with pytest.raises(ConfigError, match=reason):
        find_known(make_spec(tmp_path, ["old"], sweep={"space": space}))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "sweep.start_from.0: nothing: no such run"),
        ("20260101-000000-aaaa-00", "is no sweep; `boxseg runs ls` lists them"),
        ("old", "none of its trials has a value yet; widen the space, or leave the sweep out"),
    ],
)
def test_unusable_earlier_sweeps_are_refused(tmp_path: Path, name: str, message: str):
    folder = make_earlier(tmp_path, {0.1: 0.2})
    if name == "old":
        RunFolder(folder.path / f"{folder.path.name}-00").update(best={})
    with pytest.raises(ConfigError, match=re.escape(message)):
        find_known(make_spec(tmp_path, [name]))


def test_a_grid_starts_from_nothing():
    with pytest.raises(ValueError, match="start_from: search grid tries every setting; leave"):
        SweepSpec.model_validate({"sweep": {"search": "grid", "start_from": ["x"]}})

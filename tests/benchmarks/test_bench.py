"""The machinery of the benchmarks, on a network of toy size."""

import json
import sys
import time

import pytest
import torch

from benchmarks.around import evaluation, loading, reading, saving
from benchmarks.commands import Watched, run_demo, watch
from benchmarks.harness import Table, Times, ratio, take_turns, write_json
from benchmarks.scenario import STEP, Scenario, build
from benchmarks.step import stages, stopwatch
from benchmarks.store import late_store
from benchmarks.sweeps import many_trials
from benchmarks.tracking_cost import tracking_cost
from boxseg.engine.train import optimise
from orchestration.record.run_folder import RunFolder

TINY = Scenario(64, boxes=2, batch_size=1, small=True)


def test_a_ratio_is_the_median_over_rounds_so_that_one_slow_round_does_not_matter():
    assert ratio(Times(cpu=[2.0, 30.0, 2.2]), Times(cpu=[1.0, 10.0, 1.0])) == 2.2


def test_actions_take_turns_after_one_unmeasured_call_each():
    calls: list[str] = []
    times = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b", "a", "b", "a", "b"]
    assert [len(times[name].cpu) for name in "ab"] == [2, 2]


def test_a_table_reads_as_markdown():
    text = Table("Steps", ("step", "s"), [("full", 0.12345), ("twin", 123.4)]).markdown()
    assert text.splitlines()[2:] == [
        "| step | s |",
        "|---|---|",
        "| full | 0.123 |",
        "| twin | 123 |",
    ]


def test_measuring_one_part_again_keeps_the_others_in_the_file(tmp_path):
    path = tmp_path / "runs" / "bench.json"
    for part, value in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        write_json(path, part, [Table("Steps", ("step", "s"), [("full", value)])], seconds=5)
    content = json.loads(path.read_text())
    assert {part: each["tables"][0]["rows"] for part, each in content.items()} == {
        "a": [{"step": "full", "s": 3.0}],
        "b": [{"step": "full", "s": 2.0}],
    }
    assert {"cpu", "date"} <= set(content["a"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.manual_seed(0)
    return build(TINY, "full", tmp_path_factory.mktemp("pictures"))


def test_every_box_of_the_scenario_has_its_candidates_and_every_image_a_paste(trained):
    trainer, batch = trained
    optimise(trainer, batch, STEP)
    metrics = optimise(trainer, batch, STEP)
    assert metrics["qam/candidates"] == trainer.config.qam.k_top
    assert metrics["pc/paste_rate"] == 1


def test_stages_add_up_to_the_step_though_some_run_within_others(trained):
    trainer, batch = trained
    started = time.process_time()
    with stopwatch(trainer) as spent:
        optimise(trainer, batch, STEP)
    total = time.process_time() - started
    assert all(value > 0 for value in spent.values())
    assert 0.5 * total < sum(spent.values()) <= total


def test_the_table_of_stages_names_teacher_student_and_rest(tmp_path):
    table = stages(TINY, tmp_path, rounds=1)
    assert [row[0] for row in table.rows[:1] + table.rows[-1:]] == [
        "teacher: forward",
        "rest (update, losses' sum, checks)",
    ]


def test_reading_and_evaluation_have_their_tables(tmp_path):
    assert "decode" in [row[0] for row in loading(tmp_path, images=2).rows]
    assert [row[0] for row in evaluation(tmp_path, images=1).rows] == [
        "masks, rescoring, NMS",
        "encoding",
        "AP",
    ]
    assert reading(tmp_path, images=5).rows[0][:2] == (5, 35)
    assert all(wall > 0 for wall, _ in saving(tmp_path, 1, small=True).rows)


@pytest.mark.slow
@pytest.mark.ray
def test_trials_that_train_nothing_are_counted_while_they_run_and_read_afterwards(tmp_path):
    looks, after = many_trials(tmp_path, trials=6)
    assert looks.rows[-1][0] == 6
    assert after.rows[-1][0].startswith("MLflow")


def test_a_command_is_watched_with_all_that_it_starts(tmp_path):
    spin = "import time\nwhile time.process_time() < 1: pass"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin!r}])"
    found = watch([sys.executable, "-c", parent], tmp_path / "output.txt")
    wall, cpu = found.until(found.samples[-1][0])
    assert 0.5 < cpu < wall + 0.5


def test_a_failing_command_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="no such thing"):
        watch([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path / "output.txt")


def test_the_pace_is_measured_from_a_third_of_the_steps_to_the_last_report(tmp_path):
    reports = [
        (10, 100.0, {"train/loss": 2.0}),
        (20, 110.0, {"train/loss": 1.0}),
        (40, 120.0, {"train/loss": 1.0}),
        (40, 125.0, {"val/mask_ap": 0.1}),
    ]
    lines = [
        json.dumps({"step": step, "time": at, "metrics": metrics}) for step, at, metrics in reports
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    found = Watched([(100.0, 0.0), (130.0, 60.0)], [RunFolder(tmp_path)])
    assert found.pace() == (0.5, 1.0)
    assert found.until(115.0) == (15.0, 30.0)


@pytest.mark.slow
def test_the_bare_loop_of_the_demo_has_a_pace(tmp_path):
    train = {"steps": 3, "report_every": 1, "eval_every": 3, "batch_size": 2}
    found = run_demo(
        "bare", tmp_path, {"storage": str(tmp_path), "train": train, "data": {"max_val_images": 1}}
    )
    assert all(seconds > 0 for seconds in found.pace())


@pytest.mark.slow
def test_tracking_is_compared_with_the_same_steps_without_it(tmp_path):
    rows = dict(tracking_cost(tmp_path, 1, 8).rows)
    *measured, tracker = rows.values()
    assert len(measured) == 4
    assert all(value > 0 for value in measured)
    assert tracker >= 0  # so few steps may end between two looks of the tracker


@pytest.mark.slow
def test_steps_send_no_requests_to_a_slow_store(tmp_path):
    steps, fetching = late_store(tmp_path, images=4, steps=3, small=True)
    asked = {row[0]: row[1:3] for row in steps.rows}
    assert asked["a folder"] == (0, 0)
    # the annotation file is looked at twice and fetched once, two listings, four images
    assert asked["a store"] == (9, 0)
    assert asked["a store, fetched before"] == (4, 0)
    assert [row[0] for row in fetching.rows] == [0, 30, 0, 30]

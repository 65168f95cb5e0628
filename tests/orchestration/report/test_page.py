"""The report of a sweep says what its folders hold, in every state of the sweep."""

import csv
import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic
from PIL import Image

from boxseg.config.criterion import Criterion
from boxseg.errors import ConfigError
from orchestration.cli.app import run
from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import ResourcesConfig, RunSpec, SweepSpec
from orchestration.record.failures import Failure
from orchestration.record.run_folder import RunFolder, RunStatus
from orchestration.record.table import SweepTable, markdown_table
from orchestration.record.trial import TrialStatus
from orchestration.report import stats as report_stats
from orchestration.report.charts import (
    NOT_APPLYING,
    draw_curves,
    draw_parallel,
)
from orchestration.report.page import PAGE, commands_for, try_report, write_report
from orchestration.report.stats import common_step, differ, rank_settings, study_importance
from orchestration.report.sweep_record import cost_of, panel_of, read_sweep


@pytest.fixture(scope="module")
def seeded(tmp_path_factory) -> Path:
    """Twenty settings with three seeds each, none stopped early; one trial failed."""
    return synthetic.write_sweep(
        tmp_path_factory.mktemp("seeded"), settings=20, seeds=3, asha=False
    )


@pytest.fixture
def few_resamples(monkeypatch) -> None:
    """Importance is computed with few resamples: less sure, and seconds quicker."""
    monkeypatch.setattr(report_stats, "BOOTSTRAPS", 3)


def row(
    number: int, value: float | None, status="finished", seed: int = 0, **values
) -> TrialStatus:
    about = {
        "folder": f"/x/{number}",
        "values": values,
        "tags": {"seed": str(seed)},
        "step": 1,
        "steps": 1,
    }
    return TrialStatus(f"x-{number:02d}", "x", status=status, value=value, **about)


def table_of(*groups: list[float]) -> SweepTable:
    """A setting for each list of values, one seed for each value."""
    rows = [
        row(10 * k + seed, value, seed=seed, k=k)
        for k, own in enumerate(groups)
        for seed, value in enumerate(own)
    ]
    return SweepTable(Criterion("m"), rows, seeds=max(map(len, groups)))


def test_settings_whose_difference_may_be_luck_are_not_distinguishable_from_the_best():
    found = rank_settings(table_of([0.10, 0.11, 0.12], [0.50, 0.52, 0.54], [0.49, 0.51, 0.54]))
    assert [each.rows[0].values["k"] for each in found] == [1, 2, 0]
    assert [each.verdict for each in found] == ["best", "not distinguishable", "worse"]
    assert (found[0].mean, found[0].spread) == (pytest.approx(0.52), pytest.approx(0.02))


def test_welchs_interval_decides_as_worked_by_hand():
    # Both have variance 0.01 and n = 3: standard error 0.0816, 4 degrees of freedom, limit 2.776 * 0.0816 = 0.2267
    base = [0.0, 0.1, 0.2]
    assert not differ(base, [each + 0.226 for each in base])
    assert differ(base, [each + 0.228 for each in base])
    assert differ([0.5, 0.5], [0.4, 0.4])
    assert not differ([0.5, 0.5], [0.5, 0.5])


def test_one_seed_says_nothing_and_stopped_settings_are_not_compared():
    rows = [
        row(0, 0.5, k=0),
        row(1, 0.4, k=1),
        row(2, 0.9, "stopped", k=2),
        row(3, None, "failed", k=3),
    ]
    found = rank_settings(SweepTable(Criterion("m"), rows))
    assert [each.verdict for each in found] == ["best", "one seed", "stopped early", "no value"]
    assert [each.spread for each in found] == [None] * 4


def test_the_same_seed_once_more_is_no_second_seed():
    rows = [row(number, value, k=0) for number, value in enumerate((0.5, 0.5, 0.5))]
    rows += [row(3, 0.4, k=1), row(4, 0.4, k=1)]
    found = rank_settings(SweepTable(Criterion("m"), rows))
    assert [(each.values, each.spread) for each in found] == [([0.5], None), ([0.4], None)]
    assert [each.verdict for each in found] == ["best", "one seed"]


def test_seeds_that_were_stopped_do_not_enter_the_mean():
    rows = [row(0, 0.5, k=0), row(1, 0.1, "stopped", seed=1, k=0)]
    (found,) = rank_settings(SweepTable(Criterion("m"), rows, seeds=2))
    assert found.values == [0.5]


def test_smaller_is_better_where_the_sweep_says_so():
    rows = [row(0, 0.5, k=0), row(1, 0.1, k=1)]
    found = rank_settings(SweepTable(Criterion("m", "min"), rows))
    assert [each.mean for each in found] == [0.1, 0.5]


def test_importance_finds_what_decides_and_says_of_idle_settings_that_nothing_is_shown(seeded):
    record = read_sweep(seeded)
    study = study_importance(record.table, record.curves)
    found = {each.name: each for each in study.settings}
    assert study.settings[0].name == "qam.iou_thr"
    assert found["qam.iou_thr"].is_shown
    assert found["qam.iou_thr"].share > 0.5
    assert not found["solver.lr"].is_shown
    assert not found["method"].is_shown
    assert all(each.low <= each.share <= each.high for each in study.settings)
    assert study.explained > 0.3


def test_the_same_trials_give_the_same_importance(seeded, few_resamples):
    record = read_sweep(seeded)
    study = study_importance(record.table, record.curves)
    assert study_importance(record.table, record.curves) == study


def test_importance_of_a_setting_alone_is_the_share_of_the_variance_that_it_explains():
    rows = [row(k, float(k % 2), k=k % 2, idle=k) for k in range(40)]
    study = study_importance(
        SweepTable(Criterion("m"), rows), {each.id: [(1, each.value)] for each in rows}
    )
    found = {each.name: each for each in study.settings}
    assert found["k"].share == pytest.approx(1, abs=0.25)
    assert not found["idle"].is_shown


def test_too_few_settings_have_no_importance_but_a_reason():
    rows = [row(k, k / 10, k=k) for k in range(9)]
    study = study_importance(
        SweepTable(Criterion("m"), rows), {each.id: [(1, each.value)] for each in rows}
    )
    assert study.settings == []
    assert study.reason == "9 settings have a value at step 1; fewer than 10 say nothing reliable"


def test_trials_are_compared_at_the_latest_step_that_half_of_them_reached():
    assert (
        common_step(
            {"a": [(1, 0.1), (2, 0.2)], "b": [(1, 0.1), (2, 0.3)], "c": [(1, 0.1)], "d": []}
        )
        == 2
    )
    assert common_step({"a": [(1, 0.1), (2, 0.2)], "b": [(1, 0.1)], "c": [(1, 0.1)]}) == 1
    assert common_step({}) == 0


def test_words_and_truth_values_become_places_and_numbers_stay():
    assert report_stats.encode([0.5, 2]).tolist() == [0.5, 2.0]
    assert report_stats.encode(["a", None, "a"]).tolist() == [1, 0, 1]


def test_rungs_are_those_of_the_scheduler():
    spec = SweepSpec.model_validate(
        {"train": {"steps": 240}, "sweep": {"burn_in": 0.1, "reduction": 3}}
    )
    assert spec.rungs == [24, 72, 216]


@pytest.mark.usefixtures("few_resamples")
def test_the_page_is_whole_and_asks_for_nothing(seeded, tmp_path):
    page = write_report(seeded, tmp_path / "elsewhere")
    text = page.read_text()
    assert page == tmp_path / "elsewhere" / PAGE
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert {link.split(",")[0] for link in links} == {"data:", "data:image/png;base64"}
    asks = r"url\(|@import|<script[^>]* src|<link (?!rel=.icon)|fetch\(|XMLHttpRequest|import\("
    assert not re.search(asks, text)
    images = re.findall(r"<img [^>]*>", text)
    assert len(images) == 3
    assert all(re.search(r'alt="[^"]{20,}"', image) for image in images)
    for name in ("curves", "parallel", "importance"):
        with Image.open(page.with_name(f"{name}.png")) as picture:
            assert picture.width > 300
    assert not list(page.parent.glob(".*")), "no scratch files stay"


@pytest.mark.usefixtures("few_resamples")
def test_the_tables_beside_the_page_have_every_trial_and_setting(seeded):
    page = write_report(seeded)
    assert page == seeded / "report" / PAGE
    with page.with_name("trials.csv").open() as file:
        trials = list(csv.DictReader(file))
    assert len(trials) == 60
    assert [row["status"] for row in trials].count("failed") == 1
    assert trials[-1]["cause"] == "step 12: the loss is nan <&>"
    assert float(trials[0]["val/mask_ap"]) >= float(trials[1]["val/mask_ap"])
    with page.with_name("settings.csv").open() as file:
        settings = list(csv.DictReader(file))
    assert [row["rank"] for row in settings] == [str(rank) for rank in range(1, 21)]
    assert settings[0]["against_best"] == "best"
    assert float(settings[0]["standard_deviation"]) > 0


@pytest.mark.usefixtures("few_resamples")
def test_the_page_names_failures_stops_costs_and_commands(tmp_path):
    folder = synthetic.write_sweep(tmp_path, settings=60)
    text = write_report(folder).read_text()
    assert "<td>non_finite</td>" in text
    assert "Started again" not in text
    assert "the loss is nan &lt;&amp;&gt;" in text
    assert "Dashed: the steps (80)" in text
    assert "this page cannot tell luck" in text
    assert "git checkout 000000" in text
    assert "10 more are in settings.csv" in text
    assert "early ends saved" in text
    # What is left to do is not saved.
    RunFolder(folder).update(status="interrupted", steps=61)
    assert "early ends saved" not in write_report(folder).read_text()
    record = read_sweep(folder)
    cost = cost_of(record)
    assert cost.core_h == pytest.approx(60 * 61 / 3600)
    assert cost.gpu_h == 0
    assert cost.sweep_s == 4000
    assert (
        cost.steps == sum(each.step for each in record.table.rows) < cost.steps_planned == 60 * 240
    )


def test_prices_are_those_of_the_gpu_hours_of_ended_trials(tmp_path):
    record = read_sweep(synthetic.write_sweep(tmp_path, settings=3, asha=False))
    gpus = {"workers": 2, "gpus_per_worker": 0.5, "price_per_gpu_hour": 3.0}
    spec = record.spec.model_copy(update={"resources": ResourcesConfig.model_validate(gpus)})
    times = [(0.0, 3600.0), (0.0, 1800.0), (0.0, None)]
    rows = [
        replace(each, created=created, ended=ended, value=ended)
        for each, (created, ended) in zip(record.table.rows, times, strict=True)
    ]
    cost = cost_of(replace(record, spec=spec, table=SweepTable(Criterion("m"), rows)))
    # two halves of a GPU for 1.5 hours
    assert (cost.gpu_h, cost.price, cost.best_price, cost.trials) == (1.5, 4.5, 3.0, 2)
    assert cost_of(record).price is None


def test_the_commands_name_files_that_load(tmp_path, monkeypatch):
    folder = synthetic.write_sweep(tmp_path / "with space", settings=3)
    monkeypatch.chdir(tmp_path)
    commands = dict(commands_for(read_sweep(folder)))
    assert commands["the whole sweep once more"] == "boxseg sweep 'with space/many/s/config.yaml'"
    assert (
        run(
            [
                "sweep",
                "with space/many/s/config.yaml",
                "--plan",
                "--json",
                "--set",
                "sweep.seeds=[0, 1, 2]",
            ]
        )
        == 0
    )


def test_panels_are_those_of_the_best_evaluation(tmp_path):
    trial = row(0, 0.5)
    trial = replace(trial, folder=str(tmp_path), best_step=80)
    assert panel_of(trial) is None
    (tmp_path / "samples").mkdir()
    for step in (160, 99_999_990, 100_000_000):
        (tmp_path / f"samples/step-{step:08d}.png").touch()
    assert panel_of(trial).name == "step-100000000.png"
    (tmp_path / "samples/step-00000080.png").touch()
    assert panel_of(trial).name == "step-00000080.png"


def test_the_best_and_the_median_trial_show_their_masks(tmp_path):
    folder = synthetic.write_sweep(tmp_path, settings=3, asha=False)
    for trial in read_sweep(folder).table.rows:
        Path(trial.folder, "samples").mkdir()
        Image.new("RGB", (916, 60), "red").save(Path(trial.folder, "samples/step-00000240.png"))
    text = write_report(folder).read_text()
    assert re.findall(r'alt="The (best|median) trial', text) == ["best", "median"]
    assert len(re.findall(r'alt="The \w+ trial [^"]* at step 240: images', text)) == 2


@pytest.mark.parametrize("state", ["empty", "all failed", "one trial"])
def test_a_sweep_that_found_nothing_has_a_report_too(tmp_path, state):
    folder = synthetic.write_sweep(
        tmp_path, settings={"empty": 0, "all failed": 2, "one trial": 1}[state] or 1
    )
    trials = [RunFolder(path.parent) for path in folder.glob("*/status.json")]
    for trial in trials:
        if state == "empty":
            trial.status_path.unlink()
        if state == "all failed":
            trial.update(status="failed", best={}, metrics={})
            trial.metrics_path.unlink()
    text = write_report(folder).read_text()
    assert ("No trial has a value" in text) == (state != "one trial")


def test_trials_that_were_started_again_are_named_with_the_reason(tmp_path):
    folder = synthetic.write_sweep(tmp_path, settings=1)
    RunFolder(folder / "s-00").update(
        retries=["worker_lost after step 40: from the last checkpoint"]
    )
    text = write_report(folder).read_text()
    assert "trial 00, now finished: worker_lost after step 40: from the last checkpoint" in text
    assert "<h2>Failures</h2>" not in text


def test_a_single_run_has_no_report(tmp_path):
    folder = RunFolder(tmp_path / "t" / "r").create(RunStatus("r", "t"), dump_resolved(RunSpec()))
    with pytest.raises(ConfigError, match="a single run; reports are for sweeps"):
        write_report(folder.path)


def test_a_failing_report_is_logged_and_raises_nothing(tmp_path, caplog):
    folder = synthetic.write_sweep(tmp_path, settings=1)
    (folder / "report").write_text("in the way")
    assert try_report(folder) is None
    assert "no report of the sweep (FileExistsError" in caplog.text


HOSTILE = (
    "$a$ $ \\frac{ <script>alert(1)</script> {{ 7 * 7 }} 猫\x00\x1b[31m\u202e half \ud83d "
    + "x" * 5000
)


@pytest.mark.usefixtures("few_resamples")
def test_text_of_others_is_neither_a_formula_nor_markup_nor_hidden(tmp_path, caplog):
    folder = synthetic.write_sweep(tmp_path, settings=4)
    trial, failed = RunFolder(folder / "s-00"), RunFolder(folder / "s-01")
    trial.update(
        description=HOSTILE, retries=[HOSTILE], values={"method": HOSTILE, "qam.k_top": 1}
    )
    failed.update(status="failed", failure=Failure("DataError", HOSTILE), description=HOSTILE)
    RunFolder(folder).update(tags={"seed": "0", "command": HOSTILE})
    page = write_report(folder)
    text = page.read_text()
    assert text.count("<script") == 2, "the page's own script and its data"
    assert "<script>alert" not in text
    data = json.loads(text.split('id="trials">')[1].split("</script>")[0])
    (hostile,) = [t for t in data["trials"] if t["values"]["qam.k_top"] == 1 and t["label"]]
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", hostile["values"]["method"])
    assert "&lt;script&gt;alert(1)&lt;/script&gt; {{ 7 * 7 }} 猫" in text
    for written in (text, page.with_name("trials.csv").read_text()):
        assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", written)
    for name in ("curves", "parallel"):
        assert page.with_name(f"{name}.png").exists()
    assert caplog.records == []


@pytest.mark.usefixtures("few_resamples")
def test_a_failing_picture_is_logged_and_the_page_is_written_without_it(
    seeded, tmp_path, monkeypatch, caplog
):
    def fail(*args):
        raise ValueError("two $")

    for name in ("curves", "importance"):
        monkeypatch.setattr(f"orchestration.report.charts.draw_{name}", fail)
    page = write_report(seeded, tmp_path / "report")
    assert page.read_text().count("<img ") == 1
    assert f"{tmp_path / 'report' / 'curves.png'} is left out: ValueError: two $" in caplog.text
    assert {path.name for path in page.parent.glob("*.png")} == {"parallel.png"}


def test_the_command_prints_the_page(tmp_path, capsys):
    folder = synthetic.write_sweep(tmp_path, settings=2)
    assert (
        run(
            [
                "report",
                "s",
                "--storage",
                str(tmp_path),
                "--output",
                str(tmp_path / "out"),
                "--json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out) == {
        "id": "s",
        "report": str(tmp_path / "out" / PAGE),
    }
    assert run(["report", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report" / PAGE)
    assert run(["report", "nobody", "--storage", str(tmp_path)]) == 2


@pytest.mark.slow
def test_a_thousand_trials_take_less_than_a_minute_and_fewer_pictures(tmp_path):
    folder = synthetic.write_sweep(tmp_path, settings=1000)
    began = time.process_time()
    page = write_report(folder)
    # CPU seconds, which other load does not change; 9 measured
    assert time.process_time() - began < 60
    assert page.stat().st_size < 5e6
    assert "950 more are in settings.csv" in page.read_text()


@pytest.mark.parametrize(("trials", "more"), [(6, None), (30, "25 more trials")])
def test_the_legend_of_the_curves_names_all_trials_or_says_how_many_more(tmp_path, trials, more):
    record = read_sweep(synthetic.write_sweep(tmp_path, settings=trials))
    figure = draw_curves(record.table, record.curves, record.rungs)
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    best = record.table.ranked()
    assert named[0] == f"{best[0].label}: {best[0].outcome}"
    assert len(named) == (trials if more is None else 6)
    assert (named[-1] == more) == (more is not None)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_darkest_line_is_that_of_the_best_trial(mode):
    rows = []
    for number, value in enumerate((0.2, 0.9, 0.5)):
        tags = {"trial": str(number), "seed": "0"}
        values = {"qam.k_top": number + 1}
        rows.append(
            TrialStatus(
                f"x-{number:02d}", "x", status="finished", value=value, values=values, tags=tags
            )
        )
    figure = draw_parallel(SweepTable(Criterion("m", mode), rows), {})
    (lines,) = [each for each in figure.axes[0].collections if each.get_array() is not None]
    brightness = lines.cmap(lines.norm(lines.get_array()))[:, :3].sum(axis=1)
    ends = [path.vertices[-1, 1] for path in lines.get_paths()]
    best = max(ends) if mode == "max" else min(ends)
    assert ends[int(brightness.argmin())] == best
    assert ends[-1] == best, "it is drawn last"


def test_a_setting_that_does_not_apply_is_a_dash_and_no_value():
    rows = [
        row(0, 0.2, method="boxinst"),
        row(1, 0.9, method="qam", thr=0.4),
        row(2, 0.5, method="qam", thr=0.8),
    ]
    table = SweepTable(Criterion("m"), rows)
    assert "| 00 | boxinst | - | 0.2000 |" in markdown_table(table)
    figure = draw_parallel(table, {})
    assert "-" in [text.get_text() for text in figure.axes[0].texts]
    heights = sorted(
        path.vertices[1, 1] for each in figure.axes[0].collections for path in each.get_paths()
    )
    assert heights == pytest.approx([NOT_APPLYING, 0.0, 1.0])
    # below all numbers, so that a tree can tell it from them
    assert report_stats.encode([0.5, None, 2.0]).tolist() == [0.5, -0.5, 2.0]

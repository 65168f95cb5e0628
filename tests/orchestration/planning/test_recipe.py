"""Recipes: their rules, their text, and `boxseg recipe`."""

import json
from pathlib import Path

import pytest
from tiny_sets import KINDS, without_masks, write_set

from boxseg.data.fingerprint import take_fingerprint
from boxseg.data.misfits import find_misfits
from boxseg.engine.train import due_steps
from orchestration.cli.app import run
from orchestration.config.spec import load_run
from orchestration.execute.label_run import describe_time
from orchestration.planning.recipe import (
    FEWEST_MINUTES,
    LEAST_STEPS,
    USUAL_STEPS,
    Machine,
    make_recipe,
    name_after,
)

LAPTOP = Machine(cores=2, gpus=0, memory_bytes=16 * 10**9)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    return {name: write_set(root / name, kind, images=4) for name, kind in KINDS.items()}


def recipe(source, machine=LAPTOP, **options):
    return make_recipe(source, take_fingerprint(source), machine, **{"name": "it"} | options)


def values(made):
    return {choice.name: choice.value for choice in made.choices}


def write(made, folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(made.text())
    return path


@pytest.mark.parametrize("name", KINDS)
def test_a_recipe_is_an_experiment_file_that_fits_its_data(sets, name, tmp_path):
    made = recipe(sets[name], minutes=5)
    spec = load_run(write(made, tmp_path))
    assert spec.train.steps == made.steps
    assert spec.data.train == sets[name]
    assert list(find_misfits(spec, take_fingerprint(sets[name]))) == []


def test_every_choice_has_a_reason_or_follows_one_of_its_group(sets):
    made, reasoned = recipe(sets["rings"], minutes=5), set()
    for choice in made.choices:
        if choice.reason:
            reasoned.add(choice.name.partition(".")[0])
            assert f"# {choice.reason[:60]}" in made.text()
            assert choice.reason.endswith(".")
    assert reasoned >= {"data", "model", "train", "solver", "boxinst", "resources"}


def test_objects_have_the_same_size_at_evaluation_for_any_size_in_the_files(sets):
    sides = {name: values(recipe(source))["train.eval_size"] for name, source in sets.items()}
    assert sides["small"] > 2 * sides["large"]
    for name, source in sets.items():
        median = sorted(take_fingerprint(source).sides.sizes_at(sides[name]))[
            take_fingerprint(source).boxes // 2
        ]
        # Where training ends with larger objects, they are looked at larger.
        assert (80 < median < 160) if name == "large" else (40 < median < 100)


def test_less_contrast_gets_a_stricter_threshold_and_plain_contrast_the_usual_one(sets):
    assert values(recipe(sets["dark"]))["boxinst.color_thr"] > 0.5
    assert "boxinst.color_thr" not in values(recipe(sets["rings"]))


def test_more_cores_are_faster_but_not_as_many_times():
    assert Machine(cores=1, gpus=0, memory_bytes=1).speed == 1
    assert 4 < Machine(cores=8, gpus=0, memory_bytes=1).speed < 8
    assert (
        Machine(cores=8, gpus=0, memory_bytes=1).speed
        > Machine(cores=4, gpus=0, memory_bytes=1).speed
    )


def test_minutes_less_labelling_become_updates_at_the_measured_pace(sets):
    made = recipe(sets["rings"], minutes=10, step_s=0.5)
    assert 0.9 < made.steps * 0.5 / (600 - 20) <= 1
    assert "timed here" in made.times.basis
    many_boxes = recipe(sets["rings"], minutes=10, step_s=0.5, label_boxes=3000)
    assert many_boxes.steps < made.steps
    # however many there are, half of the time is for training
    assert 0.9 < recipe(sets["rings"], minutes=10, step_s=0.5, label_boxes=10**6).steps / 600 <= 1


def test_labelling_is_slow_where_updates_are(sets):
    # as slow as the core that 0.17 s for a box were measured on, and a third as fast
    assert recipe(sets["rings"], step_s=0.45, label_boxes=100).times.label_s == pytest.approx(17)
    assert recipe(sets["rings"], step_s=1.35, label_boxes=100).times.label_s == pytest.approx(51)


def test_large_objects_get_larger_views_towards_the_end_in_fewer_updates(sets):
    large, small = (recipe(sets[name], minutes=10, step_s=0.5) for name in ("large", "small"))
    assert "train.closer" not in values(small)
    train = large.spec().train
    assert (train.closest.window, train.closest.object_size) == (384, (96.0, 288.0))
    # a quarter of them sees 1.5 x 1.5 times the pixels
    assert large.steps / small.steps == pytest.approx(1 / 1.3125, abs=0.05)  # two digits of each
    assert large.times.train_s == pytest.approx(small.times.train_s, rel=0.1)


def test_without_a_time_there_are_as_many_updates_as_usual(sets):
    made = recipe(sets["rings"], step_s=2.0)
    assert made.steps == USUAL_STEPS
    assert "no time was given" in made.text()


def test_a_time_too_short_for_the_fewest_updates_gives_a_warning(sets):
    made = recipe(sets["rings"], minutes=FEWEST_MINUTES, step_s=60.0)
    assert made.steps == LEAST_STEPS
    assert f"{LEAST_STEPS} updates are the least" in describe_time(made)
    assert f"{LEAST_STEPS} updates are the least" in made.text()
    assert "the least" not in describe_time(recipe(sets["rings"], minutes=10, step_s=0.5))


def test_a_processor_with_bf16_uses_it_and_a_gpu_decides_for_itself(sets):
    precision = [
        values(recipe(sets["rings"], Machine(2, gpus, 16 * 10**9, has_bf16))).get(
            "train.precision"
        )
        for gpus, has_bf16 in ((0, False), (0, True), (1, True))
    ]
    assert precision == [None, "bf16", None]


def test_the_machine_decides_threads_device_and_how_memory_is_spent(sets):
    small = values(recipe(sets["rings"], Machine(cores=4, gpus=0, memory_bytes=2 * 10**9)))
    assert (small["resources.cpus_per_worker"], small["train.accumulate"]) == (4, 2)
    assert "resources.gpus_per_worker" not in small
    large = values(recipe(sets["rings"], Machine(cores=64, gpus=4, memory_bytes=10**12)))
    assert (large["resources.cpus_per_worker"], large["resources.gpus_per_worker"]) == (16, 1)
    assert large["data.loader_workers"] == 8
    assert "train.accumulate" not in large


def test_settings_of_the_user_win_and_are_marked(sets, tmp_path):
    made = recipe(
        sets["rings"], overrides=["train.seed=3", "model.channels=32", "loss={mask_weight: 1.5}"]
    )
    spec = load_run(write(made, tmp_path))
    assert (spec.train.seed, spec.model.channels, spec.loss.mask_weight) == (3, 32, 1.5)
    assert made.text().count("# Asked for with --set.") == 3


def test_more_updates_than_were_chosen_are_still_evaluated_at_the_end_alone(sets, tmp_path):
    made = recipe(sets["rings"], overrides=[f"train.steps={2 * USUAL_STEPS}"])
    spec = load_run(write(made, tmp_path))
    assert due_steps(spec.train.steps, spec.train.eval_every) == {2 * USUAL_STEPS}


def test_names_of_files_become_names_of_experiments():
    assert name_after(Path("a b/some boxes (2).json")) == "some-boxes-2"
    assert name_after(Path("….json")) == "boxes"


def test_the_command_prints_or_writes_the_recipe(sets, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = without_masks(sets["rings"], tmp_path / "mine.json")
    ask = ["recipe", "mine.json", "--images", str(source.images), "--minutes", "3"]
    assert run(ask) == 0
    shown = capsys.readouterr()
    Path("printed.yaml").write_text(shown.out)
    assert load_run(Path("printed.yaml")).name == "mine"
    assert "updates, about" in shown.err
    assert run([*ask, "--output", "written.yaml"]) == 0
    assert load_run(Path("written.yaml")) == load_run(Path("printed.yaml"))
    assert run([*ask, "--output", "written.yaml"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert run([*ask, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["settings"]["name"] == "mine"
    assert run(["train", "written.yaml", "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == []


@pytest.mark.parametrize(
    ("more", "code", "told"),
    [
        (["--minutes", "0.1"], 2, "--minutes 0.1: use 1 to 1000000; nothing is learnt in less"),
        (["--minutes", "inf"], 2, "--minutes inf: use 1 to 1000000"),
        (["--minutes", "nan"], 2, "--minutes nan: use 1 to 1000000"),
        (["--set", "train.step=3"], 2, "did you mean train.steps?"),
        (["--images", "nowhere"], 2, "--images nowhere: is not a folder"),
    ],
)
def test_wrong_options_are_refused_with_the_reason(sets, more, code, told, capsys):
    assert run(["recipe", str(sets["rings"].annotations), *more]) == code
    assert told in capsys.readouterr().err


def test_a_folder_is_no_coco_file(tmp_path, capsys):
    assert run(["recipe", str(tmp_path)]) == 2
    assert "boxseg data import" in capsys.readouterr().err


def test_every_command_warns_of_settings_that_do_not_fit(sets, tmp_path, capsys):
    source = sets["small"]
    path = tmp_path / "mine.yaml"
    data = json.dumps({"images": str(source.images), "annotations": str(source.annotations)})
    path.write_text(
        f"name: mine\nstorage: {tmp_path}/runs\ndata: {{train: {data}, val: {data}}}\ntrain: {{image_size: 96}}\n"
        "sweep: {trials: 1, space: {qam.k_top: {choice: [1, 2]}}}\n"
    )
    warned = "half of the boxes are under 4 px at train.image_size 96"
    for command in (
        ["train", str(path), "--plan"],
        ["sweep", str(path), "--plan"],
        ["data", "check", str(path)],
    ):
        assert run(command) == 0
        assert warned in capsys.readouterr().err
    assert run(["data", "check", str(path), "--json"]) == 0
    assert warned in json.loads(capsys.readouterr().out)["misfits"][0]

"""Reading runs and sweeps: what is understood, and what each mistake says."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from boxseg.config.method import CocoSource
from boxseg.errors import ConfigError
from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import RunSpec, SweepSpec, load_run, load_sweep

Write = Callable[[str], Path]
Patch = pytest.MonkeyPatch

SWEEP = """
method: full
sweep:
  space:
    qam.iou_thr: {uniform: [0.4, 0.8]}
    method: {choice: [boxinst, qam, full]}
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "exp.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def fault(path: Path, *overrides: str, load: Callable[..., object] = load_run) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return str(caught.value)


def test_an_empty_file_is_a_run_with_defaults(write: Write):
    spec = load_run(write("# nothing but a comment\n"))
    assert spec.name == "boxseg"
    assert spec.storage == Path.cwd() / "runs"


def test_a_section_without_entries_is_an_empty_section(write: Write):
    assert load_run(write("qam:\ntrain:\n  steps: 5\n")).train.steps == 5


def test_numbers_and_words_are_read_as_people_write_them(write: Write):
    spec = load_run(write("solver: {weight_decay: 1e-5}\ntrain: {steps: 9_000}\npc: {on: off}\n"))
    assert spec.solver.weight_decay == 1e-5
    assert spec.train.steps == 9000
    assert not spec.pc.on


def test_relative_paths_start_at_the_file_that_names_them(
    write: Write, tmp_path: Path, monkeypatch: Patch
):
    path = write(
        "storage: out\ndata: {train: {images: a, annotations: ../b.json}}\nmodel: {weights: w.pt}"
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    spec = load_run(path)
    assert isinstance(spec.data.train, CocoSource)
    assert spec.storage == tmp_path / "out"
    assert spec.data.train.images == tmp_path / "a"
    assert spec.data.train.annotations == tmp_path.parent / "b.json"
    assert spec.model.weights == str(tmp_path / "w.pt")


def test_relative_paths_of_set_start_at_the_current_folder(
    write: Write, tmp_path: Path, monkeypatch: Patch
):
    path = write("name: x")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    spec = load_run(path, ["storage=out", "data.val={images: i, annotations: a.json}"])
    assert spec.storage == tmp_path / "here" / "out"
    assert isinstance(spec.data.val, CocoSource)
    assert spec.data.val.images == tmp_path / "here" / "i"


def test_the_path_of_a_tracking_database_starts_at_the_file_as_well(write: Write, tmp_path: Path):
    relative, whole = "sqlite:///mlflow.db", "sqlite:////data/mlflow.db"
    assert load_run(write(f"tracking: {{uri: '{relative}'}}")).tracking.uri == (
        f"sqlite:///{tmp_path}/mlflow.db"
    )
    assert load_run(write(f"tracking: {{uri: '{whole}'}}")).tracking.uri == whole


def test_words_that_stand_for_weights_are_no_paths(write: Write):
    assert load_run(write("model: {weights: imagenet}")).model.weights == "imagenet"


def test_set_wins_over_the_file_and_the_last_one_wins(write: Write):
    assert (
        load_run(write("qam: {k_top: 3, k_min: 2}"), ["qam.k_top=7", "qam.k_top=8"]).qam.k_top == 8
    )


def test_set_values_are_yaml(write: Write):
    spec = load_run(
        write(""), ["train.image_size=[64, 96]", "teacher.resize_short=null", "solver.lr=1e-3"]
    )
    assert spec.train.image_size == (64, 96)
    assert spec.teacher.resize_short is None
    assert spec.solver.lr == 1e-3


def test_set_replaces_a_domain_of_the_space(write: Write):
    spec = load_sweep(write(SWEEP), ["sweep.space.qam.iou_thr={choice: [0.5]}"])
    assert spec.sweep.space["qam.iou_thr"].model_dump() == {"choice": [0.5]}


def test_the_files_values_win_over_a_profile_from_set(write: Write):
    spec = load_run(write("qam: {fusion: vote}"), ["profile=paper"])
    assert (spec.qam.fusion, spec.qam.adaptive_k) == ("vote", True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "name: a\nqam:\n  k_topp: 3",
            ("exp.yaml:3: qam.k_topp is not a setting", "did you mean qam.k_top?"),
        ),
        ("k_top: 3", ("exp.yaml:1: k_top", "did you mean qam.k_top?")),
        ("teachr: {on: true}", ("exp.yaml:1", "did you mean teacher?")),
        ("zzzzz: 3", ("zzzzz is not a setting", "profile, method")),
        ("qam.k_top: 3", ("exp.yaml:1", "`qam: {k_top: …}`")),
        ("\n\nqam: {iou_thr: 1.4}", ("exp.yaml:3: qam.iou_thr is 1.4", "0 or more and below 1")),
        ("train: {steps: 1.5}", ("train.steps is 1.5", "a whole number, 1 or more")),
        ("train: {steps: true}", ("train.steps is true", "a whole number, 1 or more")),
        ("train: {clip_norm: false}", ("train.clip_norm is false", "a number, above 0")),
        ("train: {image_size: true}", ("train.image_size is true", "a whole number")),
        ("loss: {warmup: true}", ("loss.warmup is true", "a number, 0 or more")),
        ("sweep: {seeds: [true]}\nname: true", ("name is true", "quote it")),
        ("train: {image_size: [64, a]}", ("train.image_size.1 is a", "a whole number")),
        ("train: {batch_size: many}", ("train.batch_size is many",)),
        ("teacher: {on: maybe}", ("teacher.on is maybe", "true or false")),
        ("profile: fxied", ("profile is fxied", "official, paper, fixed", "did you mean fixed?")),
        ("qam: 3", ("qam is 3", "a group with the settings k_top,")),
        (
            "data: {train: coco}",
            ("data.train is coco", "toy, or a group with the settings images, annotations"),
        ),
        ("data: {train: {images: x}}", ("data.train.annotations is missing",)),
        ("fcos: {sizes: [1, 2]}", ("fcos.sizes is [1, 2]", "a list of 4 values")),
        ("name: 7", ("name is 7", "quote it")),
        ("name: a/b", ("name is a/b", "letters, digits", "name a folder")),
        (
            "storage: ftp://host/x",
            ("storage: ftp://host/x is no address", "use s3://BUCKET/PREFIX"),
        ),
        ("solver: {lr: .nan}", ("solver.lr is nan", "finite")),
        (
            "model:\n  backbone: resnet5",
            ("exp.yaml:2", "'resnet5'", "did you mean resnet50", "resnet101"),
        ),
        (
            "qam:\n  k_min: 9\n  k_max: 4",
            ("exp.yaml:2, ", "exp.yaml:3: qam: k_min 9 exceeds k_max 4"),
        ),
        (
            "resources: {workers: 3}\ntrain: {batch_size: 4}",
            ("exp.yaml:2", "train.batch_size 4", "resources.workers 3", "multiple"),
        ),
        (
            "resources: {workers: 2, runner: inline}\ntrain: {batch_size: 4}",
            ("runner inline", "workers is 2"),
        ),
    ],
)
def test_a_wrong_setting_is_named_with_place_value_rule_and_way_out(
    write: Write, text: str, words: tuple[str, ...]
):
    message = fault(write(text))
    for word in words:
        assert word in message
    assert "pydantic" not in message


def test_all_faults_of_a_file_come_at_once_in_its_order(write: Write):
    lines = fault(write("qam: {iou_thr: 2}\nnamee: x\ntrain: {steps: 0}")).splitlines()
    assert [line.split(":")[1] for line in lines] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "qam:\n  k_top: 1\n  k_top: 2",
            ("exp.yaml:3: qam.k_top is given twice, first on line 2",),
        ),
        ("name: x\nqam: [1, 2", ("exp.yaml:2: not valid YAML",)),
        ("name: x\n\tqam: 3", ("exp.yaml:2: not valid YAML",)),
        ("name: {a: b: c}", ("exp.yaml:1: not valid YAML",)),
        ("- a\n- b", ("exp.yaml:1: holds a list",)),
        ("hello", ("the single value 'hello'",)),
        ("? [a, b]\n: 3", ("exp.yaml:1", "must be a word")),
        ("name: !!python/name:os.system x", ("exp.yaml:1: not valid YAML",)),
        (
            "qam: &all {k_top: *all}",
            ("exp.yaml:1: nested too deeply, or an alias points at the group that holds it",),
        ),
        ("a: 1\n---\nb: 2", ("not valid YAML",)),
    ],
)
def test_yaml_that_cannot_be_read_is_refused_with_its_line(
    write: Write, text: str, words: tuple[str, ...]
):
    message = fault(write(text))
    for word in words:
        assert word in message


def test_a_missing_file_lists_those_beside_it(write: Write):
    path = write("name: x")
    assert "no such file" in fault(path.with_name("exq.yaml"))
    assert "exp.yaml" in fault(path.with_name("exq.yaml"))


def test_files_that_are_no_text_are_refused(tmp_path: Path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in fault(tmp_path / "x.yaml")
    assert "cannot be read" in fault(tmp_path)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("qam.k_top", ("--set qam.k_top", "key=value")),
        ("=3", ("--set =3", "key=value")),
        ("qam.k_top=[1", ("--set qam.k_top: not valid YAML",)),
        ("qam.k_topp=3", ("--set qam.k_topp", "did you mean qam.k_top?")),
        ("qam.k_top=0", ("--set qam.k_top: qam.k_top is 0", "1 or more")),
        ("qam={k_top: 0}", ("--set qam: qam.k_top is 0",)),
        ("data.train.images=x", ("--set data.train", "data.train.annotations is missing")),
        ("sweep.trials=3", ("--set sweep.trials", "boxseg sweep")),
    ],
)
def test_a_wrong_override_is_named_as_such(write: Write, override: str, words: tuple[str, ...]):
    message = fault(write("name: x"), override)
    for word in words:
        assert word in message


def test_a_group_replaces_one_that_it_covers_and_is_refused_otherwise(write: Write):
    file = write("qam: {k_top: 5, score_thr: 0.2}\nsweep: {space: {pc.p_end: {choice: [0, 1]}}}")
    assert load_run(file, ["qam={k_top: 3, score_thr: 0.1}"]).qam.k_top == 3
    message = "--set qam: would drop other settings of the file: score_thr; set single values"
    assert message in fault(file, "qam={k_top: 3}")
    assert "as in --set qam.k_top=" in fault(file, "qam={k_top: 3}")
    assert "drop other settings of the file: k_top, score_thr" in fault(file, "qam={}")
    space = load_sweep(file, ["sweep.space={qam.k_top: {choice: [1, 5]}}"]).sweep.space
    assert list(space) == ["qam.k_top"]


def test_a_run_ignores_the_sweep_section_even_a_wrong_one(write: Write):
    assert type(load_run(write("sweep: {trialls: 3}"))) is RunSpec


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (
            "space: {qam.iou: {uniform: [0, 0.5]}}",
            ("exp.yaml:1", "qam.iou is not a setting", "qam.iou_thr"),
        ),
        ("space: {qam: {choice: [1]}}", ("qam is a group",)),
        (
            "\n  space:\n    qam.iou_thr: {uniform: [0.4, 1.4]}\n",
            ("exp.yaml:3: qam.iou_thr is 1.4", "below 1", "sweep.space"),
        ),
        ("space: {qam.k_top: {uniform: [1, 20]}}", ("qam.k_top", "a whole number")),
        ("space: {qam.k_top: {randint: [0, 20]}}", ("qam.k_top is 0", "1 or more")),
        ("space: {qam.iou_thr: {uniform: [0.8, 0.4]}}", ("runs from 0.8 to 0.4",)),
        ("space: {solver.lr: {loguniform: [0, 1]}}", ("starts at 0", "positive")),
        ("space: {solver.lr: {lograndint: [0, 9]}}", ("starts at 0", "positive")),
        ("space: {qam.k_top: {qrandint: [1, 20, 0]}}", ("in steps of 0", "above 0")),
        ("space: {qam.iou_thr: {quniform: [0.1, 0.5, 0.6]}}", ("in steps of 0.6", "fit in")),
        ("space: {qam.k_top: {quniform: [1, 3, 0.5]}}", ("qam.k_top is 1.5", "whole number")),
        ("space: {qam.iou_thr: {unifrm: [0, 1]}}", ("uniform: [low, high]", "choice")),
        ("space: {qam.iou_thr: 0.5}", ("sweep.space.qam.iou_thr is 0.5", "uniform: [low, high]")),
        ("space: {qam.iou_thr: {uniform: [0.4]}}", ("a list of 2 values",)),
        ("space: {qam.k_top: {choice: [5, 5.0]}}", ("repeats 5.0; the same trial again",)),
        (
            "space: {qam.k_top: {choice: [1, 5, 1]}}",
            ("qam.k_top", "repeats 1; the same trial again"),
        ),
        ("space: {qam.fusion: {choice: []}}", ("qam.fusion", "at least 1")),
        ("space: {qam.fusion: {choice: [vote, mean]}}", ("qam.fusion is mean", "vote, weighted")),
        ("space: {qam.k_min: {choice: [1, 30]}}", ("a trial could get qam.k_min 30", "k_max 20")),
        ("space: {train.seed: {choice: [0, 1]}}", ("train.seed cannot vary", "sweep.seeds")),
        ("space: {resources.workers: {choice: [1, 2]}}", ("resources.workers cannot vary",)),
        (
            "search: grid, space: {qam.iou_thr: {uniform: [0, 0.5]}}",
            ("grid", "qam.iou_thr", "choice"),
        ),
        (
            "metric: val/maskap, space: {qam.k_top: {choice: [1]}}",
            ("val/maskap", "did you mean val/mask_ap?"),
        ),
        ("seeds: [1, 1], space: {qam.k_top: {choice: [1]}}", ("seeds [1, 1]",)),
        ("seeds: [0, -1], space: {qam.k_top: {choice: [1]}}", ("sweep.seeds.1 is -1", "0")),
        ("seeds: [], space: {qam.k_top: {choice: [1]}}", ("sweep.seeds",)),
        ("trials: 3", ("sweep.space is empty", "boxseg train")),
        (
            "space: {qam.k_top: {randint: [1, 9]}}, points: [{qam.vote_thr: 0.5}]",
            ("sweep.points.0: qam.vote_thr is not in sweep.space",),
        ),
        (
            "space: {qam.k_top: {randint: [1, 9]}}, points: [{qam.k_top: 9}]",
            ("sweep.points.0: qam.k_top is 9, which its domain in sweep.space does not hold",),
        ),
        (
            "space: {qam.k_top: {randint: [1, 9]}}, points: [{}]",
            ("qam.k_top is 20, which", "does not hold; it is the file's own value; widen"),
        ),
        (
            "space: {qam.k_top: {randint: [1, 9]}}, points: [{qam.k_top: 2}, {qam.k_top: 2}]",
            ("sweep.points.1: is the same as point 0",),
        ),
        (
            "space: {qam.k_top: {choice: [1, 2]}}, points: [{qam.k_top: true}]",
            ("sweep.points.0: qam.k_top is true, which its domain",),
        ),
        (
            "trials: 1, space: {qam.k_top: {randint: [1, 9]}}, points: [{qam.k_top: 1}, {qam.k_top: 2}]",
            ("sweep.points has 2 settings, and 1 are tried; raise sweep.trials",),
        ),
        ("space: {qam.k_top: {qrandint: [1, 2000000, 1]}}", ("has 2e+06 values", "randint")),
        ("space: {qam.iou_thr: {quniform: [0, 0.9, 1.0e-9]}}", ("9e+08 values", "uniform")),
        (
            "space: {qam.k_top: {choice: [1], when: {method: qam}}, method: {choice: [qam]}}",
            ("qam.k_top varies when method is qam, and no choice above it gives method; add one",),
        ),
        (
            "space: {qam.iou_thr: {uniform: [0, 0.5]}, qam.k_top: {choice: [1], when: {qam.iou_thr: 0.5}}}",
            ("no choice above it gives qam.iou_thr",),
        ),
        (
            "space: {method: {choice: [qam, full]}, qam.k_top: {choice: [1], when: {method: [qam, pc]}}}",
            ("varies when method is pc, which it never is; it can be qam, full",),
        ),
        (
            "space: {method: {choice: [qam, full]}, qam.k_top: {choice: [5, 9], when: {method: full}}, "
            "qam.iou_thr: {uniform: [0, 0.5], when: {method: qam, qam.k_top: 5}}}",
            ("the conditions of qam.iou_thr never hold together",),
        ),
        (
            "space: {method: {choice: [qam, full]}, qam.k_min: {choice: [9, 30], when: {method: full}}}",
            ("a trial could get method full, qam.k_min 30", "k_max 20"),
        ),
        ("space: {size: {together: [{train.step: 1}]}}", ("train.step is not a setting",)),
        (
            "space: {train.steps: {together: [{train.steps: 1}]}}",
            ("train.steps is a setting; settings that move together need a name of their own",),
        ),
        (
            "space: {size: {together: [{train.steps: 9}, {boxinst.warmup: 9}]}}",
            ("one group has boxinst.warmup, the first has train.steps", "the same settings"),
        ),
        (
            "space: {size: {together: [{train.steps: 9}]}, train.steps: {choice: [8]}}",
            ("train.steps varies twice",),
        ),
        ("space: {size: {together: [{train.steps: 0}]}}", ("train.steps is 0", "1 or more")),
        ("space: {qam.k_top: {choice: [1], wen: {method: qam}}}", ("one of", "beside it, when:")),
        (
            "space: {method: {choice: [qam, full]}, qam.k_top: {choice: [1], when: {method: qam}}}, "
            "points: [{method: full, qam.k_top: 1}]",
            ("sweep.points.0: qam.k_top does not apply, as it varies when method is qam",),
        ),
        (
            "search: grid, space: {qam.k_top: {choice: [1]}}, points: [{}]",
            ("search grid tries every setting",),
        ),
    ],
)
def test_a_wrong_sweep_is_refused_before_it_starts(
    write: Write, section: str, words: tuple[str, ...]
):
    message = fault(
        write(f"sweep: {section}" if "\n" in section else f"sweep: {{{section}}}"), load=load_sweep
    )
    for word in words:
        assert word in message


def test_a_space_may_move_two_settings_that_only_fit_together(write: Write):
    path = write("sweep: {space: {qam.k_min: {choice: [1, 25]}, qam.k_max: {choice: [30, 40]}}}")
    assert load_sweep(path).trial({"qam.k_min": 25, "qam.k_max": 30}, seed=0).qam.k_min == 25


def test_seeds_alone_are_a_sweep_with_a_grid(write: Write):
    assert load_sweep(write("sweep: {search: grid, seeds: [0, 1, 2]}")).sweep.seeds == [0, 1, 2]


def test_a_trial_applies_its_values_and_seed(write: Write):
    trial = load_sweep(write(SWEEP)).trial({"qam.iou_thr": 0.7}, seed=5)
    assert type(trial) is RunSpec
    assert (trial.qam.iou_thr, trial.train.seed) == (0.7, 5)


def test_a_trial_applies_the_presets_of_its_own_method(write: Write):
    spec = load_sweep(write(SWEEP))
    assert not spec.trial({"method": "boxinst"}, seed=0).teacher.on
    assert not spec.trial({"method": "qam"}, seed=0).pc.on
    assert spec.trial({"method": "full"}, seed=0).pc.on


def test_a_trial_survives_a_trip_to_another_process(write: Write):
    spec = pickle.loads(pickle.dumps(load_sweep(write(SWEEP))))
    assert not spec.trial({"method": "boxinst"}, seed=0).teacher.on


def test_a_trial_takes_numpy_numbers(write: Write):
    numpy = pytest.importorskip("numpy")
    trial = load_sweep(write(SWEEP)).trial(
        {"qam.k_top": numpy.int64(3), "qam.iou_thr": numpy.float64(0.5)}, seed=0
    )
    assert (trial.qam.k_top, trial.qam.iou_thr) == (3, 0.5)


def test_an_impossible_trial_names_the_setting(write: Write):
    spec = load_sweep(write(SWEEP))
    with pytest.raises(ConfigError, match=r"qam\.iou_thr is 1\.2"):
        spec.trial({"qam.iou_thr": 1.2}, seed=0)
    with pytest.raises(ConfigError, match=r"did you mean qam\.iou_thr"):
        spec.trial({"qam.iou": 0.2}, seed=0)


def test_a_trial_without_values_is_the_run_of_the_same_file(write: Write):
    path = write(SWEEP)
    assert load_sweep(path).trial({}, seed=0) == load_run(path)


def test_specs_made_in_code_make_trials_as_well():
    spec = SweepSpec.model_validate(
        {"train": {"steps": 9}, "sweep": {"space": {"qam.k_top": {"choice": [1]}}}}
    )
    assert spec.trial({"qam.k_top": 1}, seed=2).train.steps == 9


@pytest.mark.parametrize("profile", ["official", "paper", "fixed"])
def test_resolved_settings_load_again_to_the_same_spec(write: Write, tmp_path: Path, profile: str):
    spec = load_sweep(
        write(SWEEP), [f"profile={profile}", "solver.lr=1e-7", "train.image_size=[64, 96]"]
    )
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_resolved(spec), encoding="utf-8")
    assert load_sweep(resolved) == spec


@pytest.mark.parametrize("name", ["1e9", "1e-4", "012", "1_000", "on", "null", "1.", "2001-01-01"])
def test_names_that_look_like_other_values_load_again_as_names(tmp_path: Path, name: str):
    path = tmp_path / "config.yaml"
    path.write_text(dump_resolved(RunSpec(name=name)))
    assert load_run(path).name == name


def test_a_file_may_take_over_the_settings_of_another(write: Write, tmp_path: Path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "base.yaml").write_text(
        "qam: {k_top: 3, iou_thr: 0.6}\nstorage: out\ntrain: {steps: 7}\n"
    )
    spec = load_run(write("base: far/base.yaml\nqam: {k_top: 9}\n"), ["train.steps=8"])
    assert (spec.qam.k_top, spec.qam.iou_thr, spec.train.steps) == (9, 0.6, 8)
    # a relative path belongs to the file that names it
    assert spec.storage == tmp_path / "far" / "out"


def test_faults_name_the_file_that_holds_them(write: Write, tmp_path: Path):
    (tmp_path / "base.yaml").write_text("qam:\n  k_topp: 3\n")
    assert fault(write("base: base.yaml\n")).startswith(
        f"{tmp_path / 'base.yaml'}:2: qam.k_topp is not a setting"
    )
    assert "base is 3; it names one experiment file" in fault(write("base: 3\n"))
    assert "base exp.yaml leads back to itself" in fault(write("base: exp.yaml\n"))
    assert "missing.yaml: no such file" in fault(write("base: missing.yaml\n"))


def test_a_password_in_the_tracking_uri_is_refused_and_not_repeated(write: Write):
    path = write('name: x\ntracking: {uri: "postgresql://me:hunter2@db/mlflow"}\n')
    with pytest.raises(ConfigError, match=r"tracking\.uri: has a password") as caught:
        load_run(path)
    assert "hunter2" not in str(caught.value)
    assert load_run(write('name: x\ntracking: {uri: "postgresql://me@db/mlflow"}\n')).tracking.uri


def test_a_point_has_the_files_own_values_where_it_names_none(write: Write):
    path = write(
        "qam: {k_top: 7, iou_thr: 0.4}\n"
        "sweep:\n"
        "  space: {qam.k_top: {randint: [1, 9]}, qam.iou_thr: {uniform: [0.3, 0.6]}}\n"
        "  points: [{}, {qam.k_top: 3}]\n"
    )
    # 9.0 is the 9 of the range, so that it is not tried once more as another setting
    path.write_text(path.read_text().replace("randint: [1, 9]", "qrandint: [1, 9, 2]"))
    first = load_sweep(path, ["sweep.points=[{qam.k_top: 9.0}]"]).sweep.points[-1]["qam.k_top"]
    assert (first, type(first)) == (9, int)
    path.write_text(path.read_text().replace("qrandint: [1, 9, 2]", "randint: [1, 9]"))
    points = load_sweep(path).sweep.points
    assert points == [
        {"qam.k_top": 7, "qam.iou_thr": 0.4},
        {"qam.k_top": 3, "qam.iou_thr": 0.4},
    ]


def test_the_files_own_settings_come_first_where_the_space_holds_them(write: Write):
    path = write(
        "qam: {k_top: 7, iou_thr: 0.4}\n"
        "sweep:\n"
        "  trials: 2\n"
        "  space: {qam.k_top: {qrandint: [1, 9, 2]}, qam.iou_thr: {uniform: [0.3, 0.6]}}\n"
    )
    own, other = {"qam.k_top": 7, "qam.iou_thr": 0.4}, {"qam.k_top": 3, "qam.iou_thr": 0.4}

    def points(*overrides: str) -> list[dict[str, Any]]:
        return load_sweep(path, overrides).sweep.points

    assert points() == points("sweep.search=random") == [own]
    assert points("sweep.own_first=false") == []
    assert points("sweep.points=[{qam.k_top: 3}]") == [own, other]
    assert points("sweep.points=[{qam.k_top: 3}, {}]") == [other, own], "in the order of the file"
    assert points("sweep.points=[{qam.k_top: 3}]", "sweep.trials=1") == [other]
    assert points("qam.k_top=8") == [], "no step of the range"
    choices = "sweep.space={qam.k_top: {choice: [1, 7]}, qam.fusion: {choice: [vote]}}"
    assert points(choices, "sweep.search=grid") == []
    # what is kept beside the sweep reads as the same sweep
    spec = load_sweep(path)
    path.write_text(dump_resolved(spec))
    assert load_sweep(path).sweep == spec.sweep


def test_paths_in_groups_conditions_and_points_start_at_the_file(write: Write, tmp_path: Path):
    path = write(
        "sweep:\n"
        "  own_first: false\n"
        "  space:\n"
        "    start: {together: [{model.start_from: a/w.pt, qam.k_top: 5}]}\n"
        "    qam.iou_thr: {uniform: [0, 0.5], when: {model.start_from: a/w.pt}}\n"
        "  points: [{model.start_from: a/w.pt, qam.k_top: 5, qam.iou_thr: 0.5}]\n"
    )
    whole = str(path.absolute().parent / "a" / "w.pt")
    sweep = load_sweep(path).sweep
    assert sweep.points == [{"model.start_from": whole, "qam.k_top": 5, "qam.iou_thr": 0.5}]
    assert sweep.space["qam.iou_thr"].when == {"model.start_from": [whole]}


def test_own_settings_that_are_paths_are_known_in_the_space(write: Write, tmp_path: Path):
    weights = tmp_path / "w.pt"
    path = write(
        f"model: {{start_from: {weights}}}\n"
        f"sweep: {{space: {{model.start_from: {{choice: [null, {weights}]}}}}}}\n"
    )
    assert load_sweep(path).sweep.points == [{"model.start_from": str(weights)}]

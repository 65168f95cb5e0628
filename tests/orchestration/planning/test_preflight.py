"""What is refused before anything starts; the checks leave nothing behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from boxseg.coco import checks
from boxseg.errors import BoxSegError, ConfigError, DataError
from boxseg.files.reading import read_json
from orchestration.config.spec import RunSpec, SweepSpec
from orchestration.errors import ExitCode, ResourceError, exit_code_for
from orchestration.planning.estimate import START_S
from orchestration.planning.machine import count_cpus
from orchestration.planning.plan import make_plan
from orchestration.planning.preflight import (
    check,
    count_gpus,
    find_faults,
    free_bytes,
    runner_of,
    warnings,
)
from orchestration.record.run_folder import RunFolder, RunStatus


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def coco(tmp_path: Path) -> dict[str, str]:
    """Two images, three boxes (one a crowd region), one class."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 48)).save(folder / name)
    images = [
        {"id": i, "file_name": name, "width": 64, "height": 48}
        for i, name in enumerate(("a.png", "b.png"))
    ]
    mask = [[4, 4, 24, 4, 24, 24, 4, 24]]
    annotations: list[dict[str, Any]] = [
        {
            "id": 1,
            "image_id": 0,
            "category_id": 1,
            "bbox": [4, 4, 20, 20],
            "segmentation": mask,
            "area": 400,
        },
        {
            "id": 2,
            "image_id": 0,
            "category_id": 1,
            "bbox": [4, 4, 20, 20],
            "segmentation": mask,
            "area": 400,
        },
        {
            "id": 3,
            "image_id": 1,
            "category_id": 1,
            "bbox": [4, 4, 20, 20],
            "iscrowd": 1,
            "area": 400,
        },
    ]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    }
    (folder / "boxes.json").write_text(json.dumps(content))
    return {"images": str(folder), "annotations": str(folder / "boxes.json")}


def make_spec(storage: Path, **values: Any) -> RunSpec:
    return RunSpec.model_validate({"name": "t", "storage": storage / "runs", **values})


def refusal(spec: RunSpec) -> BoxSegError:
    with pytest.raises(BoxSegError) as caught:
        check(spec)
    return caught.value


def test_a_run_that_fits_passes_and_leaves_nothing_behind(tmp_path: Path):
    check(make_spec(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_more_workers_than_cpus_are_refused_with_both_numbers(tmp_path: Path):
    cores = count_cpus()
    many = cores + 1
    error = refusal(make_spec(tmp_path, resources={"workers": many}, train={"batch_size": many}))
    assert isinstance(error, ResourceError)
    assert exit_code_for(error) == ExitCode.RESOURCES
    for word in (f"workers {many}", f"this machine has {cores}", "resources.address"):
        assert word in str(error)


def test_a_named_cluster_may_be_larger_than_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    large = {"workers": 512, "gpus_per_worker": 1}
    check(
        make_spec(
            tmp_path, resources={**large, "address": "10.0.0.1:6379"}, train={"batch_size": 512}
        )
    )
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check(make_spec(tmp_path, resources=large, train={"batch_size": 512}))


def test_the_address_of_a_dashboard_is_no_address_of_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    error = refusal(make_spec(tmp_path, resources={"address": "https://head:8265"}))
    assert isinstance(error, ConfigError)
    assert str(error).startswith("resources.address https://head:8265: is a dashboard's")
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    assert str(refusal(make_spec(tmp_path))).startswith("RAY_ADDRESS http://head:8265: ")


def test_missing_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    error = refusal(make_spec(tmp_path, resources={"gpus_per_worker": 1}))
    assert isinstance(error, ResourceError)
    assert "this machine has 0" in str(error)


@pytest.mark.parametrize(("visible", "count"), [("", 0), ("-1", 0), ("0", 1), ("0,2", 2)])
def test_hidden_gpus_do_not_count(monkeypatch: pytest.MonkeyPatch, visible: str, count: int):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_gpus() == count


def test_gpus_are_counted_by_their_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin:/bin")
    assert count_gpus() == 0
    tool = tmp_path / "nvidia-smi"
    lines = "\n".join(f"GPU {number}: NVIDIA X-9 80GB (UUID: GPU-{number})" for number in (0, 1))
    tool.write_text(f"#!/bin/sh\necho '{lines}'\n")
    tool.chmod(0o755)
    assert count_gpus() == 2


def test_storage_below_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    error = refusal(make_spec(tmp_path / "file"))
    assert isinstance(error, ConfigError)
    assert "a file is in the way" in str(error)
    assert "--set storage=DIR" in str(error)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, where nobody can write")
def test_storage_that_cannot_be_written_is_refused():
    assert "storage: /proc/boxseg/runs cannot be written" in str(
        refusal(make_spec(Path("/proc/boxseg")))
    )


def test_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "orchestration.planning.preflight.MIN_FREE_BYTES", free_bytes(tmp_path) * 2
    )
    error = refusal(make_spec(tmp_path))
    assert isinstance(error, ResourceError)
    assert "MB free" in str(error)
    assert "--set storage=DIR" in str(error)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"weights": "/nowhere/w.pt"}, ("model.weights", "/nowhere/w.pt", "auto, imagenet, none")),
        ({"start_from": "/nowhere/best"}, ("model.start_from", "/nowhere/best")),
        (
            {"start_from": "20260101-000000"},
            ("model.start_from", "no such run", "./20260101-000000"),
        ),
        ({"start_from": "best:qam"}, ("model.start_from", "qam: no such run")),
    ],
)
def test_weights_that_are_missing_are_refused(
    tmp_path: Path, model: dict[str, str], words: tuple[str, ...]
):
    error = refusal(make_spec(tmp_path, model=model))
    for word in words:
        assert word in str(error)


def test_a_missing_annotation_file_is_refused_with_its_path(tmp_path: Path, coco: dict[str, str]):
    error = refusal(
        make_spec(tmp_path, data={"train": {**coco, "annotations": "/nowhere/train.json"}})
    )
    assert isinstance(error, DataError)
    assert exit_code_for(error) == ExitCode.DATA
    assert "/nowhere/train.json" in str(error)


@pytest.mark.parametrize("own", ["train", "val"])
def test_classes_of_the_generated_set_have_to_be_those_of_the_other_file(
    tmp_path: Path, coco: dict[str, str], own: str
):
    other = {"train": "val", "val": "train"}[own]
    error = refusal(make_spec(tmp_path, data={own: coco}))
    assert isinstance(error, ConfigError)
    for words in (f"data.{other} is toy", f"if need be those of data.{own}"):
        assert words in str(error)
    check(make_spec(tmp_path, data={"train": coco, "val": coco}))


def test_the_generated_set_may_be_beside_a_file_of_its_own_classes(
    tmp_path: Path, coco: dict[str, str]
):
    annotations = Path(coco["annotations"])
    content = json.loads(annotations.read_text())
    content["categories"] = [{"id": 1, "name": "disc"}]
    annotations.write_text(json.dumps(content))
    check(make_spec(tmp_path, data={"train": coco, "toy": {"shapes": ["disc"]}}))


@pytest.mark.parametrize(
    "uri", ["localhost:5000", "mlruns", "/data/mlruns", "file:///data/mlruns"]
)
def test_an_address_that_mlflow_never_takes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
):
    spec = make_spec(tmp_path, tracking={"uri": uri})
    assert f"tracking.uri: {uri} is no address" in str(refusal(spec))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    check(spec)


@pytest.mark.parametrize(
    "uri", [None, "", "http://localhost:5000", "sqlite:////data/x.db", "databricks", "arn:aws:x"]
)
def test_other_addresses_of_mlflow_are_left_to_mlflow(tmp_path: Path, uri: str | None):
    check(make_spec(tmp_path, tracking={"uri": uri}))


def test_a_backbone_that_a_trial_may_get_has_to_exist(tmp_path: Path):
    space = {"model.backbone": {"choice": ["timm/test_resnet", "timm/test_resnot"]}}
    spec = SweepSpec.model_validate({"storage": tmp_path / "runs", "sweep": {"space": space}})
    assert "timm has no model 'test_resnot'" in str(refusal(spec))


def test_weights_that_a_trial_may_get_have_to_exist(tmp_path: Path):
    space = {"model.weights": {"choice": ["none", "/nowhere/w.pt"]}}
    spec = SweepSpec.model_validate({"storage": tmp_path / "runs", "sweep": {"space": space}})
    assert str(refusal(spec)).startswith(
        "model.weights: /nowhere/w.pt: no such file; give a state"
    )


def test_all_faults_are_found_at_once(tmp_path: Path, coco: dict[str, str]):
    spec = make_spec(
        tmp_path,
        resources={"workers": count_cpus() + 1},
        train={"batch_size": count_cpus() + 1},
        model={"weights": "/nowhere/w.pt"},
        data={"val": {**coco, "annotations": "/nowhere/val.json"}},
    )
    assert [type(fault) for fault in find_faults(spec)] == [ResourceError, ConfigError, DataError]


def test_a_plan_reads_each_annotation_file_once(
    tmp_path: Path, coco: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    val = {**coco, "annotations": str(tmp_path / "val.json")}
    Path(val["annotations"]).write_bytes(Path(coco["annotations"]).read_bytes())
    read = []

    def read_and_tell(path: Path, *more: Any) -> Any:
        read.append(path.name)
        return read_json(path, *more)

    monkeypatch.setattr(checks, "read_json", read_and_tell)
    spec = make_spec(tmp_path, data={"train": coco, "val": val})
    plan = make_plan(spec)
    assert sorted(read) == sorted([Path(coco["annotations"]).name, "val.json"])
    assert plan.val.boxes == plan.train.boxes
    # The next command sees what has changed meanwhile.
    content = json.loads(Path(val["annotations"]).read_text())
    Path(val["annotations"]).write_text(json.dumps(content | {"annotations": []}))
    assert make_plan(spec).val.boxes == 0


def test_a_plan_counts_data_and_trials(tmp_path: Path, coco: dict[str, str]):
    spec = SweepSpec.model_validate(
        {
            "storage": tmp_path / "runs",
            "data": {"train": coco},
            "train": {"steps": 10, "batch_size": 2},
            "sweep": {
                "search": "grid",
                "seeds": [0, 1],
                "concurrency": 1,
                "space": {"qam.k_top": {"choice": [1, 2, 3]}},
            },
        }
    )
    plan = make_plan(spec)
    assert (plan.train.images, plan.train.boxes, plan.train.used_images, plan.train.classes) == (
        2,
        2,
        1,
        1,
    )
    assert (plan.settings, plan.trials, plan.concurrency, plan.epochs) == (3, 6, 1, 20.0)
    assert not (tmp_path / "runs").exists()


def make_sweep_spec(tmp_path: Path, **sweep: Any) -> SweepSpec:
    return SweepSpec.model_validate({"storage": tmp_path / "runs", "sweep": sweep})


def test_a_plan_says_how_many_settings_there_are_and_that_none_is_run_twice(tmp_path: Path):
    space = {"qam.k_top": {"randint": [1, 4]}, "qam.fusion": {"choice": ["vote", "weighted"]}}
    plan = make_plan(make_sweep_spec(tmp_path, trials=10, seeds=[0, 1], space=space))
    assert (plan.settings, plan.trials) == (6, 12)
    assert [
        text
        for text in plan.warnings
        if "settings to try: 10, but sweep.space has no more than 6" in text
    ]
    few = make_plan(make_sweep_spec(tmp_path, trials=4, space=space))
    assert (few.settings, few.trials, few.warnings) == (6, 4, [])
    tried = make_sweep_spec(tmp_path, points=[{"qam.k_top": 2}], space=space)
    assert [make_plan(tried, ended=ended).tried_first for ended in (0, 1)] == [["k_top=2"], []]
    endless = make_plan(make_sweep_spec(tmp_path, space={"qam.iou_thr": {"uniform": [0.1, 0.9]}}))
    assert (endless.settings, endless.trials) == (None, 8)


def test_a_plan_shows_the_price_of_its_gpu_hours(tmp_path: Path):
    gpus = {"workers": 2, "gpus_per_worker": 1, "price_per_gpu_hour": 2.5}
    settings = {"storage": tmp_path / "runs", "train": {"steps": 100}, "resources": gpus}
    space = {"qam.k_top": {"choice": [1, 5, 10]}}
    sweep = {"search": "grid", "space": space, "concurrency": 1}
    plan = make_plan(SweepSpec.model_validate(settings | {"sweep": sweep}))
    # one trial after the other, each on two GPUs
    assert plan.gpu_h == pytest.approx(2 * plan.seconds / 3600)
    assert plan.price == pytest.approx(2.5 * plan.gpu_h)
    # two of the three have ended: what is left takes a third
    left = make_plan(SweepSpec.model_validate(settings | {"sweep": sweep}), ended=2)
    assert (left.trials, left.ended) == (3, 2)
    assert left.seconds == pytest.approx(plan.seconds / 3)
    assert left.price == pytest.approx(plan.price / 3)
    assert make_plan(make_spec(tmp_path)).price is None
    on_cores = make_spec(tmp_path, resources={"price_per_gpu_hour": 2.5})
    assert [
        text for text in warnings(on_cores) if "has no effect, as gpus_per_worker is 0" in text
    ]


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median"])
def test_trials_of_other_lengths_are_not_compared_at_the_same_step(tmp_path: Path, scheduler: str):
    space = {"train.steps": {"choice": [100, 400]}}
    error = refusal(make_sweep_spec(tmp_path, trial_scheduler=scheduler, space=space))
    assert exit_code_for(error) == ExitCode.USAGE
    for word in ("train.steps varies from 100 to 400", "set sweep.trial_scheduler: none"):
        assert word in str(error)
    check(make_sweep_spec(tmp_path, trial_scheduler="none", space=space))
    check(make_sweep_spec(tmp_path, space={"train.steps": {"choice": [100]}}))


def test_a_plan_without_earlier_runs_estimates_the_time_by_size_for_networks_on_record(
    tmp_path: Path,
):
    plan = make_plan(make_spec(tmp_path, train={"steps": 100}))
    longer = make_plan(make_spec(tmp_path, train={"steps": 200}))
    assert plan.seconds is not None
    assert longer.seconds - START_S == pytest.approx(2 * (plan.seconds - START_S))
    assert "with 21 s to start" in plan.time_basis
    assert "by size" in plan.time_basis
    unknown = make_plan(make_spec(tmp_path, model={"backbone": "timm/regnety_004"}))
    assert unknown.seconds is None
    assert "run one short run first" in unknown.time_basis


def test_a_plan_takes_its_time_from_an_earlier_run_of_the_same_size(tmp_path: Path):
    from orchestration.config.resolved import dump_resolved

    spec = make_spec(tmp_path, train={"steps": 50})
    folder = RunFolder(tmp_path / "runs" / "t" / "one")
    folder.create(RunStatus("one", "t"), dump_resolved(spec))
    folder.update(status="finished", created=1000.0, started=1000.0, ended=1100.0, step=50)
    checkpoint = folder.path / "checkpoints" / "best"
    checkpoint.mkdir(parents=True)
    (checkpoint / "student.safetensors").write_bytes(bytes(1000))
    plan = make_plan(make_spec(tmp_path, train={"steps": 200}))
    assert plan.seconds == pytest.approx(400.0)
    assert "run one" in plan.time_basis
    assert plan.disk_bytes == 3000
    assert "by size" in make_plan(make_spec(tmp_path, train={"image_size": 64})).time_basis


def test_a_plan_lists_why_it_would_not_start(tmp_path: Path, coco: dict[str, str]):
    plan = make_plan(
        make_spec(tmp_path, data={"train": {**coco, "annotations": "/nowhere/train.json"}})
    )
    assert plan.train.images is None
    assert [type(fault) for fault in plan.faults] == [DataError]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError(""), 2),
        (DataError(""), 3),
        (ResourceError(""), 5),
        (BoxSegError(""), 1),
        (ValueError(), 1),
    ],
)
def test_every_error_has_its_exit_code(error: Exception, code: int):
    assert exit_code_for(error) == code


def test_a_sweep_by_mask_ap_needs_masks_and_one_by_box_ap_does_not(
    tmp_path: Path, coco: dict[str, str]
):
    content = json.loads(Path(coco["annotations"]).read_text())
    for annotation in content["annotations"]:
        annotation.pop("segmentation", None)
    Path(coco["annotations"]).write_text(json.dumps(content))
    values = {"name": "t", "storage": tmp_path / "runs", "data": {"train": coco, "val": coco}}
    error = refusal(SweepSpec.model_validate(values))
    assert isinstance(error, ConfigError)
    assert "sweep.metric: val/mask_ap needs drawn masks" in str(error)
    assert "has no mask for 2 of 2 annotations" in str(error)
    assert "set sweep.metric: val/box_ap" in str(error)
    check(SweepSpec.model_validate(values | {"sweep": {"metric": "val/box_ap"}}))
    check(RunSpec.model_validate(values))


@pytest.mark.parametrize(
    ("domain", "floors", "alike"),
    [
        ({"choice": [0.1, 0.2, 0.3]}, None, True),
        ({"choice": [0.1, 0.3, 0.4, 0.5]}, None, False),
        # quoted, which settings take for numbers
        ({"choice": ["0.1", 0.2]}, {"choice": ["0.09"]}, True),
        # 0.3 squared: no candidate is weaker
        ({"choice": [0.1, 0.3]}, {"choice": [0.09, 0.2]}, True),
        ({"choice": [0.1, 0.3]}, {"uniform": [0.02, 0.2]}, False),
        ({"uniform": [0.01, 0.3]}, None, True),
        ({"uniform": [0.2237, 0.5]}, None, False),
    ],
)
def test_score_thresholds_that_make_no_difference_in_training_are_reported(
    tmp_path: Path, domain: dict[str, Any], floors: dict[str, Any] | None, alike: bool
):
    space = {"qam.score_thr": domain} | ({"teacher.cand_score_thr": floors} if floors else {})
    values = {"name": "t", "storage": tmp_path / "runs", "sweep": {"space": space, "trials": 1}}
    told = [each for each in warnings(SweepSpec.model_validate(values)) if "score_thr" in each]
    assert ["qam.score_thr from" in each for each in told] == [True] * alike


@pytest.mark.parametrize(
    ("method", "name", "others", "switch"),
    [
        ("qam", "pc.p_end", {}, "pc.on"),
        ("boxinst", "qam.iou_thr", {}, "teacher.on"),
        ("full", "pc.p_end", {}, None),
        ("boxteacher", "qam.iou_thr", {}, None),
        ("qam", "pc.p_end", {"method": {"choice": ["qam", "full"]}}, None),
        ("qam", "pc.p_end", {"pc.on": {"choice": [True, False]}}, None),
    ],
)
def test_settings_that_are_varied_in_vain_are_reported(
    tmp_path: Path, method: str, name: str, others: dict[str, Any], switch: str | None
):
    space = {name: {"choice": [0.4, 0.8]}, **others}
    values = {"method": method, "storage": tmp_path / "runs", "sweep": {"space": space}}
    told = [each for each in warnings(SweepSpec.model_validate(values)) if "effect" in each]
    expected = f"sweep.space varies {name} without effect: {switch} is false with method {method}"
    assert told == ([expected] if switch else [])


def test_a_plan_for_gpus_estimates_the_time_and_says_from_what(tmp_path: Path):
    gpus = {"gpus_per_worker": 1, "address": "ray://far"}
    plan = make_plan(make_spec(tmp_path, train={"steps": 1000}, resources=gpus))
    assert plan.seconds is not None
    assert "released VOC run" in plan.time_basis
    unknown = make_spec(tmp_path, resources=gpus, model={"backbone": "timm/regnety_004"})
    assert make_plan(unknown).seconds is None


@pytest.mark.parametrize("kind", [RunSpec, SweepSpec])
def test_auto_takes_ray_train_only_for_what_one_process_on_these_cpus_cannot_do(monkeypatch, kind):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def runner(**resources) -> str:
        return runner_of(kind.model_validate({"train": {"batch_size": 2}, "resources": resources}))

    assert runner() == "inline"
    assert runner(workers=2) == "ray_train"
    assert runner(gpus_per_worker=1) == "ray_train"
    assert runner(address="10.0.0.1:6379") == "ray_train"
    assert runner(runner="ray_train") == "ray_train"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert runner() == "ray_train"
    assert runner(runner="inline") == "inline"


def test_variables_of_mlflow_without_effect_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec, told = make_spec(tmp_path), "MLFLOW_TRACKING_URI has no effect; tracking.uri says it"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert told not in warnings(spec)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    assert told in warnings(spec)


def test_data_that_a_trial_may_get_are_checked(tmp_path: Path, coco: dict[str, str]):
    missing = coco | {"annotations": str(tmp_path / "missing.json")}
    for own, varied, message in (
        (
            {"train": coco, "val": coco},
            {"data.train": [coco, missing]},
            "missing.json: does not exist",
        ),
        ({"val": coco}, {"data.train": ["toy", coco]}, "data.train is toy, the generated set"),
        (
            {"train": coco, "val": coco},
            {"data.train.annotations": [missing["annotations"]]},
            "missing.json: does",
        ),
        ({"train": coco, "val": coco}, {"data.val": [missing]}, "missing.json: does not exist"),
    ):
        space = {name: {"choice": values} for name, values in varied.items()}
        values = {"storage": tmp_path / "runs", "data": own, "sweep": {"space": space}}
        assert message in str(refusal(SweepSpec.model_validate(values)))
    space = {"data.train.annotations": {"choice": [coco["annotations"]]}}
    values = {"storage": tmp_path / "runs", "data": {"train": coco, "val": coco}}
    check(SweepSpec.model_validate(values | {"sweep": {"metric": "val/box_ap", "space": space}}))

"""The whole loop on a handful of generated pictures."""

import functools
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from boxseg.build import build_trainer, run_training
from boxseg.data.toy import ensure_toy
from boxseg.engine import checkpoint
from boxseg.engine.step import run_step
from boxseg.engine.train import due_steps, guard_collapse, optimise, train
from boxseg.errors import CheckpointError, CollapseError, DataError, NonFiniteLossError
from boxseg.evaluation import validate
from boxseg.evaluation.ap import encode_detections
from boxseg.mask_parts import MaskPart
from boxseg.ops.masks import box_masks
from boxseg.predict import Predictor

METHODS = ("boxinst", "boxteacher", "qam", "pc", "full", "supervised")
WITHOUT_TEACHER = ("boxinst", "supervised")


def weights(folder, network="student"):
    return checkpoint.load_network(folder / "checkpoints" / "last", network)


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=0, msg=name)


@pytest.fixture(scope="module")
def run(tiny_config, recorder, data_root):
    def start(folder, *, stop_at=None, **changes):
        reporter = recorder(stop_at)
        result = train(
            build_trainer(tiny_config(**changes), data_root=data_root),
            folder=folder,
            reporter=reporter,
        )
        return result, reporter

    return start


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    """The folder of the whole run of a method, which stays as it is, with the run's result and reporter."""

    @functools.cache
    def of(method="full"):
        folder = tmp_path_factory.mktemp(method)
        return folder, *run(folder, method=method)

    return of


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_with_finite_losses(finished, method):
    _, result, reporter = finished(method)
    assert result.step == 6
    assert len(reporter.steps) == 6
    assert all(
        math.isfinite(value) for report in reporter.steps for value in report.metrics.values()
    )
    assert 0 <= result.metrics["val/mask_ap"] <= 1
    assert ("val/teacher_mask_ap" in result.metrics) == (method not in WITHOUT_TEACHER)
    assert ("pc/paste_rate" in reporter.steps[0].metrics) == (method in ("pc", "full"))
    assert ("qam/coverage" in reporter.steps[0].metrics) == (method not in WITHOUT_TEACHER)


def test_without_pseudo_losses_and_copy_paste_the_run_is_boxinst(run, finished, tmp_path):
    boxinst, *_ = finished("boxinst")
    run(tmp_path, loss={"mask_weight": 0.0, "aff_weight": 0.0}, pc={"on": False})
    assert_equal(weights(boxinst), weights(tmp_path))


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(run, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tmp_path / name, train={"seed": seed, "eval_every": 6, "panels": 0})
    assert_equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    left, right = weights(tmp_path / "a"), weights(tmp_path / "c")
    assert any(not torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("stop_at", [2, 3, 5])
def test_interrupted_and_resumed_equals_uninterrupted(run, finished, tmp_path, stop_at):
    folder, whole, whole_reporter = finished()
    first, _ = run(tmp_path, stop_at=stop_at)
    assert first.step == stop_at
    second, second_reporter = run(tmp_path)
    assert second.step == 6
    assert second_reporter.losses() == whole_reporter.losses()[stop_at:]
    assert second.metrics == whole.metrics
    for network in ("student", "teacher"):
        assert_equal(weights(folder, network), weights(tmp_path, network))


def test_checkpoints_between_evaluations_bound_what_a_kill_costs(run, tmp_path, monkeypatch):
    settings = {"eval_every": 6, "save_every": 2}
    whole, whole_reporter = run(tmp_path / "whole", train=settings)

    def killed(trainer, batch, step):
        if step == 5:
            raise KeyboardInterrupt
        return optimise(trainer, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr("boxseg.engine.train.optimise", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", train=settings)
    second, reporter = run(tmp_path / "parts", train=settings)
    assert reporter.losses() == whole_reporter.losses()[4:]
    assert [report.step for report in reporter.evals] == [6]
    assert second.metrics == whole.metrics
    assert checkpoint.find_best(tmp_path / "parts/checkpoints").name == "step-00000006"


def test_a_finished_run_started_again_reports_its_metrics_and_trains_no_step(
    run, finished, tmp_path
):
    folder, first, _ = finished()
    again = copy_of(folder, tmp_path) / "checkpoints"
    kept = sorted(again.iterdir())
    # killed before it had removed the checkpoints of before
    shutil.copytree(kept[-1], again / "step-00000001")
    shutil.copytree(kept[-1], again / "step-00000002")
    second, reporter = run(again.parent)
    assert reporter.steps == []
    assert second == first
    assert sorted(again.iterdir()) == kept


def test_a_last_step_that_was_saved_without_an_evaluation_is_evaluated(run, tmp_path):
    whole, _ = run(tmp_path / "whole", train={"steps": 3, "eval_every": 3})
    stopped, _ = run(tmp_path / "stopped", stop_at=3, train={"steps": 6, "eval_every": 6})
    assert (stopped.step, stopped.evaluated) == (3, 0)
    result, reporter = run(tmp_path / "stopped", train={"steps": 3, "eval_every": 3})
    assert (result.step, result.evaluated) == (3, 3)
    assert [report.step for report in reporter.evals] == [3]
    assert reporter.evals[0].metrics.keys() == whole.metrics.keys()
    assert checkpoint.load_about(tmp_path / "stopped/checkpoints/last")["evaluated"] == 3


def test_a_resumed_run_reports_the_evaluation_of_its_checkpoint_again(run, tmp_path):
    run(tmp_path, stop_at=5, train={"eval_every": 2})
    _, reporter = run(tmp_path, train={"eval_every": 2})
    assert [(report.step, report.is_repeated) for report in reporter.evals] == [
        (4, True),
        (6, False),
    ]


def test_a_checkpoint_beyond_the_schedule_is_refused(run, finished, tmp_path):
    folder, *_ = finished()
    with pytest.raises(CheckpointError, match=r"at step 6, beyond train.steps 4"):
        run(copy_of(folder, tmp_path), train={"steps": 4})


def copy_of(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy", symlinks=True)


@pytest.mark.parametrize(
    ("method", "evaluated", "labelled"),
    [("full", "both", True), ("full", "teacher", True), ("boxinst", "both", False)],
)
def test_panels_show_the_teachers_masks_where_there_is_a_teacher(
    tiny_config, data_root, tmp_path, monkeypatch, method, evaluated, labelled
):
    drawn = []
    monkeypatch.setattr(validate, "draw_panels", lambda rows, path: drawn.extend(rows) or path)
    trainer = build_trainer(
        tiny_config(method=method, train={"evaluate": evaluated}), data_root=data_root
    )
    validate.validate(trainer, folder=tmp_path, step=3)
    assert drawn
    assert [row.teacher_masks is not None for row in drawn] == [labelled] * len(drawn)
    assert [row.quality is not None for row in drawn] == [labelled] * len(drawn)


def test_best_and_last_checkpoints_and_panels_are_left_behind(finished):
    folder, _, reporter = finished()
    assert [report.step for report in reporter.evals] == [3, 6]
    assert (folder / "checkpoints" / "best" / "student.safetensors").exists()
    assert checkpoint.load_about(folder / "checkpoints" / "last")["step"] == 6
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [
        "step-00000003.png",
        "step-00000006.png",
    ]


@pytest.mark.parametrize(
    "broken", ["draw_panels", "PseudoMaskWatcher.rows", "draw_evaluation", None]
)
def test_a_failing_picture_does_not_fail_the_run(
    run, tmp_path, data_root, tiny_config, monkeypatch, caplog, broken
):
    def fail(*args, **kwargs):
        raise ValueError("a picture")

    if broken is not None:
        monkeypatch.setattr(f"boxseg.evaluation.validate.{broken}", fail)
    sources = {}
    for name, source in zip(
        ("train", "val"), ensure_toy(data_root, tiny_config().data.toy), strict=True
    ):
        content = json.loads(source.annotations.read_text())
        for category in content["categories"]:
            category["name"] = f"$a$ ${category['id']} <b> \\frac{{ 猫\n" + "x" * 5000
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        sources[name] = {"images": source.images, "annotations": path}
    result, reporter = run(tmp_path / "run", data=sources, train={"steps": 1})
    assert (result.step, result.evaluated) == (1, 1)
    assert [report.step for report in reporter.evals] == [1]
    assert checkpoint.load_about(tmp_path / "run" / "checkpoints" / "last")["step"] == 1
    told = [
        record.getMessage()
        for record in caplog.records
        if "is left out: ValueError: a picture" in record.message
    ]
    assert len(told) == (broken is not None)
    drawn = {path.name for path in (tmp_path / "run").glob("*/*.*")}
    assert ("precision_recall.png" in drawn) == (broken != "draw_evaluation")
    assert ("step-00000001.png" in drawn) == (
        broken not in ("draw_panels", "PseudoMaskWatcher.rows")
    )


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_images(run, tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"step \d+: the loss is .*images \["):
        run(tmp_path, solver={"lr": 1e30}, train={"clip_norm": None})


def test_weights_that_are_not_finite_after_a_finite_loss_are_not_saved(run, tmp_path, monkeypatch):
    """The third step is evaluated and saved, before another loss could show what the weights have become."""

    def lose(trainer, batch, step):
        metrics = optimise(trainer, batch, step)
        if step == 2:
            next(trainer.student.parameters()).data.fill_(math.nan)
        return metrics

    monkeypatch.setattr("boxseg.engine.train.optimise", lose)
    with pytest.raises(NonFiniteLossError, match="step 3: weights are not finite"):
        run(tmp_path, train={"save_every": 1})
    assert checkpoint.load_about(tmp_path / "checkpoints" / "last")["step"] == 2


@pytest.mark.parametrize("method", ["boxinst", "full"])
def test_a_run_that_predicts_boxes_is_stopped_with_its_checkpoint_saved(
    run, tmp_path, monkeypatch, method
):
    def encode_boxes(found):
        boxes = torch.tensor([8.0, 8.0, 40.0, 40.0]).expand(len(found.boxes), 4)
        # rows and columns 8 to 39
        masks = box_masks(boxes - torch.tensor([0, 0, 1, 1]), *found.size)
        return encode_detections(
            replace(found, boxes=boxes, parts=[MaskPart(mask) for mask in masks.numpy()])
        )

    monkeypatch.setattr("boxseg.evaluation.validate.encode_detections", encode_boxes)
    monkeypatch.setattr("boxseg.evaluation.ap.CONFIDENT", 0.0)
    sabotage = {"method": method, "fcos": {"score_thr": 0.0}}
    with pytest.raises(
        CollapseError,
        match=r"step 6: areas of confident masks .* agree to .* train.collapse_fill: null",
    ):
        run(tmp_path, **sabotage)
    assert checkpoint.load_about(tmp_path / "checkpoints" / "last")["step"] == 6
    result, _ = run(tmp_path / "rectangles", **sabotage, train={"collapse_fill": None})
    assert result.step == 6


def test_blobs_of_the_first_half_and_good_masks_do_not_stop_a_run():
    guard_collapse({"health/box_likeness": 1.0}, done=50, steps=100, limit=0.95)
    guard_collapse({"health/box_likeness": 0.8}, done=100, steps=100, limit=0.95)
    guard_collapse({}, done=100, steps=100, limit=0.95)
    with pytest.raises(CollapseError):
        guard_collapse({"health/box_likeness": 0.96}, done=51, steps=100, limit=0.95)


def test_due_steps_always_hold_the_last():
    assert due_steps(10, 0.4) == {4, 8, 10}
    assert due_steps(10, 3) == {3, 6, 9, 10}
    assert due_steps(10, 100) == {10}


def test_a_validation_set_without_masks_is_evaluated_on_its_boxes(
    run, tmp_path, data_root, tiny_config
):
    _, val = ensure_toy(data_root, tiny_config().data.toy)
    boxes = without_masks(val.annotations, tmp_path / "boxes.json")
    result, _ = run(tmp_path / "run", data={"val": {"images": val.images, "annotations": boxes}})
    assert "val/box_ap" in result.metrics
    assert "val/mask_ap" not in result.metrics
    assert "qam/pseudo_iou" not in result.metrics
    assert (tmp_path / "run" / "checkpoints" / "best").exists()


def test_supervised_learns_from_drawn_masks_alone(run, tmp_path):
    settings = {
        "data": {"toy": {"train_images": 8}, "flip": 0.0, "strong": "none"},
        "train": {"steps": 60, "batch_size": 8, "eval_every": 60, "panels": 0},
        "solver": {"lr": 2e-3},
    }
    _, reporter = run(tmp_path, method="supervised", **settings)
    mask = [report.metrics["train/loss_mask"] for report in reporter.steps]
    assert sum(mask[-5:]) < 0.6 * sum(mask[:5])
    for silent in ("projection", "pairwise", "affinity"):
        assert all(report.metrics[f"train/loss_{silent}"] == 0 for report in reporter.steps)


def test_supervised_refuses_boxes_without_masks(run, tmp_path, data_root, tiny_config):
    train, _ = ensure_toy(data_root, tiny_config().data.toy)
    boxes = without_masks(train.annotations, tmp_path / "boxes.json")
    with pytest.raises(
        DataError, match=r"boxes.json: has no mask; .*name a file with `segmentation`"
    ):
        run(
            tmp_path,
            method="supervised",
            data={"train": {"images": train.images, "annotations": boxes}},
        )


@pytest.mark.parametrize("method", ["boxinst", "full"])
def test_masks_in_the_file_change_nothing_unless_they_are_to_be_used(
    run, finished, tmp_path, data_root, tiny_config, method
):
    train, _ = ensure_toy(data_root, tiny_config().data.toy)
    boxes = without_masks(train.annotations, tmp_path / "boxes.json")
    with_masks, *_ = finished(method)
    run(
        tmp_path / "without",
        method=method,
        data={"train": {"images": train.images, "annotations": boxes}},
    )
    assert_equal(weights(with_masks), weights(tmp_path / "without"))


def test_mixed_supervision_teaches_the_boxes_that_have_a_mask(
    run, tmp_path, data_root, tiny_config
):
    train, _ = ensure_toy(data_root, tiny_config().data.toy)
    some = without_masks(train.annotations, tmp_path / "some.json", every=2)
    source = {"train": {"images": train.images, "annotations": some}}
    _, boxes_only = run(tmp_path / "never", data=source, loss={"warmup": 0})
    _, mixed = run(
        tmp_path / "mixed", data={**source, "use_masks": "where_present"}, loss={"warmup": 0}
    )
    first = [reporter.steps[0].metrics for reporter in (boxes_only, mixed)]
    # measured on what the teacher says
    assert first[0]["qam/coverage"] == first[1]["qam/coverage"]
    assert first[1]["train/loss_mask"] != first[0]["train/loss_mask"]
    assert first[1]["pc/bank_size"] > 0


def without_masks(annotations, path, *, every=1):
    """A copy of the file in which every so many annotations have no segmentation."""
    content = json.loads(annotations.read_text())
    for annotation in content["annotations"][::every]:
        del annotation["segmentation"]
    path.write_text(json.dumps(content))
    return path


def test_a_convnext_of_timm_trains(run, tmp_path):
    settings = {"steps": 1, "eval_every": 1, "panels": 0}
    result, _ = run(
        tmp_path, method="boxinst", model={"backbone": "timm/convnext_atto"}, train=settings
    )
    assert result.step == 1


def test_the_parts_of_a_batch_add_up_to_the_mean_over_its_images(tiny_config, data_root):
    config = tiny_config(method="boxinst", train={"batch_size": 3, "accumulate": 2})
    trainer = build_trainer(config, data_root=data_root)
    batch = next(trainer.loader.batches(0, 1))
    parts = batch.split(2)
    assert [part.image_ids for part in parts] == [batch.image_ids[:1], batch.image_ids[1:]]
    assert [len(part) for part in batch.split(9)] == [1, 1, 1]
    for part in parts:
        (run_step(trainer, part, 0).loss * len(part) / 3).backward()
    expected = {
        name: value.grad.clone()
        for name, value in trainer.student.named_parameters()
        if value.grad is not None
    }
    optimise(trainer, batch, 0)
    for name, value in trainer.student.named_parameters():
        if name in expected:
            torch.testing.assert_close(value.grad, expected[name], msg=name)


def test_an_evaluation_before_a_failing_step_is_kept_and_reported(
    tiny_config, data_root, tmp_path, recorder, monkeypatch
):
    def fail(trainer, batch, step):
        if step == 3:
            raise NonFiniteLossError("step 3: the loss is nan")
        return optimise(trainer, batch, step)

    monkeypatch.setattr("boxseg.engine.train.optimise", fail)
    reporter = recorder()
    with pytest.raises(NonFiniteLossError):
        run_training(tiny_config(), folder=tmp_path, data_root=data_root, reporter=reporter)
    assert [each.step for each in reporter.evals] == [3]
    assert checkpoint.load_about(tmp_path / "checkpoints" / "last")["step"] == 3


@pytest.mark.parametrize("change", ["no best", "no optimizer", "settings"])
def test_a_checkpoint_of_another_version_is_named(
    tiny_config, data_root, recorder, tmp_path, change
):
    trainer = build_trainer(tiny_config(train={"steps": 1, "panels": 0}), data_root=data_root)
    train(trainer, folder=tmp_path, reporter=recorder())
    folder = (tmp_path / "checkpoints" / "last").resolve()
    about, state = checkpoint.load_about(folder), checkpoint.load_state(folder)
    networks = {name: network.state_dict() for name, network in trainer.networks().items()}
    if change == "no best":
        del about["best_step"]
    elif change == "no optimizer":
        del state["shared"]["optimizer"]
    else:
        about["config"]["qam"]["later"] = 1
    files = checkpoint.pack(networks, state)
    checkpoint.save_checkpoint(folder.parent, step=1, files=files, about=about)
    use = functools.partial(train, trainer, folder=tmp_path, reporter=recorder())
    if change == "settings":
        use = functools.partial(Predictor, folder)
    with pytest.raises(CheckpointError, match="step-00000001 is of another version of boxseg: "):
        use()

"""What only whole steps show of `docs/method.md#one-step` and of repaired defects, on a tiny network."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torchvision.ops import batched_nms, box_iou, sigmoid_focal_loss

from boxseg.build import build_network, build_trainer
from boxseg.engine import train
from boxseg.engine.step import label_batch, paste_generator, run_step, update_ema
from boxseg.model.targets import assign_batch
from boxseg.ops.masks import box_masks, resize_masks
from boxseg.teacher.candidates import find_candidates
from boxseg.teacher.qam import fuse_candidates
from boxseg.teacher.view import teacher_view

ANY_BOX = {
    "teacher": {"cand_score_thr": 1e-6, "resize_short": 96},
    "qam": {"iou_thr": 0.0, "score_thr": 0.0},
}


@pytest.fixture
def trainer(tiny_config, data_root):
    return lambda **changes: build_trainer(
        tiny_config(**{**ANY_BOX, **changes}), data_root=data_root
    )


def first_batch(trainer):
    return next(iter(trainer.loader.batches(0, 1)))


def without_boxes(batch):
    boxes, labels = [box[:0] for box in batch.boxes], [label[:0] for label in batch.labels]
    return replace(batch, boxes=boxes, labels=labels)


def test_only_the_mask_branch_has_batch_norms_that_learn(tiny_config):
    network = build_network(tiny_config(model={"norm": "frozen"}), num_classes=3)
    learning = {
        name.split(".")[0]
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight.requires_grad
    }
    assert learning == {"mask_branch"}


def test_the_method_boxteacher_with_focal_loss_is_the_baseline(trainer):
    focal = {"use_vfl": False, "topk": 20}
    one = trainer(
        profile="official",
        method="boxteacher",
        fcos=focal,
        qam={"iou_thr": 0.01, "score_thr": 0.0},
    )
    batch = first_batch(one)
    assert one.bank is None
    labels = label_batch(one, batch)
    frames = find_candidates(one.teacher, batch, one.config)
    for image, pseudo in enumerate(labels):
        mask, quality = greedy_labels(one, batch, image)
        assert frames[image].frame.view == (96, 96)
        assert torch.equal(pseudo.full, mask)
        torch.testing.assert_close(pseudo.quality, quality)
    assert float(torch.cat([pseudo.quality for pseudo in labels]).max()) > 0

    predictions = one.student(batch.strong, batch.valid)
    found = run_step(one, batch, 0).metrics["train/loss_cls"]
    places = (predictions.locations, predictions.strides, predictions.levels)
    targets = assign_batch(*places, batch.boxes, batch.labels)
    wanted = torch.zeros_like(predictions.class_logits)
    image, location = (targets.labels >= 0).nonzero(as_tuple=True)
    wanted[image, location, targets.labels[image, location]] = 1
    focal = sigmoid_focal_loss(
        predictions.class_logits, wanted, alpha=0.25, gamma=2, reduction="sum"
    )
    torch.testing.assert_close(found, (focal / len(image)).detach())


def greedy_labels(trainer, batch, image):
    """BoxTeacher's masks (N, H, W) and qualities for one image, by a plain loop over detections, quirk k-9 included."""
    view = teacher_view(batch, short=96, long=1333)
    predictions = trainer.teacher(view.weak, view.valid)
    found = trainer.teacher.detect(predictions, score_thr=1e-6, pre_topk=1000)[image]
    found = found.take(batched_nms(found.boxes, found.scores, found.labels, 0.6)[:20])
    where = torch.full_like(found.handle, image)
    probs = trainer.teacher.mask_logits(predictions, where, found.handle).sigmoid().detach()
    height, width = batch.sizes[image]
    probs = resize_masks(probs, size=view.sizes[image], original_size=(height, width))
    above = probs > 0.5
    confidence = (probs * above).sum((1, 2)) / (above.sum((1, 2)) + 1e-6)
    overlap = box_iou(found.boxes, view.boxes[image])
    taken = [-1] * len(batch.boxes[image])
    for detection in (
        (found.scores * confidence).sqrt().argsort(descending=True, stable=True).tolist()
    ):
        free = [box for box in range(len(taken)) if not taken[box] > 0]
        best = max(free, key=lambda box: float(overlap[detection, box]), default=None)
        if best is not None and overlap[detection, best] >= 0.01:
            taken[best] = detection
    mask = torch.zeros(len(taken), *batch.valid.shape[-2:], dtype=torch.bool)
    quality = torch.zeros(len(taken))
    for box, detection in enumerate(taken):
        if detection >= 0:
            mask[box, :height, :width] = above[detection]
            quality[box] = (found.scores[detection].sqrt() * confidence[detection]).sqrt()
    return mask & box_masks(batch.boxes[image], *batch.valid.shape[-2:]), quality


def test_the_teacher_is_the_mean_of_its_students_with_statistics_of_its_own(trainer):
    one, students = trainer(profile="official"), []
    for step, batch in enumerate(one.loader.batches(0, 4)):
        students.append([parameter.detach().clone() for parameter in one.student.parameters()])
        update_ema(one, step)
        run_step(one, batch, step).loss.backward()
        one.optimizer.step()
        one.optimizer.zero_grad()
    for parameter, *states in zip(one.teacher.parameters(), *students, strict=True):
        torch.testing.assert_close(
            parameter, torch.stack(states).mean(dim=0), atol=1e-5, rtol=1e-4
        )
    means = [
        dict(network.mask_branch.named_buffers())["refine.0.1.running_mean"]
        for network in (one.teacher, one.student)
    ]
    assert float((means[0] - means[1]).abs().max()) > 1e-4


def test_qam_reads_from_the_device_only_once_how_many_candidates_there_are(trainer):
    one = trainer(profile="fixed")
    batch, config = first_batch(one), one.config

    def find():
        return find_candidates(one.teacher, batch, config)

    candidates = find()
    assert waits(lambda: fuse_candidates(config, candidates, batch)) == 0
    assert waits(find) == 1  # for all images


def waits(work):
    """Operations in which the host waits for a number or a size from the device."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        work()
    return sum(
        event.count
        for event in recorded.key_averages()
        if event.key in ("aten::_local_scalar_dense", "aten::nonzero")
    )


@pytest.mark.parametrize(("profile_name", "with_nms"), [("official", False), ("fixed", True)])
def test_a_batch_without_boxes_has_a_loss_and_all_its_names(trainer, profile_name, with_nms):
    one = trainer(profile=profile_name, teacher={**ANY_BOX["teacher"], "with_nms": with_nms})
    batch = first_batch(one)
    full, empty = run_step(one, batch, 0), run_step(one, without_boxes(batch), 1)
    assert full.metrics.keys() == empty.metrics.keys()
    assert {value.shape for value in (full.metrics | empty.metrics).values()} == {torch.Size([])}
    empty.loss.backward()
    assert all(
        p.grad is not None and bool(torch.isfinite(p.grad).all())
        for p in one.student.parameters()
        if p.requires_grad
    )
    for name in ("loc", "ctr", "projection", "pairwise", "mask", "affinity"):
        assert float(empty.metrics[f"train/loss_{name}"]) == 0


def test_random_numbers_of_copy_paste_are_a_function_of_seed_and_step():
    drawn = []
    for seed, step in ((0, 5), (0, 5), (0, 6), (1, 5)):
        torch.manual_seed(len(drawn))  # the global generator has no part in it
        drawn.append(float(torch.rand((), generator=paste_generator(seed, step))))
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


@pytest.mark.parametrize("shared", [True, False])
def test_statistics_are_averaged_over_processes_where_that_is_switched_on(
    trainer, monkeypatch, shared
):
    one = trainer(ema={"average_buffers": shared})
    averaged = []
    monkeypatch.setattr(train, "average_buffers", averaged.append)
    train.average_statistics(one)
    assert averaged == (list(one.networks().values()) if shared else [])


CHANGES = [
    ("teacher", {"with_nms": True}),
    ("teacher", {"resize_short": 64}),
    ("fcos", {"radius": 0.5}),
    ("cond", {"max_per_image": 1}),
    ("cond", {"features": 4}),
    ("cond", {"channels": 4}),
    ("cond", {"layers": 2}),
    ("qam", {"k_top": 1}),
]


def test_every_setting_that_acts_in_a_step_changes_it(trainer):
    def metrics(**changes):
        one = trainer(profile="official", **changes)
        return [
            float(value.detach()) for value in run_step(one, first_batch(one), 0).metrics.values()
        ]

    base = metrics()
    without_effect = [
        (group, change)
        for group, change in CHANGES
        if metrics(**{group: {**ANY_BOX.get(group, {}), **change}}) == base
    ]
    assert without_effect == []


def test_the_teacher_follows_only_every_so_many_steps(trainer):
    one = trainer(ema={"interval": 2, "momentum": 0.5})
    followed = []
    for step in range(3):
        with torch.no_grad():
            next(one.student.parameters()).add_(1.0)
        before = next(one.teacher.parameters()).clone()
        update_ema(one, step)
        followed.append(not torch.equal(before, next(one.teacher.parameters())))
    assert followed == [True, False, True]

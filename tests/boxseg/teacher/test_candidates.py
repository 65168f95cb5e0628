"""The teacher's candidates, with a small network whose detections are planted."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.scenario import STEP, Scenario, build
from boxseg.config.method import BoxSegConfig
from boxseg.engine.train import optimise
from boxseg.ops.detections import decode_detections
from boxseg.ops.images import resized_shape
from boxseg.ops.masks import aligned_bilinear, box_masks
from boxseg.structures import MASK_STRIDE, Batch, MaskFrame, Predictions
from boxseg.teacher import candidates
from boxseg.teacher.candidates import find_candidates
from boxseg.teacher.one_per_box import match_greedily
from boxseg.teacher.qam import fuse_candidates
from boxseg.teacher.view import teacher_view, to_training_grid

SETTINGS = BoxSegConfig.model_validate(
    {
        "teacher": {"resize_short": None, "cand_score_thr": 0.01},
        "qam": {"score_thr": 0.0, "full_resolution": False},
    }
)


def with_changes(settings, **changes):
    """Each change goes to the first of three groups that has the setting."""
    for name, value in changes.items():
        group, values = next(
            (group, values)
            for group in ("teacher", "qam", "fcos")
            if name in type(values := getattr(settings, group)).model_fields
        )
        values = values.model_copy(update={name: value})
        settings = settings.model_copy(update={group: values})
    return settings


CLASSES = 3


class PlantedNetwork(nn.Module):
    """Returns planted detections at two levels; the mask of a location fills its box, sharply but softly."""

    def __init__(self, class_probs, boxes):
        """Class probabilities (B, L, K) and boxes (B, L, 4) in pixels, for L = cells of stride 8 and of stride 16."""
        super().__init__()
        self.class_probs, self.boxes, self.seen = class_probs, boxes, []
        self.norm = nn.BatchNorm1d(1)

    def forward(self, images, valid):
        self.seen.append((images, valid, self.training))
        height, width = images.shape[-2:]
        locations, strides, levels = [], [], []
        for level, stride in enumerate((8, 16)):
            y, x = torch.meshgrid(
                torch.arange(stride // 2, height, stride),
                torch.arange(stride // 2, width, stride),
                indexing="ij",
            )
            locations.append(torch.stack([x, y], dim=-1).reshape(-1, 2).float())
            strides.append(torch.full((len(locations[-1]),), float(stride)))
            levels.append(torch.full((len(locations[-1]),), level))
        points, stride = torch.cat(locations), torch.cat(strides)
        distances = (
            torch.cat([points - self.boxes[..., :2], self.boxes[..., 2:] - points], dim=-1)
            / stride[:, None]
        )
        return Predictions(
            class_logits=torch.logit(self.class_probs, eps=1e-6),
            distances=distances,
            centerness_logits=torch.full(distances.shape[:2], 20.0),
            controller_maps=torch.zeros(*distances.shape[:2], 1),
            patches=torch.zeros(distances.shape[1], 9, dtype=torch.int64),
            mask_features=torch.zeros(len(images), 1, height // 8, width // 8),
            locations=points,
            strides=stride,
            levels=torch.cat(levels),
        )

    def detect(self, predictions, *, score_thr, pre_topk):
        return decode_detections(predictions, score_thr=score_thr, pre_topk=pre_topk)

    def mask_logits(self, predictions, image_index, handle):
        height, width = (8 * side for side in predictions.mask_features.shape[-2:])
        inside = box_masks(self.boxes[image_index, handle], height, width, stride=4)
        return torch.where(inside, 3.0, -3.0) + 0.1 * handle[:, None, None].float().sin()


def make_batch(boxes, labels, *, size=64, sizes=None):
    images = len(boxes)
    pixels = torch.randint(
        0,
        256,
        (images, 3, size, size),
        generator=torch.Generator().manual_seed(0),
        dtype=torch.uint8,
    )
    sizes = sizes or [(size, size)] * images
    valid = torch.zeros(images, size, size, dtype=torch.bool)
    for image, (height, width) in enumerate(sizes):
        valid[image, :height, :width] = True
    return Batch(
        weak=pixels * valid[:, None],
        strong=pixels,
        valid=valid,
        boxes=[torch.tensor(image, dtype=torch.float32).view(-1, 4) for image in boxes],
        labels=[torch.tensor(image, dtype=torch.int64) for image in labels],
        sizes=sizes,
        original_sizes=sizes,
        image_ids=list(range(images)),
    )


def planted(detections, *, images=1, size=64):
    """`detections`: image, location, class, probability, box; those of the first `images` images."""
    locations = (size // 8) ** 2 + (size // 16) ** 2
    probs, boxes = torch.zeros(images, locations, CLASSES), torch.zeros(images, locations, 4)
    for image, location, label, probability, box in [one for one in detections if one[0] < images]:
        probs[image, location, label] = probability
        boxes[image, location] = torch.tensor(box, dtype=torch.float32)
    return PlantedNetwork(probs, boxes)


DETECTIONS = [
    (0, 3, 1, 0.81, (8, 8, 30, 40)),
    (0, 5, 1, 0.49, (8, 8, 30, 36)),
    (0, 66, 1, 0.36, (8, 8, 30, 40)),
    (0, 9, 2, 0.9, (8, 8, 30, 40)),
    (0, 20, 0, 0.64, (40, 40, 60, 60)),
    (1, 7, 2, 0.25, (4, 4, 20, 20)),
]
BATCH = ([[[8, 8, 30, 40], [40, 40, 60, 62]], [[4, 4, 20, 20]]], [[1, 0], [2]])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 853), (800, 1066)),
        ((427, 640), (800, 1199)),
        ((480, 640), (800, 1067)),
        ((640, 1333), (640, 1333)),
    ],
)
def test_sizes_of_the_teachers_input(size, expected):
    assert resized_shape(size, short_side=800, max_size=1333) == expected


def test_candidates_are_ranked_for_each_box_of_each_image():
    network = planted(DETECTIONS, images=2)
    first, second = find_candidates(
        network, make_batch(*BATCH), with_changes(SETTINGS, filter_first=True)
    )
    assert first.box_index.tolist() == [0, 0, 0, 1]
    # IoU 1, 1, 0.875, then the other box
    assert first.score.tolist() == pytest.approx([0.9, 0.6, 0.7, 0.8], abs=1e-4)
    assert first.box_iou.tolist() == pytest.approx([1, 1, 28 / 32, 20 / 22], abs=1e-4)
    assert second.box_index.tolist() == [0]
    assert second.score.tolist() == pytest.approx([0.5], abs=1e-4)
    expected = network.mask_logits(
        network(*network.seen[0][:2]), torch.tensor([0]), torch.tensor([3])
    ).sigmoid()
    torch.testing.assert_close(first.mask_probs[:1], expected)


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({}, 4),
        ({"class_match": False}, 5),
        ({"cand_score_thr": 0.4}, 3),
        ({"score_thr": 0.65}, 3),
        ({"iou_thr": 0.9}, 3),
        ({"k_top": 1, "filter_first": True}, 2),
        ({"pre_topk": 1}, 1),
        ({"adaptive_k": True, "k_min": 1, "k_max": 1, "filter_first": True}, 2),
        (
            {
                "adaptive_k": True,
                "k_min": 1,
                "k_max": 4,
                "area_s": 500.0,
                "area_l": 600.0,
                "filter_first": True,
            },
            4,
        ),
    ],
)
def test_every_limit_has_its_effect(change, count):
    network = planted(DETECTIONS, images=2)
    first, _ = find_candidates(network, make_batch(*BATCH), with_changes(SETTINGS, **change))
    assert len(first.score) == count


def test_a_small_box_gets_fewer_candidates_in_pixels_of_the_original_image():
    network, batch = planted(DETECTIONS, images=2), make_batch(*BATCH)
    settings = with_changes(
        SETTINGS,
        adaptive_k=True,
        k_min=1,
        k_max=4,
        area_s=1000.0,
        area_l=2000.0,
        filter_first=True,
    )
    assert len(find_candidates(network, batch, settings)[0].score) == 2
    doubled = replace(batch, original_sizes=[(128, 128)] * 2)
    assert len(find_candidates(network, doubled, settings)[0].score) == 4


def test_one_image_alone_equals_the_same_image_in_a_batch():
    together = find_candidates(planted(DETECTIONS, images=2), make_batch(*BATCH), SETTINGS)[1]
    network = planted([(0, *rest) for image, *rest in DETECTIONS if image == 1])
    alone = find_candidates(network, make_batch(BATCH[0][1:], BATCH[1][1:]), SETTINGS)[0]
    for name in ("mask_probs", "score", "box_iou", "box_index"):
        assert torch.equal(getattr(together, name), getattr(alone, name))


@pytest.mark.parametrize("with_nms", [True, False])
def test_images_without_boxes_or_detections_have_no_candidates(with_nms):
    for network, boxes, labels in (
        (planted(DETECTIONS), [[]], [[]]),
        (planted([]), [[[8, 8, 30, 40]]], [[1]]),
    ):
        (found,) = find_candidates(
            network, make_batch(boxes, labels), with_changes(SETTINGS, with_nms=with_nms)
        )
        assert found.mask_probs.shape == (0, 16, 16)
        assert len(found.score) == len(found.box_iou) == len(found.box_index) == 0


def test_candidates_carry_no_gradient():
    (found,) = find_candidates(
        planted(DETECTIONS), make_batch(BATCH[0][:1], BATCH[1][:1]), SETTINGS
    )
    assert not found.mask_probs.requires_grad


def test_masks_are_zero_on_padding():
    batch = make_batch([[[8, 8, 30, 40]]], [[1]], sizes=[(48, 40)])
    (found,) = find_candidates(planted(DETECTIONS), batch, SETTINGS)
    assert float(found.mask_probs[:, 12:].max()) == 0
    assert float(found.mask_probs[:, :, 10:].max()) == 0
    assert float(found.mask_probs[:, :12, :10].min()) > 0


def test_the_view_is_the_batch_itself_where_no_size_changes():
    batch = make_batch(*BATCH)
    assert teacher_view(batch, short=None, long=1333) is batch
    assert teacher_view(batch, short=64, long=1333) is batch


def test_a_larger_view_is_resized_without_padding_and_padded_again():
    batch = make_batch([[], []], [[], []], sizes=[(48, 40), (64, 64)])
    view = teacher_view(batch, short=80, long=200)
    assert view.sizes == [(96, 80), (80, 80)]
    assert view.weak.shape == (2, 3, 96, 96)
    assert view.valid.sum(dim=(1, 2)).tolist() == [96 * 80, 80 * 80]
    expected = F.interpolate(
        batch.weak[:1, :, :48, :40].float(), (96, 80), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(view.weak[:1, :, :96, :80], expected)
    assert float(view.weak[0, :, :, 80:].abs().max()) == 0


def test_masks_of_a_larger_view_equal_enlarging_cropping_and_resizing():
    batch = make_batch([[]], [[]], sizes=[(48, 40)])
    view = teacher_view(batch, short=70, long=200)
    assert view.sizes == [(84, 70)]
    probs = torch.rand(
        2,
        *(side // 4 for side in view.valid.shape[-2:]),
        generator=torch.Generator().manual_seed(1),
    )
    found = to_training_grid(probs, batch, view, 0)
    enlarged = aligned_bilinear(probs, 4)[None, :, :84, :70]
    small = F.interpolate(enlarged, (48, 40), mode="bilinear", align_corners=False)[0]
    # Interpolating twice blurs a little more than sampling once.
    torch.testing.assert_close(found[:, :12, :10], small[:, 2::4, 2::4], atol=0.03, rtol=0)


def test_boxes_of_a_larger_view_are_scaled_with_it():
    doubled = [
        (image, location, label, p, tuple(2 * side for side in box))
        for image, location, label, p, box in DETECTIONS
    ]
    network = planted(doubled, images=2, size=128)
    first, second = find_candidates(
        network, make_batch(*BATCH), with_changes(SETTINGS, resize_short=128, filter_first=True)
    )
    assert first.box_iou.tolist() == pytest.approx([1, 1, 28 / 32, 20 / 22], abs=1e-4)
    assert len(second.score) == 1
    assert first.mask_probs.shape == (4, 16, 16)
    inside = box_masks(torch.tensor([[8.0, 8, 29, 39]]), 64, 64, stride=4)
    assert torch.equal(first.mask_probs[:1] > 0.5, inside)


def test_decoding_keeps_the_best_of_each_level():
    network = planted(DETECTIONS)
    batch = make_batch([[]], [[]])
    (found,) = decode_detections(network(batch.weak, batch.valid), score_thr=0.1, pre_topk=2)
    assert found.handle[found.scores > 0].tolist() == [3, 9, 66]  # in the order of locations
    assert found.labels[found.scores > 0].tolist() == [1, 2, 1]
    assert float(found.boxes[found.scores == 0].abs().max()) == 0


@pytest.mark.parametrize("pre_topk", [1, 7, 30])
def test_equal_confidence_at_the_cut_of_a_level_goes_in_the_order_of_locations(pre_topk):
    network = planted([(0, location, 1, 0.5, (8, 8, 30, 40)) for location in range(60, 8, -1)])
    batch = make_batch([[]], [[]])
    (found,) = decode_detections(
        network(batch.weak, batch.valid), score_thr=0.1, pre_topk=pre_topk
    )
    assert found.handle[found.scores > 0].tolist() == list(range(9, 9 + pre_topk))


@pytest.mark.parametrize(("filter_first", "scores"), [(False, [0.6, 0.8]), (True, [0.9, 0.8])])
def test_equal_boxes_at_the_cut_go_by_location_in_the_reference_and_by_score_once_repaired(
    filter_first, scores
):
    same = [
        (0, place, 1, probability, (8, 8, 30, 40))
        for place, probability in ((3, 0.36), (5, 0.64), (9, 0.81))
    ]
    (found,) = find_candidates(
        planted(same),
        make_batch([[[8, 8, 30, 40]]], [[1]]),
        with_changes(SETTINGS, k_top=2, filter_first=filter_first),
    )
    assert found.score.tolist() == pytest.approx(scores, abs=1e-4)


def test_nms_labelling_gives_each_box_one_detection_of_any_class():
    network = planted(DETECTIONS, images=2)
    settings = with_changes(SETTINGS, with_nms=True, nms_overwrite=False)
    first, second = find_candidates(network, make_batch(*BATCH), settings)
    assert first.box_index.tolist() == [0, 1]
    assert first.score.tolist() == pytest.approx([0.9**0.5, 0.8], abs=1e-4)
    assert second.box_index.tolist() == [0]
    reference, _ = find_candidates(
        network, make_batch(*BATCH), with_changes(settings, nms_overwrite=True)
    )
    # the best detection has lost its box
    assert reference.score.tolist() == pytest.approx([0.9, 0.8], abs=1e-4)
    (limited, _) = find_candidates(network, make_batch(*BATCH), with_changes(settings, topk=1))
    assert limited.box_index.tolist() == [0]


def test_nms_labelling_compares_the_part_of_a_box_that_is_on_the_image():
    beyond = [
        (0, 0, 1, 0.9, (-70, -70, -2, -2)),
        (0, 3, 1, 0.81, (-40, 8, 30, 40)),
        (0, 20, 1, 0.49, (0, 8, 26, 40)),
    ]
    batch = make_batch([[[0, 8, 30, 40]]], [[1]], sizes=[(48, 40)])
    settings = with_changes(SETTINGS, with_nms=True, nms_overwrite=True)
    (found,) = find_candidates(planted(beyond), batch, settings)
    # IoU 30 / 70 with the whole box; a detection outside the image is none, so this one is the first, and a worse one
    # takes its box, as in the reference.
    assert found.box_iou.tolist() == pytest.approx([26 / 30], abs=1e-4)
    (found,) = find_candidates(planted(beyond), batch, with_changes(settings, nms_overwrite=False))
    assert found.box_iou.tolist() == pytest.approx([1], abs=1e-4)
    assert found.score.tolist() == pytest.approx([0.9], abs=1e-4)


@pytest.mark.parametrize("with_nms", [True, False])
def test_masks_for_fusion_on_every_pixel_are_those_of_the_network(with_nms):
    doubled = [
        (image, location, label, p, tuple(2 * side for side in box))
        for image, location, label, p, box in DETECTIONS
    ]
    network = planted(doubled, images=2, size=128)
    settings = with_changes(SETTINGS, resize_short=128, full_resolution=True, with_nms=with_nms)
    batch = make_batch(*BATCH)
    first, _ = find_candidates(network, batch, settings)
    assert first.frame == MaskFrame(view=(128, 128), image=(64, 64), padded=(64, 64))
    assert first.mask_probs.shape[1:] == (32, 32)
    coarse, _ = find_candidates(network, batch, with_changes(settings, full_resolution=False))
    assert coarse.frame is None
    assert torch.equal(first.box_index, coarse.box_index)
    assert torch.equal(first.score, coarse.score)


def test_greedy_matching_serves_the_best_first_and_frees_nothing():
    iou = torch.tensor([[0.6, 0.7], [0.2, 0.9], [0.8, 0.1], [0.9, 0.0]])
    rank = torch.arange(4)
    detection, box = match_greedily(iou, rank, iou_thr=0.5, overwrite=False)
    assert box.tolist() == [0, 1]
    # the first detection is served although its index is 0, and is not displaced
    assert detection.tolist() == [2, 0]
    detection, box = match_greedily(iou, rank, iou_thr=0.85, overwrite=False)
    assert (detection.tolist(), box.tolist()) == ([3, 1], [0, 1])
    assert match_greedily(iou[:, :0], rank, iou_thr=0.5, overwrite=True)[0].tolist() == []


def test_in_the_reference_a_worse_detection_takes_the_box_of_the_first_one_but_of_no_other():
    iou, rank = (
        torch.tensor([[0.9, 0.2], [0.7, 0.6], [0.6, 0.8], [0.55, 0.51]]),
        torch.tensor([0, 2, 1, 3]),
    )
    kept, box = match_greedily(iou, rank, iou_thr=0.5, overwrite=False)
    assert (kept.tolist(), box.tolist()) == ([0, 2], [0, 1])
    displaced, box = match_greedily(iou, rank, iou_thr=0.5, overwrite=True)
    assert (displaced.tolist(), box.tolist()) == ([1, 2], [0, 1])
    # the first one chooses second
    late, _ = match_greedily(iou, torch.tensor([1, 0, 2, 3]), iou_thr=0.5, overwrite=True)
    assert late.tolist() == [1, 2]


def pseudo_masks(trainer, batch, around_boxes):
    found = find_candidates(trainer.teacher, batch, trainer.config, around_boxes=around_boxes)
    assert all((each.around is not None) == around_boxes for each in found)
    return fuse_candidates(trainer.config, found, batch)


@pytest.mark.parametrize("boxes", [3, 40])
def test_masks_around_boxes_make_the_same_pseudo_masks_as_whole_ones(tmp_path, boxes):
    trainer, batch = build(Scenario(size=128, boxes=boxes, small=True), "full", tmp_path)
    trainer.teacher.eval()
    whole, around = (pseudo_masks(trainer, batch, choice) for choice in (False, True))
    near = MASK_STRIDE - 1  # bilinear values at the pixels of a box read cells so far away
    for expected, found, own in zip(whole, around, batch.boxes, strict=True):
        wide = own + torch.tensor([-near, -near, near, near])
        read = box_masks(wide, 128, 128, stride=MASK_STRIDE)
        assert torch.equal(found.mask, expected.mask)
        assert found.mask.any()
        torch.testing.assert_close(found.soft * read, expected.soft * read, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.quality, expected.quality, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.score, expected.score)
        assert torch.equal(found.num_candidates, expected.num_candidates)


def test_losses_of_training_are_the_same_with_masks_around_boxes(tmp_path, monkeypatch):
    curves = []
    for _ in range(2):
        trainer, batch = build(
            Scenario(size=64, boxes=6, small=True), "full", tmp_path, solver={"lr": 1e-3}
        )
        curves.append([float(optimise(trainer, batch, STEP)["train/loss"]) for _ in range(3)])
        monkeypatch.setattr(candidates, "needs_windows_only", lambda *settings: False)
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)
    assert max(curves[0]) - min(curves[0]) > 1e-2


def test_masks_around_a_box_do_not_depend_on_the_other_boxes(tmp_path):
    trainer, batch = build(Scenario(size=128, boxes=12, small=True), "full", tmp_path)
    trainer.teacher.eval()
    together = pseudo_masks(trainer, batch, around_boxes=True)
    alone = pseudo_masks(
        trainer,
        replace(batch, boxes=[b[4:5] for b in batch.boxes], labels=[x[4:5] for x in batch.labels]),
        True,
    )
    for all_boxes, one in zip(together, alone, strict=True):
        torch.testing.assert_close(one.soft[0], all_boxes.soft[4], atol=1e-5, rtol=0)
        assert one.soft[0].any()


def test_an_image_without_boxes_or_candidates_has_no_masks_around_boxes(tmp_path):
    trainer, batch = build(
        Scenario(size=64, boxes=2, small=True), "full", tmp_path, qam={"score_thr": 0.99}
    )
    nothing = replace(
        batch,
        boxes=[batch.boxes[0], batch.boxes[1][:0]],
        labels=[batch.labels[0], batch.labels[1][:0]],
    )
    first, second = pseudo_masks(trainer, nothing, around_boxes=True)
    assert (first.quality.tolist(), second.quality.tolist()) == ([0, 0], [])
    assert not first.mask.any()


def test_whole_masks_are_computed_where_the_quality_looks_at_them(tmp_path):
    trainer, batch = build(
        Scenario(size=64, boxes=2, small=True), "full", tmp_path, qam={"color_weight": 0.0}
    )
    (first, _) = find_candidates(trainer.teacher, batch, trainer.config, around_boxes=True)
    assert first.around is None
    assert first.mask_probs.shape[1:] == (16, 16)

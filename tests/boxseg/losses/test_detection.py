"""Detection losses, with numbers worked by hand for `docs/method.md#detection-losses`."""

import pytest
import torch
import torch.nn.functional as F

from boxseg.config.method import FcosConfig
from boxseg.errors import ShapeError
from boxseg.losses.detection import detection_losses, focal_loss, giou, varifocal_loss
from boxseg.structures import LocationTargets, Predictions


def make_predictions(images=2, locations=6, classes=3, seed=0):
    random = torch.Generator().manual_seed(seed)
    return Predictions(
        class_logits=torch.randn(images, locations, classes, generator=random).requires_grad_(),
        distances=(torch.rand(images, locations, 4, generator=random) * 3).requires_grad_(),
        centerness_logits=torch.randn(images, locations, generator=random).requires_grad_(),
        controller_maps=torch.zeros(images, locations, 2),
        patches=torch.zeros(locations, 9, dtype=torch.int64),
        mask_features=torch.zeros(images, 2, 4, 4),
        locations=torch.zeros(locations, 2),
        strides=torch.full((locations,), 8.0),
        levels=torch.zeros(locations, dtype=torch.int64),
    )


def test_giou_of_the_worked_example():
    iou, generalised = giou(torch.tensor([2.0, 3, 4, 5]), torch.tensor([3.0, 3, 3, 3]))
    assert float(iou) == pytest.approx(0.563636, abs=1e-5)
    assert float(generalised) == pytest.approx(0.527922, abs=1e-5)


def test_without_smoothing_disjoint_boxes_have_no_overlap():
    predicted, target = torch.tensor([0.0, 0, 0, 0]), torch.tensor([0.5, 0.5, 0.5, 0.5])
    assert float(giou(predicted, target, eps=1.0)[0]) == pytest.approx(0.5)
    assert float(giou(predicted, target, eps=1e-6)[0]) < 1e-5


def test_giou_of_boxes_without_area_is_finite():
    predicted = torch.zeros(1, 4, requires_grad=True)
    iou, generalised = giou(predicted, torch.zeros(1, 4), eps=0.0)
    (iou + generalised).sum().backward()
    assert bool(torch.isfinite(generalised).all())
    assert bool(torch.isfinite(predicted.grad).all())


def test_varifocal_elements_of_the_worked_example():
    loss = varifocal_loss(torch.tensor([0.5, -1.0]), torch.tensor([0.8, 0.0]))
    torch.testing.assert_close(loss, torch.tensor([0.459262, 0.005665]), atol=1e-5, rtol=0)


def test_focal_loss_equals_its_formula():
    logits, targets = torch.tensor([0.3, -0.7]), torch.tensor([1.0, 0.0])
    p = logits.sigmoid()
    expected = torch.stack(
        [-0.25 * (1 - p[0]) ** 2 * p[0].log(), -0.75 * p[1] ** 2 * (1 - p[1]).log()]
    )
    torch.testing.assert_close(focal_loss(logits, targets), expected)


@pytest.mark.parametrize("use_vfl", [True, False])
def test_losses_equal_sums_over_the_positive_locations(use_vfl):
    predictions = make_predictions()
    matched = torch.full((2, 6), -1)
    matched[0, 1], matched[1, 4] = 0, 1
    labels = torch.zeros(2, 6, dtype=torch.int64)
    labels[0, 1], labels[1, 4] = 2, 1
    distances, centerness = torch.rand(2, 6, 4) + 1, torch.rand(2, 6)
    losses = detection_losses(
        predictions,
        LocationTargets(matched, labels, distances, centerness),
        num_positive=torch.tensor(2.0),
        centerness_sum=torch.tensor(0.7),
        settings=FcosConfig(use_vfl=use_vfl, iou_eps=1.0),
    )
    loc = ctr = 0.0
    targets = torch.zeros(2, 6, 3)
    for image, location in ((0, 1), (1, 4)):
        iou, generalised = giou(predictions.distances[image, location], distances[image, location])
        loc += centerness[image, location] * (1 - generalised) / 0.7
        ctr += (
            F.binary_cross_entropy_with_logits(
                predictions.centerness_logits[image, location], centerness[image, location]
            )
            / 2
        )
        targets[image, location, labels[image, location]] = iou.detach() if use_vfl else 1.0
    cls = (varifocal_loss if use_vfl else focal_loss)(predictions.class_logits, targets).sum() / 2
    for name, expected in (("loc", loc), ("ctr", ctr), ("cls", cls)):
        torch.testing.assert_close(losses[name], expected)


def test_background_alone_still_reaches_every_output():
    predictions = make_predictions()
    losses = detection_losses(
        predictions,
        LocationTargets(
            torch.full((2, 6), -1), torch.full((2, 6), -1), torch.zeros(2, 6, 4), torch.zeros(2, 6)
        ),
        num_positive=torch.tensor(1.0),
        centerness_sum=torch.tensor(1e-6),
        settings=FcosConfig(),
    )
    assert [losses[name].item() for name in ("loc", "ctr")] == [0, 0]
    sum(losses.values()).backward()
    for output in (predictions.class_logits, predictions.distances, predictions.centerness_logits):
        assert bool(torch.isfinite(output.grad).all())
    assert float(predictions.class_logits.grad.abs().sum()) > 0


def test_targets_must_fit():
    with pytest.raises(ShapeError, match="distance_targets"):
        detection_losses(
            make_predictions(),
            LocationTargets(
                torch.full((2, 6), -1),
                torch.full((2, 6), -1),
                torch.zeros(2, 5, 4),
                torch.zeros(2, 6),
            ),
            num_positive=torch.tensor(1.0),
            centerness_sum=torch.tensor(1.0),
            settings=FcosConfig(),
        )

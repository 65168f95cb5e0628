"""The whole network on small images."""

import pytest
import torch
from torch import nn

from boxseg.build import build_network
from boxseg.config.method import BoxSegConfig, CondConfig, FcosConfig, ModelConfig
from boxseg.errors import ShapeError
from boxseg.losses.detection import detection_losses
from boxseg.model.backbone import build_backbone
from boxseg.model.condinst import CondInst


def build(norm="auto", frozen_stages=None) -> CondInst:
    torch.manual_seed(0)
    model = ModelConfig(
        backbone="resnet18",
        weights="none",
        frozen_stages=frozen_stages,
        norm=norm,
        channels=16,
        tower_convs=1,
    )
    return CondInst(
        num_classes=3,
        backbone=build_backbone(model),
        detection_loss=detection_losses,
        model=model,
        cond=CondConfig(branch_channels=16, branch_convs=1),
        fcos=FcosConfig(),
    )


@pytest.fixture
def images():
    return torch.randint(
        0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@pytest.fixture
def valid():
    return torch.ones(2, 64, 96, dtype=torch.bool)


def test_shapes_agree_with_the_structure(images, valid):
    network = build()
    predictions = network(images, valid)
    num_locations = 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1
    assert predictions.class_logits.shape == (2, num_locations, 3)
    assert predictions.distances.shape == (2, num_locations, 4)
    assert predictions.centerness_logits.shape == (2, num_locations)
    assert predictions.patches.shape == (num_locations, 9)
    assert predictions.mask_features.shape == (2, 16, 8, 12)
    assert predictions.locations.shape == (num_locations, 2)
    assert predictions.strides.unique().tolist() == [8, 16, 32, 64, 128]
    assert network.mask_logits(
        predictions, torch.tensor([0, 1]), torch.tensor([5, 128])
    ).shape == (2, 16, 24)
    none = torch.zeros(0, dtype=torch.int64)
    assert network.mask_logits(predictions, none, none).shape == (0, 16, 24)


def test_gradient_reaches_every_parameter_that_learns(images, valid):
    network = build()
    predictions = network(images, valid)
    masks = network.mask_logits(predictions, torch.tensor([0, 1]), torch.tensor([5, 100]))
    outputs = [
        masks,
        predictions.class_logits,
        predictions.distances,
        predictions.centerness_logits,
    ]
    torch.stack([output.square().sum() for output in outputs]).sum().backward()
    without = [
        n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert without == []


def test_only_the_mask_branch_has_learning_batch_norms_when_the_backbone_is_frozen():
    network = build(norm="frozen").train()
    learning = {
        name.split(".")[0]
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d) and (module.training or module.weight.requires_grad)
    }
    assert learning == {"mask_branch"}


def test_pixels_of_the_padding_do_not_matter(images, valid):
    network = build().eval()
    valid[:, 50:], valid[:, :, 70:] = False, False
    noise = torch.where(valid[:, None], images, 255 - images)
    before, after = network(images, valid), network(noise, valid)
    torch.testing.assert_close(before.class_logits, after.class_logits)
    torch.testing.assert_close(before.mask_features, after.mask_features)


def test_padding_equals_the_mean_colour(images, valid):
    network = build().eval()
    valid[:, 50:] = False
    filled = torch.where(valid[:, None], images.float(), network.pixel_mean)
    padded, drawn = network(images, valid), network(filled, torch.ones_like(valid))
    torch.testing.assert_close(padded.class_logits, drawn.class_logits, atol=1e-4, rtol=1e-4)


def test_an_image_alone_equals_the_same_image_in_a_batch(images, valid):
    network = build().eval()
    together, alone = network(images, valid), network(images[1:], valid[1:])
    torch.testing.assert_close(together.class_logits[1:], alone.class_logits, atol=1e-4, rtol=1e-4)
    index = torch.tensor([40])
    torch.testing.assert_close(
        network.mask_logits(together, torch.tensor([1]), index),
        network.mask_logits(alone, torch.tensor([0]), index),
        atol=1e-4,
        rtol=1e-4,
    )


def test_the_forward_pass_leaves_its_inputs_unchanged(images, valid):
    kept = images.clone()
    build()(images, valid)
    assert torch.equal(images, kept)


def test_sizes_that_are_no_multiple_of_32_are_refused():
    with pytest.raises(ShapeError, match="multiples of 32"):
        build()(torch.zeros(1, 3, 64, 90), torch.ones(1, 64, 90, dtype=torch.bool))


def test_predictions_are_float32_and_close_under_autocast(images, valid):
    network = build().eval()
    full = network(images, valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(images, valid)
        masks = network.mask_logits(half, torch.tensor([0]), torch.tensor([40]))
    assert {
        tensor.dtype
        for tensor in (
            half.class_logits,
            half.distances,
            half.controller_maps,
            half.mask_features,
            masks,
        )
    } == {torch.float32}
    torch.testing.assert_close(half.class_logits, full.class_logits, atol=0.05, rtol=0.05)
    assert half.locations[-1].tolist() == full.locations[-1].tolist()


BOXES = [torch.tensor([[4.0, 4, 40, 60], [50, 10, 90, 50]]), torch.zeros(0, 4)]
LABELS = [torch.tensor([1, 2]), torch.zeros(0, dtype=torch.int64)]


def detection_terms(network, images, valid, boxes=BOXES, labels=LABELS, mean=lambda sums: sums):
    return network.detection_losses(network(images, valid), boxes, labels, mean_over_ranks=mean)


def test_proposals_are_positive_locations_of_the_boxes(images, valid):
    terms, proposals = detection_terms(build(), images, valid)
    assert set(terms) == {"cls", "loc", "ctr"}
    assert proposals.image_index.unique().tolist() == [0]
    assert proposals.box_index.unique().tolist() == [0, 1]
    points = build()(images, valid).locations[proposals.handle]
    assert bool((points > BOXES[0][proposals.box_index, :2]).all())
    assert bool((points < BOXES[0][proposals.box_index, 2:]).all())


def test_a_batch_without_boxes_keeps_names_and_gradient_paths(images, valid):
    network = build()
    terms, proposals = detection_terms(network, images, valid, BOXES[1:] * 2, LABELS[1:] * 2)
    assert {name for name, value in terms.items() if float(value.detach()) != 0} == {"cls"}
    assert len(proposals.handle) == 0
    torch.stack(list(terms.values())).sum().backward()
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in network.parameters())


def test_normalisers_are_means_over_processes(images, valid):
    base, _ = detection_terms(build(), images, valid)
    halved, _ = detection_terms(build(), images, valid, mean=lambda sums: 2 * sums)
    for name in base:
        torch.testing.assert_close(halved[name], base[name] / 2)


@pytest.mark.parametrize(
    ("change", "terms"),
    [
        ({"use_vfl": False}, {"cls"}),
        ({"alpha": 0.6}, {"cls"}),
        ({"gamma": 1.0}, {"cls"}),
        ({"iou_eps": 1.0}, {"cls", "loc"}),
        ({"radius": 0.8}, {"cls", "loc", "ctr"}),
        ({"sizes": (16, 32, 64, 128)}, {"cls", "loc", "ctr"}),
    ],
)
def test_every_setting_of_the_detector_changes_its_terms_only(images, valid, change, terms):
    def values(fcos):
        model = {"backbone": "resnet18", "weights": "none", "channels": 16, "tower_convs": 1}
        torch.manual_seed(0)
        network = build_network(
            BoxSegConfig.model_validate({"model": model, "fcos": fcos}), num_classes=3
        )
        with torch.no_grad():
            return detection_terms(network, images, valid)[0]

    base, other = values({}), values(change)
    assert {
        name for name in base if not torch.isclose(base[name], other[name], rtol=1e-6, atol=0)
    } == terms

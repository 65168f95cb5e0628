"""Mask branch and dynamic mask head."""

import pytest
import torch
import torch.nn.functional as F

from boxseg.build import build_network
from boxseg.config.method import BoxSegConfig, CondConfig
from boxseg.errors import ShapeError
from boxseg.model.mask_head import DynamicMaskHead, MaskBranch, with_coordinates
from boxseg.ops.masks import aligned_bilinear


def instances(head, count, num_images=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "params": torch.randn(count, head.num_params, generator=generator),
        "image_index": torch.randint(num_images, (count,), generator=generator),
        "locations": torch.rand(count, 2, generator=generator) * 64,
        "levels": torch.randint(5, (count,), generator=generator),
    }


def one_mask(features, params, location, level):
    """The default head for one instance, with split points and convolutions written out."""
    height, width = features.shape[-2:]
    reach = (64, 128, 256, 512, 1024)[level]
    x, y = torch.arange(width) * 8 + 4, torch.arange(height) * 8 + 4
    rel_x = ((location[0] - x) / reach).expand(height, width)
    rel_y = ((location[1] - y) / reach)[:, None].expand(height, width)
    hidden = torch.cat([torch.stack([rel_x, rel_y]), features])[None]
    hidden = F.relu(F.conv2d(hidden, params[:144].view(8, 18, 1, 1), params[216:224]))
    hidden = F.relu(F.conv2d(hidden, params[144:208].view(8, 8, 1, 1), params[224:232]))
    hidden = F.conv2d(hidden, params[208:216].view(1, 8, 1, 1), params[232:233])
    return aligned_bilinear(hidden, 2)[0, 0]


def test_the_default_head_has_233_parameters():
    assert DynamicMaskHead().num_params == 233


def test_masks_equal_convolutions_of_one_instance_at_a_time():
    head, features = DynamicMaskHead(), torch.randn(2, 16, 6, 8)
    some = instances(head, 7)
    logits = head(with_coordinates(features), **some)
    assert logits.shape == (7, 12, 16)
    for k in range(7):
        expected = one_mask(
            features[some["image_index"][k]],
            some["params"][k],
            some["locations"][k],
            int(some["levels"][k]),
        )
        torch.testing.assert_close(logits[k], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("axis", "expected"), [(0, 0.125), (1, 0.375)])
def test_relative_coordinate_is_instance_minus_cell(axis, expected):
    head = DynamicMaskHead(features=1, channels=1, layers=2)
    params = torch.zeros(1, head.num_params)
    params[0, axis] = 1.0  # first layer reads one coordinate
    params[0, 3] = 1.0  # second layer hands it on
    logits = head(
        with_coordinates(torch.zeros(1, 1, 4, 4)),
        params=params,
        image_index=torch.tensor([0]),
        locations=torch.tensor([[28.0, 28.0]]),
        levels=torch.tensor([0]),
    )
    assert logits[0, 2 * 0 + 1, 2 * 2 + 1] == expected  # cell (20, 4) is row 0, column 2


@pytest.mark.parametrize("level", range(5))
def test_the_unit_of_relative_coordinates_is_the_size_limit_of_the_level(level):
    config = BoxSegConfig.model_validate(
        {
            "model": {"backbone": "resnet18", "weights": "none", "channels": 32},
            "fcos": {"sizes": [16, 40, 100, 300]},
        }
    )
    head = build_network(config, num_classes=2).mask_head
    unit = (16, 40, 100, 300, 600)[level]  # the coarsest level has no limit: twice the last one
    params = torch.zeros(1, head.num_params)
    # the x coordinate goes through all three layers
    params[0, 0] = params[0, 144] = params[0, 208] = 1.0
    logits = head(
        with_coordinates(torch.zeros(1, 16, 4, 4)),
        params=params,
        image_index=torch.tensor([0]),
        locations=torch.tensor([[28.0, 28.0]]),
        levels=torch.tensor([level]),
    )
    torch.testing.assert_close(logits[0, 1, 1], torch.tensor((28 - 4) / unit))  # cell (4, 4)


def test_depth_and_width_of_the_head_can_change():
    head = DynamicMaskHead(features=4, channels=6, layers=4)
    assert head.num_params == 6 * 6 + 6 * 6 + 6 * 6 + 6 + 6 + 6 + 6 + 1
    weights, biases = head.split(torch.arange(head.num_params).float()[None])
    assert [tuple(weight.shape[1:]) for weight in weights] == [(6, 6), (6, 6), (6, 6), (1, 6)]
    assert [tuple(bias.shape[1:]) for bias in biases] == [(6,), (6,), (6,), (1,)]
    assert weights[0][0, 1, 0] == 6
    assert biases[-1][0, 0] == head.num_params - 1
    assert head(with_coordinates(torch.randn(2, 4, 6, 8)), **instances(head, 3)).shape == (
        3,
        12,
        16,
    )


def test_no_instances_give_no_masks_but_a_gradient_path():
    head, features = DynamicMaskHead(), torch.randn(2, 16, 6, 8, requires_grad=True)
    logits = head(with_coordinates(features), **instances(head, 0))
    assert logits.shape == (0, 12, 16)
    logits.sum().backward()
    assert features.grad is not None


def test_masks_are_float32_under_autocast():
    head, features = DynamicMaskHead(), torch.randn(2, 16, 6, 8)
    some = instances(head, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(with_coordinates(features), **some)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, head(with_coordinates(features), **some))


def test_parameters_of_another_head_are_refused():
    head = DynamicMaskHead()
    with pytest.raises(ShapeError, match=r"\(n, 233\)"):
        head(
            with_coordinates(torch.zeros(2, 16, 6, 8)),
            **(instances(head, 3) | {"params": torch.zeros(3, 100)}),
        )


def test_mask_branch_works_at_the_finest_level():
    branch = MaskBranch(8, CondConfig(branch_channels=12, branch_convs=2, features=5))
    maps = [torch.randn(2, 8, 12, 16), torch.randn(2, 8, 6, 8), torch.randn(2, 8, 3, 4)]
    assert branch(maps).shape == (2, 5, 12, 16)
    without_coarse = branch([maps[0], maps[1], torch.zeros_like(maps[2])])
    assert not torch.allclose(branch(maps), without_coarse)

"""Detection head and locations."""

import pytest
import torch

from boxseg.config.method import FcosConfig, ModelConfig
from boxseg.model.fcos import FcosHead, grid_locations, make_locations, make_patches, num_groups


def make_head(*, num_classes=3, fcos=None, **model) -> FcosHead:
    settings = ModelConfig(**({"channels": 64, "tower_convs": 2} | model))
    return FcosHead(settings, fcos or FcosConfig(), num_classes=num_classes, num_params=5)


def test_locations_of_a_stride_8_map_are_the_worked_ones():
    assert grid_locations(2, 3, 8).tolist() == [
        [4, 4],
        [12, 4],
        [20, 4],
        [4, 12],
        [12, 12],
        [20, 12],
    ]


def test_locations_of_all_levels_come_finest_first():
    locations, strides, levels = make_locations(
        [torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 1)], (8, 16)
    )
    assert locations.tolist() == [[4, 4], [12, 4], [4, 12], [12, 12], [8, 8]]
    assert strides.tolist() == [8, 8, 8, 8, 16]
    assert levels.tolist() == [0, 0, 0, 0, 1]


def test_outputs_are_flat_in_the_order_of_the_locations():
    head = make_head(channels=8, tower_convs=0)
    maps = [torch.randn(2, 8, 4, 6), torch.randn(2, 8, 2, 3)]
    class_logits, distances, centerness, padded = head(maps)
    assert (class_logits.shape, distances.shape) == ((2, 30, 3), (2, 30, 4))
    assert (centerness.shape, padded.shape) == ((2, 30), (2, 6 * 8 + 4 * 5, 8))
    torch.testing.assert_close(class_logits[1, 1 * 6 + 4], head.class_logits(maps[0])[1, :, 1, 4])


def test_the_controller_at_chosen_locations_equals_its_convolution():
    head = make_head(channels=8, tower_convs=1)
    maps = [torch.randn(2, 8, 4, 6), torch.randn(2, 8, 2, 3)]
    everywhere = torch.cat(
        [head.controller(head.box_tower(each)).flatten(2).transpose(1, 2) for each in maps], dim=1
    )
    image_index, location = torch.tensor([1, 0, 1, 0]), torch.tensor([0, 10, 23, 24 + 1 * 3 + 2])
    found = head.controller_at(head(maps)[3], image_index, make_patches(maps)[location])
    torch.testing.assert_close(found, everywhere[image_index, location])
    assert head.controller_at(
        head(maps)[3], image_index[:0], make_patches(maps)[location[:0]]
    ).shape == (0, 5)


def test_each_level_scales_its_own_distances_which_are_never_negative():
    head = make_head(channels=8, tower_convs=1)
    same = torch.randn(1, 8, 4, 4)
    with torch.no_grad():
        head.scales[1] = 3.0
        distances = head([same, same])[1]
    assert (distances >= 0).all()
    assert (distances > 0).any()
    torch.testing.assert_close(distances[:, 16:], distances[:, :16] * 3)


def test_the_untrained_head_gives_every_class_one_percent():
    head = make_head(channels=16, num_classes=4)
    probs = head([torch.zeros(1, 16, 4, 4)])[0].sigmoid()
    torch.testing.assert_close(probs, torch.full_like(probs, 0.01), atol=2e-3, rtol=0)


@pytest.mark.parametrize(("norm_groups", "expected"), [(32, 32), (None, 16)])
def test_group_norms_have_the_groups_that_are_asked_for(norm_groups, expected):
    head = make_head(norm_groups=norm_groups)
    norms = [module for module in head.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert [norm.num_groups for norm in norms] == [expected] * 4


@pytest.mark.parametrize(
    ("channels", "groups"), [(256, 32), (128, 32), (96, 24), (64, 16), (40, 10), (8, 2)]
)
def test_groups_have_at_least_four_channels(channels, groups):
    assert num_groups(channels) == groups


def test_the_untrained_head_gives_the_distance_that_it_starts_at():
    torch.manual_seed(0)
    maps = [torch.randn(1, 64, 8, 8)]
    means = []
    for start in (0.0, 4.0):
        head = make_head(fcos=FcosConfig(start_distance=start))
        means.append(head(maps)[1].mean().item())
    assert means[0] < 0.5
    assert means[1] == pytest.approx(4.0, abs=0.1)


def test_wider_towers_give_the_same_outputs_and_turn_less_in_an_update_of_adamw():
    maps = [torch.randn(1, 64, 8, 8, generator=torch.Generator().manual_seed(0))]
    outputs, turns = [], []
    for std in (0.01, 0.06):
        torch.manual_seed(1)
        head = make_head(fcos=FcosConfig(tower_std=std))
        outputs.append(head(maps)[1])
        weights = head.box_tower[0].weight
        before = weights.detach().clone()
        outputs[-1].sum().backward()
        torch.optim.AdamW(head.parameters(), lr=0.001, weight_decay=0.0).step()
        turns.append(((weights - before).norm() / before.norm()).item())
    torch.testing.assert_close(outputs[1], outputs[0], atol=2e-2, rtol=0.05)
    # An update moves each weight by 0.001: a tenth of 0.01, a sixtieth of 0.06.
    assert turns == pytest.approx([0.1, 1 / 60], rel=0.05)

from typing import get_args

import pytest
import torch
from torch import Generator
from torchvision.transforms.v2 import functional as F

from boxseg.config.method import DataConfig
from boxseg.data import colors
from boxseg.data.colors import COLOR_CHANGES, Recoloring, add_strong_view, draw_recoloring, recolor
from boxseg.structures import Batch


def noise(height=40, width=50, seed=0):
    image = torch.randint(
        0, 256, (3, height, width), dtype=torch.uint8, generator=Generator().manual_seed(seed)
    )
    image[:, :3] = 77  # grey has no hue
    image[:, 3] = torch.tensor([255, 0, 255], dtype=torch.uint8)[:, None]
    return image


def drawn(strong, seed):
    return draw_recoloring(COLOR_CHANGES[strong], Generator().manual_seed(seed))


def changes_of_torchvision(image, recoloring):
    """torchvision's changes, one after the other, on the whole image."""
    functions = {
        "brightness": F.adjust_brightness_image,
        "contrast": F.adjust_contrast_image,
        "saturation": F.adjust_saturation_image,
        "hue": F.adjust_hue_image,
    }
    for name, amount in recoloring.changes:
        image = functions[name](image, amount)
    if recoloring.blur_sigma is not None:
        image = F.gaussian_blur_image(image, [3, 3], [recoloring.blur_sigma] * 2)
    return image


@pytest.mark.parametrize("at_once", [97, 2**15])
def test_changes_equal_those_of_torchvision_wherever_a_block_ends(monkeypatch, at_once):
    monkeypatch.setattr(colors, "PIXELS_AT_ONCE", at_once)
    image = noise()
    for seed in range(40):
        recoloring = drawn("strongv2", seed)
        without_hue = Recoloring(
            tuple(each for each in recoloring.changes if each[0] != "hue"), recoloring.blur_sigma
        )
        assert torch.equal(recolor(image, without_hue), changes_of_torchvision(image, without_hue))


@pytest.mark.parametrize("share", [-0.1, 0.0, 0.03, 0.1])
def test_hue_shifts_as_torchvision_does(share):
    only_hue = Recoloring((("hue", share),), None)
    ours, theirs = (
        recolor(noise(), only_hue).int(),
        changes_of_torchvision(noise(), only_hue).int(),
    )
    assert int((ours - theirs).abs().max()) <= 1
    assert float((ours != theirs).float().mean()) < 0.01


@pytest.mark.parametrize(
    ("color", "sixths", "expected"),
    [
        ((200, 0, 0), 0.5, (200, 100, 0)),  # red -> orange
        ((200, 0, 0), -0.5, (200, 0, 100)),  # across the end of the circle
        ((0, 0, 200), 0.5, (100, 0, 200)),
        ((200, 0, 200), 0.6, (200, 0, 80)),  # magenta, where two channels are the largest
        ((0, 200, 200), -0.5, (0, 200, 100)),
        ((90, 90, 90), 0.6, (90, 90, 90)),
    ],
)
def test_hue_of_plain_colours(color, sixths, expected):
    pixel = torch.tensor(color, dtype=torch.uint8)[:, None, None]
    shifted = recolor(pixel, Recoloring((("hue", sixths / 6),), None)).flatten().int()
    assert (shifted - torch.tensor(expected)).abs().max() <= 1  # values are rounded down


def test_changes_are_carried_out_in_the_order_drawn():
    image = noise()
    there, back = (
        Recoloring((("brightness", 1.4), ("contrast", 0.6)), None),
        Recoloring((("contrast", 0.6),), None),
    )
    both = recolor(image, Recoloring((("contrast", 0.6), ("brightness", 1.4)), None))
    assert torch.equal(
        both, recolor(recolor(image, back), Recoloring((("brightness", 1.4),), None))
    )
    assert not torch.equal(both, recolor(image, there))


@pytest.mark.parametrize(
    ("strong", "share"), [("weak", 0.2), ("strong", 0.8 + 0.2 * 0.2), ("strongv2", 0.92)]
)
def test_colours_change_as_often_as_the_settings_say(strong, share):
    changed = sum(drawn(strong, seed) != Recoloring((), None) for seed in range(300)) / 300
    assert abs(changed - share) < 0.08


def test_a_fifth_of_the_strong_views_is_grey():
    views = [recolor(noise(), drawn("strong", seed)) for seed in range(300)]
    assert (
        abs(sum(torch.equal(v[0], v[1]) and torch.equal(v[1], v[2]) for v in views) / 300 - 0.2)
        < 0.07
    )


def test_brightness_stays_within_its_limits():
    flat = torch.full((3, 8, 8), 100, dtype=torch.uint8)  # grey and flat: only brightness shows
    values = [recolor(flat, drawn("strong", seed))[0, 0, 0].item() for seed in range(300)]
    assert 58 <= min(values) < 70
    assert 130 < max(values) <= 142


def test_the_view_that_a_seed_gives_stays():
    sums = [
        recolor(noise(), drawn("strong", seed)).flatten(1).sum(dim=1).tolist() for seed in range(4)
    ]
    expected = [
        [173997, 165021, 178603],
        [291039, 279855, 298344],
        [245048, 230277, 253835],
        [147491, 147491, 147491],
    ]
    # a processor may round a few values differently
    torch.testing.assert_close(sums, expected, atol=20, rtol=0)


def test_names_of_the_strong_view_are_those_of_the_settings():
    assert set(COLOR_CHANGES) == set(get_args(DataConfig.model_fields["strong"].annotation))


def batch_of(*images):
    weak = torch.zeros(len(images), 3, 64, 64, dtype=torch.uint8)
    for row, image in zip(weak, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    nothing = [torch.zeros(0, 4)] * len(images)
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    valid = torch.zeros(len(images), 64, 64, dtype=torch.bool)
    return Batch(weak, weak, valid, nothing, nothing, sizes, sizes, list(range(len(images))))


def test_padding_neither_changes_nor_counts():
    images = noise(40, 50), noise(64, 31, seed=1), noise(10, 10)
    recolorings = [drawn("strongv2", 3), drawn("strongv2", 5), None]
    before = batch_of(*images)
    batch = add_strong_view(before, recolorings)
    for row, (image, recoloring) in enumerate(zip(images, recolorings, strict=True)):
        alone = image if recoloring is None else recolor(image.contiguous(), recoloring)
        assert torch.equal(batch.strong[row], batch_of(alone).weak[0])
    assert torch.equal(batch.weak, batch_of(*images).weak)
    assert not torch.equal(batch.strong, batch.weak)


def test_without_changes_both_views_are_one_tensor():
    batch = add_strong_view(batch_of(noise(), noise()), [None, None])
    assert batch.strong is batch.weak

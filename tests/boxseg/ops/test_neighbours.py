"""Neighbour pairs and colours, with numbers worked by hand for `docs/method.md#pairwise-colour-affinity`."""

import pytest
import torch

from boxseg.errors import ShapeError
from boxseg.ops.neighbours import (
    color_similarity,
    lab_similarity,
    neighbour_offsets,
    neighbour_view,
    remove_bottom_rows,
    rgb_to_lab,
    sample_cells,
)

OFFSETS = neighbour_offsets(3)
COLORS = [
    ((120, 60, 30), (122, 61, 31), 0.67937, 0.711996),
    ((120, 60, 30), (126, 64, 33), 2.07893, 0.353644),
    ((120, 60, 30), (110, 60, 30), 5.21436, 0.073742),
    ((200, 200, 200), (205, 205, 205), 1.80129, 0.406307),
    ((200, 200, 200), (208, 208, 208), 2.87812, 0.237151),
]


def as_map(color):
    return torch.tensor(color, dtype=torch.float32).view(3, 1, 1)


@pytest.mark.parametrize(
    ("color", "lab"),
    [
        ((120, 60, 30), (32.5238, 23.6720, 29.7268)),
        ((110, 60, 30), (30.9761, 19.1779, 27.5825)),
        ((208, 208, 208), (83.4822, -0.0021, 0.0040)),
    ],
)
def test_lab_of_known_colours(color, lab):
    torch.testing.assert_close(
        rgb_to_lab(as_map(color)).flatten(), torch.tensor(lab), atol=6e-5, rtol=0
    )


@pytest.mark.parametrize(("first", "second", "distance", "similarity"), COLORS)
def test_similarity_of_known_colour_pairs(first, second, distance, similarity):
    lab = rgb_to_lab(torch.cat([as_map(first), as_map(second)], dim=-1))  # (3, 1, 2)
    assert float((lab[..., 0] - lab[..., 1]).norm()) == pytest.approx(distance, abs=2e-5)
    found = lab_similarity(lab[None], torch.ones(1, 1, 2, dtype=torch.bool), size=3, dilation=1)
    right, left = OFFSETS.index((0, 1)), OFFSETS.index((0, -1))
    assert float(found[0, right, 0, 0]) == pytest.approx(similarity, abs=1e-5)
    assert float(found[0, left, 0, 1]) == pytest.approx(similarity, abs=1e-5)
    assert int((found > 0).sum()) == 2


def test_only_the_neighbours_validity_counts():
    lab = rgb_to_lab(torch.full((1, 3, 3, 3), 90.0))
    valid = torch.tensor([[True] * 3, [True] * 3, [False] * 3])[None]
    found = lab_similarity(lab, valid, size=3, dilation=1)
    # One colour may come out of vectorised and of plain code in two ways that differ in the last digits.
    assert found[0, :, 1, 1].tolist() == pytest.approx([1, 1, 1, 1, 1, 0, 0, 0], abs=1e-4)
    assert found[0, :, 2, 1].tolist() == pytest.approx([1, 1, 1, 0, 0, 0, 0, 0], abs=1e-4)
    assert not found[0, 5:, 1, 1].any()
    assert not found[0, 3:, 2, 1].any()


def test_pooled_colours_are_cut_to_grey_levels():
    image = torch.full((1, 3, 4, 8), 100, dtype=torch.uint8)
    image[..., :, 4:][..., ::2, :] = 101  # pooled 100.5
    valid = torch.ones(1, 4, 8, dtype=torch.bool)
    right = OFFSETS.index((0, 1))
    assert float(color_similarity(image, valid, dilation=1)[0, right, 0, 0]) == pytest.approx(
        1, abs=1e-4
    )
    assert float(color_similarity(image, valid, dilation=1, truncate=False)[0, right, 0, 0]) < 0.95


def test_padding_does_not_change_similarity_inside():
    image = torch.randint(
        0, 256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    alone = color_similarity(image, torch.ones(1, 32, 32, dtype=torch.bool), dilation=2)
    padded, valid = (
        torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
        torch.zeros(1, 64, 64, dtype=torch.bool),
    )
    padded[..., :32, :32], valid[..., :32, :32] = image, True
    torch.testing.assert_close(color_similarity(padded, valid, dilation=2)[..., :8, :8], alone)


def test_neighbour_view_is_the_shifted_map():
    values = torch.arange(1.0, 31).view(5, 6)
    view = neighbour_view(values, 3, 2)
    for index, (row, column) in enumerate(OFFSETS):
        for y in range(5):
            for x in range(6):
                ny, nx = y + 2 * row, x + 2 * column
                expected = values[ny, nx] if 0 <= ny < 5 and 0 <= nx < 6 else 0.0
                assert view[index, y, x] == expected


@pytest.mark.parametrize(
    ("original", "height", "rows"), [(480, 800, 16), (427, 640, 14), (640, 800, 12)]
)
def test_bottom_rows_are_scaled_with_the_image(original, height, rows):
    valid = torch.ones(1, 832, 4, dtype=torch.bool)
    kept = remove_bottom_rows(valid, [(height, 4)], [(original, 4)], 10)
    assert int(kept[0, :, 0].sum()) == height - rows
    assert bool(valid.all())


def test_cells_sit_at_their_centre_pixels():
    assert sample_cells(torch.arange(64).view(8, 8)).tolist() == [[18, 22], [50, 54]]


def test_sizes_must_agree():
    with pytest.raises(ShapeError, match="multiple of 4"):
        color_similarity(
            torch.zeros(1, 3, 8, 8), torch.ones(1, 8, 12, dtype=torch.bool), dilation=1
        )


@pytest.mark.parametrize("size", [1, 3, 5])
def test_neighbourhoods_of_any_odd_size_are_symmetric(size):
    offsets = neighbour_offsets(size)
    assert len(offsets) == size**2 - 1
    assert [(-row, -column) for row, column in reversed(offsets)] == offsets
    image = torch.randint(
        0, 256, (2, 3, 32, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    similarity = color_similarity(
        image, torch.ones(2, 32, 24, dtype=torch.bool), size=size, dilation=1
    )
    assert similarity.shape == (2, size**2 - 1, 8, 6)
    if size == 5:  # the inner ring is the neighbourhood of size 3
        inner = [offsets.index(offset) for offset in neighbour_offsets(3)]
        near = color_similarity(image, torch.ones(2, 32, 24).bool(), dilation=1)
        torch.testing.assert_close(similarity[:, inner], near, atol=1e-4, rtol=0)
        outer = [offsets.index((2 * row, 2 * column)) for row, column in neighbour_offsets(3)]
        far = color_similarity(image, torch.ones(2, 32, 24).bool(), dilation=2)
        torch.testing.assert_close(similarity[:, outer], far, atol=1e-4, rtol=0)

"""Panels are pictures with four columns; a row without a teacher leaves its column blank."""

import numpy as np
import torch
from PIL import Image

from boxseg.evaluation.panels import CAPTION, COLOURS, GAP, TILE, PanelRow, draw_panels


def make_row(*, teacher):
    mask = torch.zeros(1, 40, 80, dtype=torch.bool)
    mask[0, 10:30, 20:60] = True
    return PanelRow(
        image=torch.zeros(3, 40, 80, dtype=torch.uint8),
        boxes=torch.tensor([[20.0, 10.0, 60.0, 30.0]]),
        teacher_masks=mask if teacher else None,
        quality=torch.tensor([0.8]) if teacher else None,
        student_masks=mask[:0],
        scores=torch.zeros(0),
    )


def tile(path, column):
    picture = np.asarray(Image.open(path))
    left = GAP + column * (TILE + GAP)
    return picture[CAPTION : CAPTION + TILE // 2, left : left + TILE]


def test_the_mask_is_outlined_where_it_is_and_the_student_without_detection_stays_plain(tmp_path):
    path = draw_panels([make_row(teacher=True)], tmp_path / "samples" / "panel.png")
    outline = (tile(path, 2) == COLOURS[0]).all(axis=-1)
    ys, xs = np.nonzero(outline)
    assert abs(xs.min() - 20 * TILE / 80) <= 3
    assert abs(ys.max() - 30 * TILE / 80) <= 3
    assert not tile(path, 3).any()


def test_without_a_teacher_its_column_is_blank(tmp_path):
    path = draw_panels([make_row(teacher=False)], tmp_path / "panel.png")
    assert (tile(path, 2) == 230).all()
    assert [each.name for each in tmp_path.iterdir()] == ["panel.png"]

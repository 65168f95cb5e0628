"""Foreign text is drawn as it is, and a picture that cannot be made ends nothing else."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from boxseg.drawing import drawing, figure_label, label
from boxseg.errors import StorageError
from boxseg.evaluation import pictures
from boxseg.evaluation.ap import CocoScores
from boxseg.evaluation.pictures import draw_evaluation, draw_precision_recall
from boxseg.mask_parts import MaskPart
from boxseg.predict.files import draw_overlay
from boxseg.structures import Detections

NAMES = (
    "$a$ $",
    r"$\frac{",
    r"\$x\$ $$",
    "$" * 99,
    "<script>alert(1)</script>",
    "two\nlines\x1b[31m\x00",
    "猫 🐈\u200d🦺 é",
    "x" * 5000,
    "",
    "   ",
    "_first",
    "half \ud83d",
    "{}%s %(a)s {0}",
)


def scores_of(count: int) -> CocoScores:
    precision = np.linspace(1, 0, 101)[None, :, None].repeat(10, axis=0).repeat(count, axis=2)
    return CocoScores({}, {"mask": precision, "box": precision}, {})


def test_labels_are_one_visible_line_of_bounded_length():
    for name in NAMES:
        shown = label(name)
        assert 0 < len(shown) <= 40
        assert shown.isprintable()
    assert label("猫") == "猫"
    assert label("") == label(" \n") == "(no name)"
    assert label("x" * 41) == "x" * 39 + "…"


def test_no_label_is_a_formula_or_left_out_of_a_legend():
    from matplotlib.cbook import is_math_text

    for name in NAMES:
        shown = figure_label(name)
        assert not is_math_text(shown)
        assert not shown.startswith("_")


@pytest.mark.parametrize("names", [NAMES[:7], NAMES[6:]])
def test_evaluations_of_classes_of_any_name_are_drawn(tmp_path, names, recwarn, caplog):
    scores = scores_of(len(names))
    figure = draw_precision_recall(scores, names)
    assert len(figure.axes[0].get_legend().get_texts()) == len(names) + 2
    data = type("Data", (), {"class_names": names})
    draw_evaluation(data, [], scores, tmp_path / "evaluation")
    drawn = {path.name for path in (tmp_path / "evaluation").iterdir()}
    assert drawn == {"classes.csv", "precision_recall.png"}
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


@pytest.mark.parametrize("names", [NAMES, NAMES[:1]])
def test_pictures_of_detections_show_classes_of_any_name(tmp_path, names):
    count = len(names)
    found = Detections(
        boxes=torch.tensor([[2.0, 2.0, 20.0, 20.0]]).repeat(count, 1),
        scores=torch.full((count,), 0.5),
        labels=torch.arange(count),
        parts=[MaskPart(np.ones((32, 32), dtype=np.bool_))] * count,
        size=(32, 32),
    )
    draw_overlay(torch.zeros(3, 32, 32, dtype=torch.uint8), found, names, tmp_path / "overlay.png")
    assert Image.open(tmp_path / "overlay.png").size == (32, 32)


@pytest.mark.parametrize(
    "error", [ValueError("two $\n\x1b[31m"), StorageError("the disk is full"), MemoryError()]
)
def test_a_failing_picture_is_reported_once_with_its_file_and_the_others_are_drawn(
    tmp_path, monkeypatch, caplog, error
):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(pictures, "draw_worst", fail)
    data = type("Data", (), {"class_names": ["a", "b"]})
    for _ in range(2):
        draw_evaluation(data, [], replace(scores_of(2), image_ap={1: 0.5}), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"classes.csv", "precision_recall.png"}
    (told,) = [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    ]
    assert told.startswith(f"{tmp_path / 'worst.png'} is left out: {type(error).__name__}: ")
    assert told.isprintable()


def test_an_interruption_while_drawing_is_not_held_back(tmp_path):
    with pytest.raises(KeyboardInterrupt), drawing(tmp_path / "a.png"):
        raise KeyboardInterrupt

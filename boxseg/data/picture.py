"""A picture of a data set: how many boxes each class has, and how large they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from boxseg.drawing import figure_label, save_figure

CLASSES = 30
"""Classes that are shown, those with most boxes."""
LETTERS = 30
"""Of the name of a class."""


def draw_stats(classes: Mapping[str, int], sides: Sequence[float], path: Path) -> None:
    """Write a PNG with the boxes of each class, and the sizes of all boxes on a logarithmic axis.

    Args:
        classes: Number of boxes by name of the class.
        sides: Root of the area of each box [px].
        path: PNG file to write; its folder is made.
    """
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    most = sorted(classes.items(), key=lambda item: -item[1])[:CLASSES]
    left.bar(range(len(most)), [count for _, count in most], color="tab:blue")
    names = [figure_label(name, LETTERS) for name, _ in most]
    left.set_xticks(range(len(most)), names, rotation=60 if len(most) > 4 else 0)
    left.set(title="boxes of each class", ylabel="boxes")
    shown = [side for side in sides if side > 0]
    right.hist(
        shown,
        bins=np.geomspace(min(shown, default=1), max(shown, default=2) + 1, 30).tolist(),
        color="tab:orange",
    )
    right.set(
        title="size of the boxes", xlabel="root of the area [px]", xscale="log", ylabel="boxes"
    )
    for edge in (32, 96):
        right.axvline(edge, color="gray", linestyle="--")
    save_figure(figure, path)

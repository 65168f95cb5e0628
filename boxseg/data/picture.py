"""A picture of a data set: how many boxes each class has, and how large they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from boxseg.data.stats import LARGE_PX, SMALL_PX
from boxseg.drawing import figure_label, save_figure

CLASSES = 30
"""Classes that are shown, those with most boxes."""
LETTERS = 30
"""Letters that are shown of the name of a class."""
BINS = 30
"""Edges between the bars of the sizes."""


def draw_stats(classes: Mapping[str, int], sides: Sequence[float], path: Path) -> None:
    """Write a PNG with the boxes of each class, and the sizes of all boxes on a logarithmic axis.

    Args:
        classes: Number of boxes by name of the class.
        sides: Root of the area of each box [px].
        path: PNG file to write; its folder is made.
    """
    # Here because they are slow to load, and most commands draw nothing.
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    commonest = sorted(classes.items(), key=lambda item: -item[1])[:CLASSES]
    counts = [count for _, count in commonest]
    left.bar(range(len(counts)), counts, color="tab:blue")
    names = [figure_label(name, LETTERS) for name, _ in commonest]
    rotation = 60 if len(names) > 4 else 0  # side by side, more would overlap
    left.set_xticks(range(len(names)), names, rotation=rotation)
    left.set(title="boxes of each class", ylabel="boxes")
    shown = [side for side in sides if side > 0]  # a logarithmic axis has no 0
    smallest, largest = min(shown, default=1), max(shown, default=2)
    edges = np.geomspace(smallest, largest + 1, BINS)
    right.hist(shown, bins=edges.tolist(), color="tab:orange")
    right.set(title="size of the boxes", xlabel="root of the area [px]", xscale="log")
    right.set(ylabel="boxes")
    for edge in (SMALL_PX, LARGE_PX):
        right.axvline(edge, color="gray", linestyle="--")
    save_figure(figure, path)

"""A picture of how a run went: losses, AP and the quality of pseudo masks over its steps."""

from __future__ import annotations

import os
from pathlib import Path

from orchestration.run_folder import RunFolder

GROUPS = {
    "losses": ("train/loss",),
    "validation": ("val/mask_ap", "val/box_ap", "val/teacher_mask_ap", "val/student_mask_ap"),
    "pseudo masks": ("qam/",),
}
"""Title -> how the names of the metrics begin that are drawn together."""
PICTURE = "evaluation/learning_curves.png"


def draw_learning_curves(folder: RunFolder) -> Path | None:
    """Write `evaluation/learning_curves.png` in a run's folder; None where nothing was reported."""
    from matplotlib.figure import Figure

    curves = {name: folder.history(name) for name in sorted(folder.stored().metrics)}
    reported = [name for name, points in curves.items() if points]
    groups = {title: [name for name in reported if name.startswith(starts)] for title, starts in GROUPS.items()}
    groups = {title: names for title, names in groups.items() if names}
    if not groups:
        return None
    figure = Figure(figsize=(4.8 * len(groups), 4.0), dpi=100, layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
        for name in names:
            steps, values = zip(*curves[name], strict=True)
            axes.plot(steps, values, marker=".", markersize=3, linewidth=1, label=name)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    path = folder.path / PICTURE
    path.parent.mkdir(exist_ok=True)
    scratch = path.with_name(f".{path.stem}-{os.getpid()}.png")
    figure.savefig(scratch)
    return scratch.rename(path)

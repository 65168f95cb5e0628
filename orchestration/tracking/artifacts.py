"""Files of a run folder that MLflow gets: settings at once, pictures as they come, results and weights at the end."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from boxseg.drawing import drawing, figure_label, save_figure
from boxseg.errors import CheckpointError
from orchestration.config.resolved import read_resolved
from orchestration.record.files import digest
from orchestration.record.run_folder import RunFolder
from orchestration.tracking.model import better_network, log_model, register_model
from orchestration.tracking.run_copy import RunCopy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CHECKPOINT_BYTES = 500 * 1024**2
"""Larger weights are named by path instead of being copied."""
SETTINGS = ("config.yaml", "environment.json", "changes.diff")
RESULTS = (*SETTINGS, "status.json", "journal.jsonl", "table.md", "traceback.txt")
RESULT_FOLDERS = ("evaluation", "report")
COUNTS = "candidates of a box"
CURVES = {
    "losses": ("train/loss",),
    "validation": ("val/mask_ap", "val/box_ap", "val/teacher_mask_ap", "val/student_mask_ap"),
    "pseudo masks": ("qam/",),
    COUNTS: ("qam/candidates",),
}
"""Title of a plot -> prefixes of the metrics in it; counts and shares have plots of their own."""
CURVES_PICTURE = "evaluation/learning_curves.png"

logger = logging.getLogger("boxseg.tracking")


def copy_results(copy: RunCopy) -> None:
    """Upload what a run ends with, its weights apart."""
    folder = copy.folder
    if folder.stored().kind == "run":
        with drawing(folder.path / CURVES_PICTURE):
            draw_learning_curves(folder)
    copy_files(copy, (folder.path / name for name in RESULTS))
    for name in RESULT_FOLDERS:
        # Names that begin with a dot are those of files that are being written.
        copy_files(copy, sorted(folder.path.glob(f"{name}/**/[!.]*")))


def draw_learning_curves(folder: RunFolder) -> Path | None:
    """Write `evaluation/learning_curves.png` in a run's folder; None where nothing was reported."""
    figure = learning_curves(folder)
    return None if figure is None else save_figure(figure, folder.path / CURVES_PICTURE)


def learning_curves(folder: RunFolder) -> Figure | None:
    """What a run reported over its steps; None where that is nothing."""
    from matplotlib.figure import Figure  # takes a while to load

    curves = {name: folder.history(name) for name in sorted(folder.stored().metrics)}
    groups: dict[str, list[str]] = {}
    for title, starts in CURVES.items():
        for name, points in curves.items():
            is_count = name.startswith(CURVES[COUNTS])
            if points and name.startswith(starts) and is_count == (title == COUNTS):
                groups.setdefault(title, []).append(name)
    if not groups:
        return None
    width = 4.8 * len(groups)
    figure = Figure(figsize=(width, 4.0), dpi=100)
    # Fixed, as finding a layout takes as long as drawing: 0.6 inch for the numbers at the left of each plot.
    figure.subplots_adjust(
        left=0.6 / width,
        right=1 - 0.1 / width,
        bottom=0.12,
        top=0.93,
        wspace=0.17,
    )
    plots = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, (title, names) in zip(plots, groups.items(), strict=True):
        for name in names:
            steps, values = zip(*curves[name], strict=True)
            axes.plot(
                steps,
                values,
                marker=".",
                markersize=3,
                linewidth=1,
                label=figure_label(name),
            )
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure


def copy_checkpoint(copy: RunCopy, checkpoint: Path) -> None:
    """Upload a checkpoint: its description, and the weights of the better of its two networks.

    A damaged checkpoint is reported and not uploaded: in MLflow it would look like any other.
    """
    try:
        weights = better_network(checkpoint)
    except CheckpointError as error:
        logger.warning("%s: MLflow gets no weights of it: %s", copy.folder.path.name, error)
        return
    files = [checkpoint / "about.json"]
    if weights is not None and weights.stat().st_size <= MAX_CHECKPOINT_BYTES:
        files.append(weights)
    copy_files(copy, files, "checkpoints/best")


def copy_model(copy: RunCopy, checkpoint: Path) -> None:
    """Log and register a sound checkpoint as the run's settings ask for; what MLflow has already stays."""
    settings = read_resolved(copy.folder.config_path).get("tracking", {})
    if not settings.get("log_model"):
        return
    try:
        weights = better_network(checkpoint)
    except CheckpointError:  # `copy_checkpoint` has reported it
        return
    if weights is None or weights.stat().st_size > MAX_CHECKPOINT_BYTES:
        return
    model_uri = log_model(copy.client, copy.run_id, checkpoint, weights)
    if settings.get("register_as") is not None:
        register_model(copy.client, copy.run_id, model_uri, settings["register_as"])


def copy_files(copy: RunCopy, paths: Iterable[Path], place: str | None = None) -> None:
    """Upload files that exist and are not in MLflow as they are now.

    `place` is the artifact folder; None: each file keeps the folder that it has below the run's folder.
    """
    copied = copy.state.setdefault("files", {})
    for path in paths:
        if not path.is_file():
            continue
        where = path.parent.relative_to(copy.folder.path).as_posix() if place is None else place
        name = f"{where}/{path.name}"
        content = digest(path)
        # By content: a run that is resumed writes results of the same names again.
        if copied.get(name) != content:
            copy.client.log_artifact(copy.run_id, str(path), None if where == "." else where)
            copied[name] = content
            copy.keep()

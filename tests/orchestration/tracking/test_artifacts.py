"""The picture of how a run went."""

import numpy as np
from PIL import Image

from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import RunSpec
from orchestration.record.run_folder import RunFolder, RunStatus
from orchestration.tracking.artifacts import draw_learning_curves, learning_curves


def make_run(path) -> RunFolder:
    return RunFolder(path).create(RunStatus(path.name, "toy"), dump_resolved(RunSpec()))


def test_a_run_has_a_panel_for_losses_for_ap_and_for_pseudo_masks(tmp_path):
    folder = make_run(tmp_path / "run")
    folder.report(1, {"train/loss": 2.0, "qam/quality": 0.5})
    # known, but without a history
    folder.update(metrics={**folder.stored().metrics, "val/box_ap": 0.5})
    one_row = np.asarray(Image.open(draw_learning_curves(folder))).shape[1]
    folder.report(2, {"train/loss": 1.0, "val/mask_ap": 0.1})
    pixels = np.asarray(Image.open(draw_learning_curves(folder)))
    assert pixels.shape[1] == one_row * 3 / 2
    assert len(np.unique(pixels)) > 10
    assert [path.name for path in (folder.path / "evaluation").iterdir()] == [
        "learning_curves.png"
    ]


def test_counts_and_shares_have_axes_of_their_own(tmp_path):
    folder = make_run(tmp_path / "run")
    folder.report(
        1, {"train/loss": 2.0, "qam/quality": 0.5, "qam/coverage": 0.5, "qam/candidates": 17.0}
    )
    figure = learning_curves(folder)
    shown = {
        axes.get_title(): {line.get_label() for line in axes.get_lines()} for axes in figure.axes
    }
    assert shown["pseudo masks"] == {"qam/quality", "qam/coverage"}
    assert shown["candidates of a box"] == {"qam/candidates"}


def test_a_run_that_reported_nothing_has_no_picture(tmp_path):
    folder = make_run(tmp_path / "run")
    assert draw_learning_curves(folder) is None
    assert not (folder.path / "evaluation").exists()

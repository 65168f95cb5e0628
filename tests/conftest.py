"""A run of two updates on generated pictures, for all that starts from a trained network."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from boxseg.build import run_training
from boxseg.config import BoxSegConfig, CocoSource
from boxseg.data.toy import ensure_toy

SETTINGS = {
    "data": {"toy": {"train_images": 4, "val_images": 4, "size": 64, "seed": 3}},
    "model": {"backbone": "resnet18", "weights": "none", "channels": 16, "tower_convs": 1},
    "cond": {"branch_channels": 16, "branch_convs": 1, "max_per_image": 8},
    "train": {"steps": 2, "batch_size": 2, "image_size": 64, "report_every": 1, "panels": 0},
    "solver": {"optimizer": "adamw", "lr": 1e-3, "warmup": 0},
    "fcos": {"score_thr": 1e-5},
    "qam": {"color_weight": 0.0},
}


class Silent:
    """A reporter that does nothing."""

    def on_step(self, report) -> None: ...

    def on_eval(self, report) -> None: ...

    def should_stop(self) -> bool:
        return False


@dataclass(frozen=True)
class TrainedRun:
    """What the run left behind."""

    checkpoint: Path
    val: CocoSource
    """Four images of 64 px with boxes and masks."""


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    root = tmp_path_factory.mktemp("trained")
    config = BoxSegConfig.model_validate(SETTINGS)
    run_training(config, folder=root / "run", data_root=root / "data", reporter=Silent())
    _, val = ensure_toy(root / "data", config.data.toy)
    return TrainedRun((root / "run/checkpoints/best").resolve(), val)

"""A tiny run on generated pictures for tests of the whole loop, and small data sets that tests bend as they need."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from boxseg.config.method import BoxSegConfig, CocoSource, ToyConfig
from boxseg.config.presets import merge
from boxseg.data.toy import ensure_toy
from boxseg.engine.events import EvalReport, StartReport, StepReport

REAL_DATA = Path(__file__).parents[2].parent / "shared" / "data"
TINY = {
    "data": {"toy": {"train_images": 12, "val_images": 4, "size": 64, "seed": 3}},
    "model": {
        "backbone": "timm/test_resnet",
        "weights": "none",
        "channels": 16,
        "tower_convs": 1,
        "norm_groups": None,
    },
    "cond": {"branch_channels": 16, "branch_convs": 1, "max_per_image": 8},
    "train": {
        "steps": 6,
        "batch_size": 2,
        "image_size": 64,
        "report_every": 1,
        "eval_every": 3,
        "panels": 2,
        "seed": 1,
    },
    "solver": {"optimizer": "adamw", "lr": 1e-3, "warmup": 0},
    "teacher": {"cand_score_thr": 0.001},
    "qam": {"iou_thr": 0.1, "score_thr": 0.0},
    "pc": {
        "p_start": 1.0,
        "p_end": 1.0,
        "bank_q_thr": 0.0,
        "bank_s_thr": 0.0,
        "min_area": 20,
        "require_better": False,
    },
}


class Recorder:
    """A reporter that remembers; asks to stop after `stop_at` steps."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.starts: list[StartReport] = []
        self.steps: list[StepReport] = []
        self.evals: list[EvalReport] = []
        self.best: tuple[int, dict[str, float]] = 0, {}
        self.stop_at = stop_at

    def on_start(self, report: StartReport) -> None:
        self.starts.append(report)

    def on_best(self, step: int, metrics: dict[str, float]) -> None:
        self.best = step, metrics

    def on_update(self, step, metrics) -> None: ...

    def on_step(self, report: StepReport) -> None:
        self.steps.append(report)

    def on_eval(self, report: EvalReport) -> None:
        self.evals.append(report)

    def should_stop(self) -> bool:
        return (
            self.stop_at is not None and bool(self.steps) and self.steps[-1].step >= self.stop_at
        )

    def losses(self) -> list[float]:
        return [report.metrics["train/loss"] for report in self.steps]


@pytest.fixture(scope="session")
def recorder():
    return Recorder


@pytest.fixture(scope="session")
def tiny_config():
    def make(**changes) -> BoxSegConfig:
        return BoxSegConfig.model_validate(merge(TINY, changes))

    return make


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads that wait for one another on a busy machine take many times as long as one alone."""
    torch.set_num_threads(1)


@pytest.fixture
def content() -> dict[str, Any]:
    """Two images, three boxes and a crowd; category ids have a gap and are not sorted."""
    return {
        "images": [
            {"id": 10, "file_name": "a.png", "width": 60, "height": 40},
            {"id": 20, "file_name": "b.png", "width": 40, "height": 60},
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 10,
                "category_id": 7,
                "bbox": [5, 6, 20, 10],
                "area": 200,
                "iscrowd": 0,
            },
            {
                "id": 2,
                "image_id": 20,
                "category_id": 3,
                "bbox": [0, 0, 10, 10],
                "area": 100,
                "iscrowd": 0,
            },
            {
                "id": 3,
                "image_id": 10,
                "category_id": 3,
                "bbox": [30, 20, 10, 10],
                "area": 100,
                "iscrowd": 0,
            },
            {
                "id": 4,
                "image_id": 10,
                "category_id": 3,
                "bbox": [0, 0, 60, 40],
                "area": 100,
                "iscrowd": 1,
            },
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "ant"}],
    }


@pytest.fixture
def write_source(tmp_path: Path) -> Callable[[dict[str, Any]], CocoSource]:
    """Writes the annotation file, and a picture for each image that has none yet."""

    def write(content: dict[str, Any]) -> CocoSource:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        for image in content["images"]:
            path = folder / image["file_name"]
            if not path.exists() and path.resolve().is_relative_to(folder.resolve()):
                rng = np.random.default_rng(image["id"])
                pixels = rng.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path)
        annotations = tmp_path / "annotations.json"
        annotations.write_text(json.dumps(content))
        return CocoSource(images=folder, annotations=annotations)

    return write


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toy")


@pytest.fixture(scope="session")
def toy(toy_root: Path) -> tuple[CocoSource, CocoSource]:
    """(train, val) with 40 and 10 images of 128 px."""
    return ensure_toy(toy_root, ToyConfig(train_images=40, val_images=10))


@pytest.fixture(params=["pennfudan", "animals", "coco-mini"])
def real_set(request: pytest.FixtureRequest) -> Path:
    """Folder of a data set of photographs, where the machine has it."""
    folder = REAL_DATA / request.param
    if not folder.is_dir():
        pytest.skip(f"the real data set {request.param} is not on this machine")
    return folder

"""A tiny run on generated pictures, shared by the tests of the whole loop."""

import pytest
import torch

from boxseg.config import BoxSegConfig, merge
from boxseg.engine.events import EvalReport, StartReport, StepReport

TINY = {
    "data": {"toy": {"train_images": 12, "val_images": 4, "size": 64, "seed": 3}},
    "model": {"backbone": "resnet18", "weights": "none", "channels": 16, "tower_convs": 1, "norm_groups": None},
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
    "pc": {"p_start": 1.0, "p_end": 1.0, "bank_q_thr": 0.0, "bank_s_thr": 0.0, "min_area": 20, "require_better": False},
}


class Recorder:
    """A reporter that remembers; asks to stop after `stop_at` steps."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.starts: list[StartReport] = []
        self.steps: list[StepReport] = []
        self.evals: list[EvalReport] = []
        self.stop_at = stop_at

    def on_start(self, report: StartReport) -> None:
        self.starts.append(report)

    def on_step(self, report: StepReport) -> None:
        self.steps.append(report)

    def on_eval(self, report: EvalReport) -> None:
        self.evals.append(report)

    def should_stop(self) -> bool:
        return self.stop_at is not None and bool(self.steps) and self.steps[-1].step >= self.stop_at

    def losses(self) -> list[float]:
        return [report.metrics["train/loss"] for report in self.steps]


@pytest.fixture
def recorder():
    return Recorder


@pytest.fixture
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

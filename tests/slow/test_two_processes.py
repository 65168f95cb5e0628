"""Data-parallel training of the real network: two processes see what one sees, and stay together."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from boxseg.build import run_training
from boxseg.config.method import BoxSegConfig
from boxseg.engine import checkpoint
from boxseg.engine.events import EvalReport, StepReport

STEPS = 8
CONFIG = {
    "data": {"toy": {"train_images": 16, "val_images": 4, "size": 64, "seed": 3}},
    "model": {
        "backbone": "timm/test_resnet",
        "weights": "none",
        "norm": "frozen",
        "channels": 16,
        "tower_convs": 1,
    },
    "cond": {"branch_channels": 16, "branch_convs": 1, "max_per_image": 8},
    "train": {
        "steps": STEPS,
        "batch_size": 4,
        "image_size": 64,
        "report_every": 1,
        "eval_every": STEPS,
    },
    "solver": {"optimizer": "adamw", "lr": 5e-4, "warmup": 0},
    "pc": {"on": False},
}
pytestmark = pytest.mark.slow


class Losses:
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_best(self, step: int, metrics: dict[str, float]) -> None: ...

    def on_update(self, step, metrics) -> None: ...

    def on_step(self, report: StepReport) -> None:
        self.values.append(report.metrics["train/loss"])

    def on_eval(self, report: EvalReport) -> None:
        self.values.append(report.metrics["val/mask_ap"])

    def should_stop(self) -> bool:
        return False


def work(rank: int, root: str, config: dict[str, Any]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{root}/meet", rank=rank, world_size=2)
    losses = Losses()
    run_training(
        BoxSegConfig.model_validate(config),
        folder=Path(root) / "two",
        data_root=Path(root) / "data",
        reporter=losses,
    )
    torch.save(losses.values, Path(root) / f"losses-{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_follow_the_loss_curve_of_one(tmp_path):
    alone = Losses()
    config = BoxSegConfig.model_validate(CONFIG)
    run_training(config, folder=tmp_path / "one", data_root=tmp_path / "data", reporter=alone)
    mp.spawn(work, args=(str(tmp_path), CONFIG), nprocs=2)
    ranks = [torch.load(tmp_path / f"losses-{rank}.pt") for rank in (0, 1)]
    mean = (torch.tensor(ranks[0][:STEPS]) + torch.tensor(ranks[1][:STEPS])) / 2
    expected = torch.tensor(alone.values[:STEPS])
    assert (mean / expected - 1).abs().max() < 0.1
    assert ranks[0][STEPS] == ranks[1][STEPS]  # one evaluation of all images, known to both
    one, two = (
        checkpoint.load_network(tmp_path / name / "checkpoints" / "last", "student")
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()

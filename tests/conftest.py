"""Threads and time limit of all tests, and a run of two updates on generated pictures for those that need one."""

import gc
import os
import time
from dataclasses import dataclass
from pathlib import Path

# Before torch is imported, here and in the programs that tests start: threads that wait for one another in a spin take
# many times as long as one alone where other programs run.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Until all tests are known everything stays: to look for garbage meanwhile takes a fifth of the start.
gc.disable()

import pytest

from boxseg.build import run_training
from boxseg.config.method import BoxSegConfig, CocoSource
from boxseg.data.toy import ensure_toy

SETTINGS = {
    "data": {"toy": {"train_images": 4, "val_images": 4, "size": 64, "seed": 3}},
    "model": {"backbone": "timm/test_resnet", "weights": "none", "channels": 16, "tower_convs": 1},
    "cond": {"branch_channels": 16, "branch_convs": 1, "max_per_image": 8},
    "train": {"steps": 2, "batch_size": 2, "image_size": 64, "report_every": 1, "panels": 0},
    "solver": {"optimizer": "adamw", "lr": 1e-3, "warmup": 0},
    "fcos": {"score_thr": 1e-5},
    "qam": {"color_weight": 0.0},
}


TIMEOUT = 300
"""Seconds that a test may take where `slowness` is 1, unless its mark says otherwise."""


def slowness() -> float:
    """How much longer some fixed work takes here and now than on an idle processor of today; at least 1."""
    begin = time.perf_counter()
    sum(number * number for number in range(1_500_000))
    return max(1.0, (time.perf_counter() - begin) / 0.1)


SLOWNESS = slowness()
os.environ.setdefault("PYTEST_TIMEOUT", f"{TIMEOUT * SLOWNESS:.0f}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Limits that tests set for themselves grow on a slow or busy machine as well."""
    for item in items:
        own = item.get_closest_marker("timeout")
        if own is not None:
            item.add_marker(pytest.mark.timeout(own.args[0] * SLOWNESS), append=False)


def pytest_collection_finish() -> None:
    """From here on garbage is looked for, but not among what was loaded."""
    gc.freeze()
    gc.enable()


class Silent:
    """A reporter that does nothing."""

    def on_start(self, report) -> None: ...

    def on_best(self, step, metrics) -> None: ...

    def on_update(self, step, metrics) -> None: ...

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

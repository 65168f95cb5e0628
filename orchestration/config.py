"""Typed settings of runs and sweeps, and the YAML that fills them; importable without torch and ray."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from boxseg.config import BoxSegConfig, Config

Runner = Literal["auto", "ray_train", "inline"]


class ResourcesConfig(Config):
    """What a run needs."""

    workers: int = Field(1, ge=1)
    """Training processes; each takes an equal share of the batch."""
    cpus_per_worker: float = Field(1, gt=0)
    """CPU cores per worker; also its number of torch threads."""
    gpus_per_worker: float = Field(0, ge=0)
    """GPUs per worker."""
    runner: Runner = "auto"
    """ray_train: Ray Train workers; inline: the loop runs in the process that asks for it, the command itself for
    `train`, a reused Tune actor for a trial; auto: inline for one-worker CPU trials on this machine, else ray_train."""
    address: str | None = None
    """Address of a running Ray cluster; null: RAY_ADDRESS if set, else a Ray that is started here and ends with us."""


class Uniform(Config):
    """Real numbers, evenly likely."""

    uniform: tuple[float, float]


class LogUniform(Config):
    """Positive real numbers, evenly likely on a logarithmic scale."""

    loguniform: tuple[float, float]


class RandInt(Config):
    """Whole numbers from the first up to, not including, the second."""

    randint: tuple[int, int]


class Choice(Config):
    """One of the listed values; the only kind that `grid` accepts."""

    choice: Annotated[list[Any], Field(min_length=1)]


Domain = Uniform | LogUniform | RandInt | Choice


class SweepConfig(Config):
    """What is varied, and how trials are chosen and stopped."""

    metric: str = "val/mask_ap"
    """Metric of the evaluation that decides."""
    mode: Literal["max", "min"] = "max"
    """Whether a larger or a smaller metric is better."""
    trials: int = Field(8, ge=1)
    """Number of sampled settings; a grid ignores it. Each is run once per seed."""
    search: Literal["grid", "random", "tpe"] = "tpe"
    """How settings are chosen."""
    trial_scheduler: Literal["none", "asha"] = "asha"
    """How weak trials are stopped early."""
    burn_in: float = Field(0.25, gt=0, le=1)
    """Share of `train.steps` before which no trial is stopped."""
    reduction: float = Field(3, gt=1)
    """ASHA keeps about one in so many trials at each rung."""
    concurrency: int | None = Field(None, ge=1)
    """Trials at the same time; null: as many as the resources hold."""
    seeds: list[int] = Field([0], min_length=1)
    """Values of train.seed."""
    space: dict[str, Domain] = Field(default_factory=dict)
    """Setting name (as in `qam.iou_thr`) -> domain."""


class TrackingConfig(Config):
    """Where MLflow keeps runs."""

    uri: str | None = None
    """MLflow tracking URI; null: an SQLite file under `storage`."""


class RunSpec(BoxSegConfig):
    """Everything one run needs."""

    name: str = "boxseg"
    """Name of the experiment."""
    resources: ResourcesConfig = ResourcesConfig()
    storage: Path = Path("runs")
    """Folder that every node can reach."""
    tracking: TrackingConfig = TrackingConfig()


class SweepSpec(RunSpec):
    """A run's settings plus what is varied."""

    sweep: SweepConfig = SweepConfig()

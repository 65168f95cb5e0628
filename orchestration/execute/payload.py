"""What a driver hands to the processes that train: settings, folders and ways to reach it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from boxseg.config.criterion import MASK_AP, Criterion
from orchestration.config.spec import RunSpec, SweepConfig
from orchestration.connect.shares import Share
from orchestration.store.courier import DriverLink
from orchestration.store.places import mirrors, moved

if TYPE_CHECKING:
    from boxseg.engine.train import Progress

TrainFn = Callable[..., "Progress"]
"""A loop with the arguments of `boxseg.build.run_training`."""
Send = Callable[[dict[str, float]], None]
"""Passes metrics, with the step under `step`, to Ray."""


@dataclass(frozen=True)
class Work:
    """What other processes get; paths are absolute because these processes run elsewhere."""

    spec: RunSpec
    folder: Path
    data_root: Path
    runner: Literal["inline", "ray_train"] = "inline"
    train_fn: TrainFn | None = None
    """The training loop; None: `boxseg.build.run_training`."""
    driver_link: DriverLink | None = None
    """How to reach the driver from a machine that does not see its folder; None: all machines see it."""
    home: Path = field(default_factory=mirrors, kw_only=True)
    """The folder for mirrors on the machine that made this object."""

    def here(self) -> Self:
        """The same, with paths in the sender's folder for mirrors replaced by those in this machine's."""
        home = mirrors()
        if home == self.home:
            return self
        return replace(
            self,
            spec=_moved_spec(self.spec, self.home),
            folder=moved(self.folder, self.home),
            data_root=moved(self.data_root, self.home),
            driver_link=None if self.driver_link is None else replace(self.driver_link, home=home),
            home=home,
        )


@dataclass(frozen=True)
class Payload(Work):
    """What a training process gets."""

    sweep: SweepConfig | None = None
    """Settings of the sweep that a trial belongs to, which name the metric that decides; None: a single run."""
    share: Share | None = None
    """Says with how many workers an elastic trial may train; None: their number is fixed, or Ray chooses it."""

    @property
    def criterion(self) -> Criterion:
        """What decides which evaluation is the best."""
        return MASK_AP if self.sweep is None else self.sweep.criterion

    @property
    def device(self) -> str:
        """Torch device of a run without Ray Train."""
        return "cuda" if self.spec.resources.gpus_per_worker else "cpu"


def _moved_spec(spec: RunSpec, home: Path) -> RunSpec:
    """Settings with paths in another machine's folder for mirrors replaced by those in this one's; see `moved`."""
    start = spec.model.start_from
    if start is not None and Path(start).is_relative_to(home):
        spec = spec.starting_from(moved(Path(start), home))
    sources = {}
    for name, source in spec.data.files.items():
        paths = {
            "images": moved(source.images, home),
            "annotations": moved(source.annotations, home),
        }
        sources[name] = source.model_copy(update=paths)
    data = spec.data.model_copy(update=sources)
    storage = moved(spec.storage.absolute(), home)
    return spec.model_copy(update={"data": data, "storage": storage})

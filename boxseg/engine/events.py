"""What a run tells the outside world: the reports, and the Reporter that receives them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 6
"""A line lists this many names at most."""


@dataclass(frozen=True)
class StartReport:
    """What a new run took over from the trained weights that it starts from."""

    place: str
    """Where the weights are from."""
    taken: int
    """Number of parameters of the network that were taken over, whole or for some classes."""
    anew: tuple[str, ...]
    """Names of the parameters that were not taken over."""
    classes: tuple[str, ...] | None
    """Classes whose part of the last layers was taken over; None where the weights do not name their classes."""

    def __str__(self) -> str:
        text = f"starts from {self.place}: {self.taken} of {self.taken + len(self.anew)} weights taken over"
        if self.classes is not None:
            text += f", known classes: {_first(self.classes) or 'none'}"
        return text + (f"; new: {_first(self.anew)}" if self.anew else "")


def _first(names: tuple[str, ...]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class StepReport:
    """Means over the steps since the last report."""

    step: int
    """Optimizer updates done so far."""
    metrics: dict[str, float]
    """Names of `train/`, `qam/`, `pc/`, `health/`."""


@dataclass(frozen=True)
class EvalReport:
    """One evaluation; its checkpoint is already on disk."""

    step: int
    metrics: dict[str, float]
    """Names of `val/` and `health/`; shares in 0 … 1."""
    checkpoint: Path
    """Folder of the checkpoint that was evaluated."""
    is_best: bool = False
    is_repeated: bool = False
    """A run that goes on reports its last evaluation again, since it may have been stopped before it could."""
    step_s: float | None = None
    """Median time of an update so far, without the wait for data [s]; None where this process did none."""


class Reporter(Protocol):
    """Receives reports; called on every rank, so that a barrier inside is safe."""

    def on_start(self, report: StartReport) -> None: ...

    def on_best(self, step: int, metrics: dict[str, float]) -> None:
        """Called when a run begins or goes on, with its best evaluation so far; step 0: there is none yet.

        This need not be the one that was reported as the best: the checkpoint of that one may be lost.
        """
        ...

    def on_update(self, step: int, metrics: dict[str, Tensor]) -> None:
        """Called after every update; `metrics` are scalars on the device: reading one waits for the device."""
        ...

    def on_step(self, report: StepReport) -> None: ...

    def on_eval(self, report: EvalReport) -> None: ...

    def should_stop(self) -> bool:
        """True asks the loop to save a checkpoint and return early; read after every step."""
        ...

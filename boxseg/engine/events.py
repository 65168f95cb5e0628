"""What a run tells the outside world: the reports, and the Reporter that receives them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


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
    """The run goes on from this evaluation; it may have been reported before the run was stopped."""


class Reporter(Protocol):
    """Receives reports; called on every rank, so that a barrier inside is safe."""

    def on_step(self, report: StepReport) -> None: ...

    def on_eval(self, report: EvalReport) -> None: ...

    def should_stop(self) -> bool:
        """True asks the loop to save a checkpoint and return early; read after every step."""
        ...

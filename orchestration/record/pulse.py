"""How far a run is between its reports: a small file in its folder, written anew about once a second."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from boxseg.errors import BoxSegError
from boxseg.files.writing import write_atomic
from orchestration.record.records import RULES, Count, DamagedError, read_record

if TYPE_CHECKING:
    from torch import Tensor

    from orchestration.record.run_folder import RunFolder

FILE = "pulse.json"
LOSSES = "train/loss"
EVERY_S = 1.0
"""Time between two beats [s]; not less, because reading losses waits for the device."""


@dataclass(frozen=True)
class Beat:
    """How far a run was a moment ago."""

    __pydantic_config__ = RULES

    step: Count
    """Updates done."""
    steps_per_s: float
    """Pace since the first update of this process, evaluations included."""
    losses: dict[str, float | None]
    """Losses of this update by name; None for those that were not finite."""


@dataclass
class Pulse:
    """Writes beats; one that cannot be written is left out, as nothing depends on it."""

    folder: RunFolder
    first_step: int
    """The first update that was done; others are counted from its end."""
    _began: float = field(default_factory=time.monotonic)
    # long enough ago that the first beat is due at once
    _wrote: float = -EVERY_S

    def beat(self, step: int, metrics: Mapping[str, Tensor]) -> None:
        """Write a beat, from the second update on, if the last one is `EVERY_S` old."""
        now = time.monotonic()
        if step <= self.first_step or now - self._wrote < EVERY_S:
            return
        self._wrote = now
        losses: dict[str, float | None] = {}
        for name, value in metrics.items():
            if name.startswith(LOSSES):
                loss = float(value)  # waits for the device
                losses[name.split("/")[-1]] = loss if math.isfinite(loss) else None
        pace = (step - self.first_step) / max(now - self._began, 1e-6)
        text = json.dumps({"step": step, "steps_per_s": pace, "losses": losses})
        with contextlib.suppress(OSError, BoxSegError):
            # Without waiting for the disk: it is of no use after a power loss.
            write_atomic(self.folder.path / FILE, text, durable=False)


def read_beat(folder: RunFolder) -> Beat | None:
    """The newest beat; None if there is none yet."""
    try:
        return read_record(folder.path / FILE, Beat, way_out="the next one takes its place")
    except (DamagedError, OSError):
        return None

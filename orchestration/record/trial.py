"""A trial of a sweep: what it is to do, and how it stands."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxseg.config.criterion import Criterion
from orchestration.config.space import is_setting_of
from orchestration.config.spec import SweepConfig
from orchestration.record.find_runs import sound_status
from orchestration.record.run_folder import RunFolder, RunStatus, Status

ENDED: frozenset[Status] = frozenset({"finished", "stopped", "failed"})
"""A trial in one of these is not run again."""


@dataclass(frozen=True)
class Trial:
    """One trial to run."""

    number: int
    """From 0, in the order of asking."""
    values: dict[str, Any]
    """Setting name -> value."""
    seed: int

    def is_drawn_by(self, sweep: SweepConfig) -> bool:
        """Whether a sweep can have drawn it: its number, its seed and all of its values are possible there."""
        if not 0 <= self.number < sweep.num_trials or self.seed not in sweep.seeds:
            return False
        return is_setting_of(sweep.space, self.values)


@dataclass(frozen=True)
class TrialStatus(RunStatus):
    """How a trial stands; `metrics` are those of its best evaluation, or the latest where it has none."""

    value: float | None = None
    """Deciding metric of the best evaluation so far; None before one has it."""

    @classmethod
    def of(cls, status: RunStatus, criterion: Criterion) -> TrialStatus:
        """A trial's `status.json` with what decides."""
        value = criterion.value(status.best)
        return cls(**{**vars(status), "metrics": status.best_or_latest, "value": value})

    @property
    def number(self) -> int:
        """Its place in the order of asking."""
        return int(self.tags["trial"])

    @property
    def seed(self) -> int:
        """Its `train.seed`."""
        return int(self.tags.get("seed", 0))

    @property
    def has_ended(self) -> bool:
        """Whether it is not run again."""
        return self.status in ENDED

    @property
    def seconds(self) -> float | None:
        """How long it took, its start included; None before its end."""
        return self.ended - self.created if self.ended else None

    @property
    def label(self) -> str:
        """Short name within the sweep."""
        return f"trial {self.id.rsplit('-', 1)[-1]}"

    @property
    def key(self) -> str:
        """The varied settings as text that is the same for all seeds."""
        return setting_key(self.values)

    @property
    def outcome(self) -> str:
        """Value of the metric, or why there is none."""
        if self.status == "failed" and self.failure is not None:
            return self.failure.summary
        return "no value" if self.value is None else f"{self.value:.4f}"


def setting_key(values: dict[str, Any]) -> str:
    """Varied settings as text: the same text for the same values."""
    return json.dumps(values, sort_keys=True, default=str)


def trial_folder(sweep: Path, number: int) -> RunFolder:
    """Where a trial of a sweep lives."""
    return RunFolder(sweep / f"{sweep.name}-{number:02d}")


def read_trial(folder: Path, criterion: Criterion) -> TrialStatus | None:
    """How a trial stands now; None for a copy, and with a warning for an unsound folder."""
    status = sound_status(folder)
    if status is None or status.id != folder.name:
        return None
    return TrialStatus.of(status, criterion)

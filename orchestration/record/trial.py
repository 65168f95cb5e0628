"""A trial of a sweep: the values that it runs with, and its state."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxseg.config.criterion import Criterion
from orchestration.config.space import is_setting_of
from orchestration.config.spec import SweepConfig
from orchestration.record.find_runs import sound_status
from orchestration.record.run_folder import RunFolder, RunStatus, Status, end_of

ENDED: frozenset[Status] = frozenset({"finished", "stopped", "failed"})
"""A trial in one of these is not run again."""


@dataclass(frozen=True)
class Trial:
    """One trial to run."""

    number: int
    """From 0, in the order in which trials are drawn."""
    values: dict[str, Any]
    """Setting name -> value."""
    seed: int

    def is_drawn_by(self, sweep: SweepConfig) -> bool:
        """Whether a sweep can have drawn it: its number, seed and values are possible there."""
        if not 0 <= self.number < sweep.num_trials or self.seed not in sweep.seeds:
            return False
        return is_setting_of(sweep.space, self.values)


@dataclass(frozen=True)
class TrialStatus(RunStatus):
    """State of a trial; `metrics` are those of its best evaluation, or the latest ones if it has none."""

    value: float | None = None
    """Deciding metric of the best evaluation so far; None until one has it."""

    @classmethod
    def of(cls, status: RunStatus, criterion: Criterion) -> TrialStatus:
        """The state of a trial with its value by a criterion."""
        value = criterion.value(status.best)
        return cls(**{**vars(status), "metrics": status.best_or_latest, "value": value})

    @property
    def number(self) -> int:
        """Its number; see `Trial`."""
        return int(self.tags["trial"])

    @property
    def seed(self) -> int:
        """Its `train.seed`."""
        return int(self.tags.get("seed", 0))

    @property
    def has_ended(self) -> bool:
        """Whether a resumed sweep does not run it again."""
        return self.status in ENDED

    @property
    def seconds(self) -> float | None:
        """How long it took, its start included; None before its end."""
        return self.took_s if self.ended else None

    @property
    def label(self) -> str:
        """Short name within the sweep."""
        return f"trial {end_of(self.id)}"

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
    """Folder of a trial of a sweep."""
    return RunFolder(sweep / f"{sweep.name}-{number:02d}")


def read_trial(folder: Path, criterion: Criterion) -> TrialStatus | None:
    """The state of a trial now; None for a copied folder and, with a warning, for an unsound one."""
    status = sound_status(folder)
    if status is None or status.id != folder.name:
        return None
    return TrialStatus.of(status, criterion)

"""What distinguishes runs: their settings and origin first, then their metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boxseg.errors import ConfigError
from orchestration.config.resolved import leaves, read_resolved
from orchestration.record.run_folder import RunFolder, RunStatus

ORIGIN = ("git_commit", "git_dirty", "data_fingerprint", "host")
"""Tags that may explain a difference which the settings do not."""


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side; every list has one entry for each run, None where it has none."""

    runs: list[RunStatus]
    settings: dict[str, list[Any]]
    """Settings that are not the same in all runs."""
    origin: dict[str, list[str | None]]
    """Tags of `ORIGIN` that are not the same in all runs."""
    metrics: dict[str, list[float | None]]
    """Of the best evaluation."""


def compare_runs(folders: Sequence[RunFolder]) -> Comparison:
    """Compare runs by what their folders say.

    Raises:
        ConfigError: one of them is a sweep, whose trials have settings and metrics of their own.
    """
    runs = [folder.status() for folder in folders]
    for run in runs:
        if run.kind == "sweep":
            way_out = f"compare its trials, as in best:{run.id}, or `boxseg report` it"
            raise ConfigError(f"{run.id} is a sweep; {way_out}")
    settings = _side_by_side(
        [dict(leaves(read_resolved(folder.config_path))) for folder in folders]
    )
    tags = _side_by_side([run.tags for run in runs])
    metrics = _side_by_side([run.best_or_latest for run in runs])
    return Comparison(
        runs,
        settings=_differing(settings),
        origin=_differing({name: tags[name] for name in ORIGIN if name in tags}),
        metrics=dict(sorted(metrics.items())),
    )


def _side_by_side(of_runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for values in of_runs for name in values)
    return {name: [values.get(name) for values in of_runs] for name in names}


def _differing(values: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}

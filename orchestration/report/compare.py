"""What distinguishes runs: their settings and origin first, then their metrics with the spread over seeds."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxseg.errors import ConfigError
from orchestration.config.resolved import leaves, read_resolved
from orchestration.record.find_runs import sound_status
from orchestration.record.run_folder import RunFolder, RunStatus
from orchestration.report.stats import differ

ORIGIN = ("git_commit", "git_dirty", "data_fingerprint", "host")
"""Tags that may explain a difference which the settings do not."""


@dataclass(frozen=True)
class Measured:
    """One metric of one run, and of all runs with its settings."""

    value: float | None
    """Of the run itself; None if it has none."""
    seeds: list[float]
    """Of every finished run with the same settings, whatever its seed; the run itself is among them."""
    mean: float | None
    """Mean over the seeds; None without any."""
    spread: float | None
    """Standard deviation over the seeds; None for fewer than two."""
    against_first: str
    """What the seeds say against the first run: `differs`, `not distinguishable`; empty where they are few."""


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side; every list has one entry for each run."""

    runs: list[RunStatus]
    settings: dict[str, list[Any]]
    """Settings that are not the same in all runs."""
    origin: dict[str, list[str | None]]
    """Tags of `ORIGIN` that are not the same in all runs."""
    metrics: dict[str, list[Measured]]


def compare_runs(folders: Sequence[RunFolder]) -> Comparison:
    """Compare runs by what their folders say.

    Raises:
        ConfigError: one of them is a sweep, whose trials have settings and metrics of their own.
    """
    runs = [folder.status() for folder in folders]
    for run in runs:
        if run.kind == "sweep":
            raise ConfigError(f"{run.id} is a sweep; compare its trials, as in best:{run.id}, or `boxseg report` it")
    settings = [dict(leaves(read_resolved(folder.config_path))) for folder in folders]
    names = dict.fromkeys(name for each in settings for name in each)
    own = [run.best_or_latest for run in runs]
    of_seeds = [[seed.best_or_latest for seed in find_seeds(folder)] for folder in folders]
    metrics = {}
    for name in sorted({name for each in own for name in each}):
        values = [[each[name] for each in seeds if name in each] for seeds in of_seeds]
        metrics[name] = [_measure(run.get(name), seeds, values[0]) for run, seeds in zip(own, values, strict=True)]
    return Comparison(
        runs,
        settings=_differing({name: [each.get(name) for each in settings] for name in names}),
        origin=_differing({name: [run.tags.get(name) for run in runs] for name in ORIGIN}),
        metrics=metrics,
    )


def _measure(value: float | None, seeds: list[float], first: list[float]) -> Measured:
    verdict = ""
    if len(seeds) > 1 and len(first) > 1 and sorted(seeds) != sorted(first):
        verdict = "differs" if differ(first, seeds) else "not distinguishable"
    mean = statistics.fmean(seeds) if seeds else None
    return Measured(value, seeds, mean, statistics.stdev(seeds) if len(seeds) > 1 else None, verdict)


def find_seeds(folder: RunFolder) -> list[RunStatus]:
    """Finished runs beside a run that have its settings and data, whatever their seed; the run itself first."""
    own, text = folder.status(), _text_without_seed(folder.path)
    found = {own.tags.get("seed"): own}
    for path in sorted(folder.path.parent.glob("*/status.json")):
        if path.parent.name != folder.path.name and _text_without_seed(path.parent) == text:
            other = sound_status(path.parent)
            if other is None:
                continue
            same_data = other.tags.get("data_fingerprint") == own.tags.get("data_fingerprint")
            if other.status == "finished" and other.kind == "run" and same_data:
                found.setdefault(other.tags.get("seed"), other)  # repeats of a seed add nothing
    return list(found.values())


def _text_without_seed(folder: Path) -> str:
    """The settings as text, which is quicker to compare than their values; `train.seed` left out."""
    path = folder / "config.yaml"
    return re.sub(r"(?m)^  seed: \d+$", "", path.read_text()) if path.exists() else ""


def _differing(values: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: each for name, each in values.items() if any(value != each[0] for value in each)}

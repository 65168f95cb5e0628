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
            way_out = f"compare its trials, as in best:{run.id}, or `boxseg report` it"
            raise ConfigError(f"{run.id} is a sweep; {way_out}")
    settings: dict[str, list[Any]] = {}
    configs = [dict(leaves(read_resolved(folder.config_path))) for folder in folders]
    for config in configs:
        for name in config:
            # runs of another version can lack a setting, and are shown without it
            settings[name] = [other.get(name) for other in configs]
    origin: dict[str, list[Any]] = {name: [run.tags.get(name) for run in runs] for name in ORIGIN}
    return Comparison(
        runs,
        settings=_differing(settings),
        origin=_differing(origin),
        metrics=_compare_metrics(runs, [find_seeds(folder) for folder in folders]),
    )


def _compare_metrics(
    runs: list[RunStatus],
    seeds_of_runs: list[list[RunStatus]],
) -> dict[str, list[Measured]]:
    """Each metric that a run has: in every run, with the values of its seeds."""
    names = {name for run in runs for name in run.best_or_latest}
    metrics = {}
    for name in sorted(names):
        values = []
        for seeds in seeds_of_runs:
            of_seeds = [seed.best_or_latest for seed in seeds]
            values.append([of_seed[name] for of_seed in of_seeds if name in of_seed])
        metrics[name] = [
            _measure(run.best_or_latest.get(name), run_values, values[0])
            for run, run_values in zip(runs, values, strict=True)
        ]
    return metrics


def _measure(value: float | None, seeds: list[float], first: list[float]) -> Measured:
    verdict = ""
    # runs with the same settings share their seeds, so there is nothing to test
    if len(seeds) > 1 and len(first) > 1 and sorted(seeds) != sorted(first):
        verdict = "differs" if differ(first, seeds) else "not distinguishable"
    mean = statistics.fmean(seeds) if seeds else None
    spread = statistics.stdev(seeds) if len(seeds) > 1 else None
    return Measured(value, seeds, mean, spread, verdict)


def find_seeds(folder: RunFolder) -> list[RunStatus]:
    """Finished runs beside a run that have its settings and data, whatever their seed; the run itself first."""
    run, text = folder.status(), _text_without_seed(folder.path)
    by_seed = {run.tags.get("seed"): run}
    for path in sorted(folder.path.parent.glob("*/status.json")):
        if path.parent.name != folder.path.name and _text_without_seed(path.parent) == text:
            other = sound_status(path.parent)
            if other is None:
                continue
            same_data = other.tags.get("data_fingerprint") == run.tags.get("data_fingerprint")
            if other.status == "finished" and other.kind == "run" and same_data:
                # repeats of a seed add nothing
                by_seed.setdefault(other.tags.get("seed"), other)
    return list(by_seed.values())


def _text_without_seed(folder: Path) -> str:
    """The settings as text, which is quicker to compare than their values; `train.seed` left out."""
    path = folder / "config.yaml"
    # indented once: `data.toy.seed` is further in, and stays
    return re.sub(r"(?m)^  seed: \d+$", "", path.read_text()) if path.exists() else ""


def _differing(values: dict[str, list[Any]]) -> dict[str, list[Any]]:
    differing = {}
    for name, of_runs in values.items():
        if any(value != of_runs[0] for value in of_runs):
            differing[name] = of_runs
    return differing

"""Times one training step of every method, interleaved in one process, and prints a table and a JSON file.

Absolute times depend on the machine and its load; the ratios are what counts. Run with `make bench`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from boxseg.build import build_trainer
from boxseg.config import METHODS, BoxSegConfig, merge
from boxseg.engine.step import Trainer
from boxseg.engine.train import optimise
from boxseg.structures import Batch

SMALL = {
    "model": {"backbone": "resnet18", "weights": "none", "channels": 64, "tower_convs": 2},
    "cond": {"branch_channels": 64, "branch_convs": 2},
    "train": {"steps": 1000, "batch_size": 4, "image_size": 128},
    "pc": {"p_start": 1.0, "p_end": 1.0},
}


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each method")
    parser.add_argument("--warm-up", type=int, default=40, help="untimed steps of each method, so that masks exist")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/bench.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        times = measure(Path(folder), rounds=arguments.rounds, warm_up=arguments.warm_up)
    table = {method: summarise(values, statistics.median(times["boxinst"])) for method, values in times.items()}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(table, indent=1))
    print(f"{'method':12} {'median [ms]':>12} {'quartiles [ms]':>18} {'x boxinst':>10}")
    for method, row in table.items():
        quartiles = f"{row['low_ms']:.0f} – {row['high_ms']:.0f}"
        print(f"{method:12} {row['median_ms']:12.0f} {quartiles:>18} {row['ratio']:10.2f}")
    print(f"\nwritten to {arguments.output}")


def measure(data_root: Path, *, rounds: int, warm_up: int) -> dict[str, list[float]]:
    """Seconds of each timed step, by method; the methods take turns, so that load hits all alike."""
    runs = {}
    for method in METHODS:
        trainer = build_trainer(BoxSegConfig.model_validate(merge(SMALL, {"method": method})), data_root=data_root)
        runs[method] = (trainer, trainer.loader.batches(0, warm_up + rounds))
    for method, (trainer, batches) in runs.items():
        for step in range(warm_up):
            _timed_step(trainer, batches, step)
        print(f"{method}: warmed up for {warm_up} steps")
    times: dict[str, list[float]] = {method: [] for method in runs}
    for step in range(warm_up, warm_up + rounds):
        for method, (trainer, batches) in runs.items():
            times[method].append(_timed_step(trainer, batches, step))
    return times


def summarise(values: list[float], reference: float) -> dict[str, float]:
    """Median and quartiles [ms], and the ratio to the reference's median."""
    low, median, high = statistics.quantiles(values, n=4)
    return {"median_ms": median * 1e3, "low_ms": low * 1e3, "high_ms": high * 1e3, "ratio": median / reference}


def _timed_step(trainer: Trainer, batches: Iterator[Batch], step: int) -> float:
    batch = next(batches)
    started = time.perf_counter()
    optimise(trainer, batch, step)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

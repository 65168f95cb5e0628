"""Peak memory of a training step, each variant in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.harness import Table
from benchmarks.scenario import Scenario, build, step_of, torchvision_step
from benchmarks.step import DETECTORS, TWIN, VARIANTS, describe

BOXES = (1, 10, 100)


def memory(base: Scenario) -> Table:
    """Peak of every variant, then of the full method and its twin as boxes grow."""
    peaks = {name: peak_of(name, base) for name in (*VARIANTS, *DETECTORS)}
    rows = [(name, base.boxes, peak, peak / peaks[TWIN]) for name, peak in peaks.items()]
    for boxes in BOXES:
        twin, full = (peak_of(name, replace(base, boxes=boxes)) for name in (TWIN, "full"))
        rows.append(("full", boxes, full, full / twin))
    note = (
        "Peak resident memory of three steps, less what the process held before it built anything."
    )
    columns = ("step", "boxes per image", "peak [MB]", "/ twin")
    return Table(f"Peak memory, {describe(base)}", columns, rows, note)


def peak_of(variant: str, scenario: Scenario) -> float:
    """MB that a fresh process needs for three steps."""
    task = json.dumps(
        {"variant": variant, "threads": torch.get_num_threads(), "scenario": asdict(scenario)}
    )
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", task],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(found.stdout.splitlines()[-1])


def main() -> None:
    """The fresh process: print its peak."""
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    before = peak_mb()
    variant, scenario = task["variant"], Scenario(**task["scenario"])
    with tempfile.TemporaryDirectory() as folder:
        trainer, batch = build(scenario, VARIANTS.get(variant, "boxinst"), Path(folder))
        if variant in DETECTORS:
            action = torchvision_step(DETECTORS[variant], trainer, batch)[1]
            del trainer
        else:
            action = step_of(trainer, batch)
        for _ in range(3):
            action()
    print(peak_mb() - before)


def peak_mb() -> float:
    """Peak resident memory of this process; `getrusage` would count its parent's, from before the exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()

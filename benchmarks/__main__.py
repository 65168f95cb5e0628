"""Measures speed and memory, prints the tables and writes one JSON file: `make bench`, or `python -m benchmarks`.

Times are CPU seconds of this process, so that other load on the machine matters little; ratios matter, since each
comes from variants that take turns.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.around import evaluation, loading, reading, saving
from benchmarks.commands import fixed_costs
from benchmarks.domains import domains
from benchmarks.gpu.run import PARTS as GPU_PARTS
from benchmarks.gpu.run import measure_gpu
from benchmarks.harness import Table, write_json
from benchmarks.jitter import jitter
from benchmarks.memory import memory
from benchmarks.outcome import DATA, SETS, outcome
from benchmarks.quality import quality
from benchmarks.results import fill_block
from benchmarks.scenario import Scenario
from benchmarks.step import growth, methods, stages, switches
from benchmarks.store import late_store
from benchmarks.sweeps import many_trials
from benchmarks.tracking_cost import tracking_cost
from boxseg.files.writing import write_atomic

Part = Callable[[Path, argparse.Namespace], list[Table]]


def main() -> None:
    """Parse the arguments, measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*PARTS, "gpu"],
        default=USUAL,
        help="parts to measure; gpu is all that a GPU should show, and runs alone",
    )
    parser.add_argument(
        "--quick", action="store_true", help="small networks: the machinery, not the numbers"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measured repetitions of each step")
    parser.add_argument("--trials", type=int, default=1000, help="trials of the simulated sweep")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--output", type=Path, help="default: runs/bench.json, of gpu runs/gpu.jsonl"
    )
    parser.add_argument(
        "--page",
        type=Path,
        help="Markdown file whose blocks <!-- PART --> … <!-- end --> are filled",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help="of each run of outcome and domains (20), or of gpu as a whole (8)",
    )
    gpu = parser.add_argument_group("gpu")
    gpu.add_argument(
        "--parts", nargs="+", choices=GPU_PARTS, default=list(GPU_PARTS), help="what to show"
    )
    labels = parser.add_argument_group(
        "outcome, quality, jitter",
        "hours: `boxseg label` on photographs that are not part of the project",
    )
    labels.add_argument("--data", type=Path, default=DATA, help="folder of the data sets")
    labels.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    labels.add_argument("--seeds", type=int, default=3, help="runs of each set")
    labels.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of all runs"
    )
    labels.add_argument(
        "--folder", type=Path, default=Path("runs/outcome"), help="gets labels and runs; kept"
    )
    options = parser.parse_args()
    is_gpu = options.only == ["gpu"]
    if "gpu" in options.only and not is_gpu:
        parser.error(
            "--only gpu: name no other part, as its processes are copies of an unused one"
        )
    options.output = options.output or Path("runs/gpu.jsonl" if is_gpu else "runs/bench.json")
    options.minutes = options.minutes or (8 if is_gpu else 20)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        if is_gpu:
            _show_gpu(Path(folder), options)
        else:
            _measure(Path(folder), options)
    print(f"written to {options.output}")


def _show_gpu(folder: Path, options: argparse.Namespace) -> None:
    report = measure_gpu(
        options.output,
        folder,
        parts=options.parts,
        minutes=options.minutes,
        data=options.data,
    )
    if options.page is not None:
        page = fill_block(options.page.read_text(), "gpu", report.markdown())
        write_atomic(options.page, page)


def _measure(folder: Path, options: argparse.Namespace) -> None:
    """The parts one after the other; each is printed and written when it is done."""
    for name in options.only:
        began = time.monotonic()
        tables = PARTS[name](folder, options)
        text = "\n\n".join(table.markdown() for table in tables)
        print(text, end="\n\n", flush=True)
        write_json(options.output, name, tables, seconds=time.monotonic() - began)
        if options.page is not None:
            write_atomic(options.page, fill_block(options.page.read_text(), name, text))


def scenarios(options: argparse.Namespace) -> list[Scenario]:
    """The sizes that methods are compared at."""
    return [
        Scenario(size, small=options.quick)
        for size in ((64, 128) if options.quick else (256, 512))
    ]


PARTS: dict[str, Part] = {
    "methods": lambda folder, o: [
        methods(scenario, folder, o.rounds) for scenario in scenarios(o)
    ],
    "stages": lambda folder, o: [
        stages(scenario, folder, o.rounds)
        for scenario in (*scenarios(o), replace(scenarios(o)[0], boxes=100))
    ],
    "switches": lambda folder, o: [switches(scenarios(o)[0], folder, o.rounds)],
    "memory": lambda _, o: [memory(scenario) for scenario in scenarios(o)],
    "growth": lambda folder, o: [growth(scenarios(o)[0], folder, o.rounds)],
    "around": lambda folder, o: [
        loading(folder, 8 if o.quick else 64),
        evaluation(folder, 4),
        saving(folder, o.rounds, small=o.quick),
        reading(folder, 1000 if o.quick else 100_000),
    ],
    "fixed": lambda folder, o: [fixed_costs(folder, 60 if o.quick else 300)],
    "tracking": lambda folder, o: [tracking_cost(folder, o.rounds, 8 if o.quick else 40)],
    "store": lambda folder, o: late_store(
        folder, images=16 if o.quick else 200, steps=o.rounds + 1, small=o.quick
    ),
    "trials": lambda folder, o: many_trials(folder, 20 if o.quick else o.trials),
    "outcome": lambda _, o: outcome(o),
    "quality": lambda _, o: quality(o),
    "jitter": lambda _, o: jitter(o),
    "domains": lambda _, o: domains(o),
}
"""What each part measures, by its name on the command line."""
USUAL = [
    name for name in PARTS if name not in {"store", "outcome", "quality", "jitter", "domains"}
]
"""Parts that take minutes, on data of the project's own, without the packages of the tests."""


if __name__ == "__main__":
    main()

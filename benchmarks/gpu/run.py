"""The parts in order of worth, each in a process of its own; the file is complete after each table."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks.gpu.children import ChildError, in_child
from benchmarks.gpu.correctness import correctness
from benchmarks.gpu.evaluation import evaluation
from benchmarks.gpu.learning import learning
from benchmarks.gpu.loading import loading
from benchmarks.gpu.machine import look_around
from benchmarks.gpu.place import NO_TIME, Place
from benchmarks.gpu.speed import speed
from benchmarks.harness import Table
from boxseg.files.writing import write_atomic
from orchestration.record.origin import git_state

Part = Callable[[Place], Iterator[Table]]
PARTS: dict[str, tuple[Part, float]] = {
    "correctness": (correctness, 0.15),
    "speed": (speed, 0.40),
    "loader": (loading, 0.10),
    "evaluation": (evaluation, 0.10),
    "learning": (learning, 0.25),
}
"""What is shown, the most important first, and its share of the time; what one leaves, the next have."""
LEAST_S = 3
"""A part is not begun with less time than this."""


@dataclass
class Report:
    """What has been found so far; every change is written at once."""

    path: Path
    found: dict[str, str]
    tables: dict[tuple[str, str], Table] = field(default_factory=dict)
    """By part and title."""

    def add(self, part: str, table: Table) -> None:
        """Take in a table, or more rows of one."""
        self.tables[part, table.title] = table
        self.write()

    def write(self) -> None:
        """A line of JSON for what was found of the machine, then one for each table."""
        lines = [self.found]
        lines += [{"part": part, **asdict(table)} for (part, _), table in self.tables.items()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    def markdown(self) -> str:
        """All of it as a page shows it."""
        machine = ", ".join(f"{name}: {value}" for name, value in self.found.items())
        return "\n\n".join([machine, *(table.markdown() for table in self.tables.values())])


def measure_gpu(
    path: Path, folder: Path, *, parts: Sequence[str], minutes: float, data: Path
) -> Report:
    """Measure all that a GPU should show, or the same in small on a CPU.

    Args:
        path: The file, JSON lines: first the machine, then the tables.
        folder: For pictures and checkpoints.
        parts: Names in PARTS.
        minutes: Time for all of it; with the start of Python and torch it takes half a minute more.
        data: Folder of the data sets that are not part of the project.
    """
    began = time.monotonic()
    end = began + 60 * minutes
    (machine,) = in_child(look_around, seconds=60)
    state = {"date": time.strftime("%Y-%m-%d %H:%M"), "minutes": f"{minutes:g}", **git_state()}
    report = Report(path, machine | state)
    report.write()
    print(", ".join(f"{name}: {value}" for name, value in report.found.items()), flush=True)
    device = "cuda"
    if machine["gpu"] == "no GPU":
        device = "cpu"
        torch.set_num_threads(1)  # several would wait for one another on a busy machine
    left = sum(PARTS[name][1] for name in parts)
    for name in parts:
        part, share = PARTS[name]
        now = time.monotonic()
        until = now + (end - now) * share / left
        left -= share
        own = folder / name
        own.mkdir()
        run_part(report, name, part, Place(device, own, data, until))
    return report


def run_part(report: Report, name: str, part: Part, place: Place) -> None:
    """Measure one part and print it; what is missing is told in a table of its own."""
    began = time.monotonic()
    if place.left_s() < LEAST_S:
        _tell(report, name, NO_TIME)
    else:
        try:
            # a part watches its time itself; this is for one that hangs
            for table in in_child(part, place, seconds=place.left_s() + LEAST_S):
                report.add(name, table)
        except ChildError as error:
            _tell(report, name, str(error))
    print(f"\n## {name}, {time.monotonic() - began:.0f} s\n", flush=True)
    own = [table.markdown() for (of_part, _), table in report.tables.items() if of_part == name]
    print("\n\n".join(own), flush=True)


def _tell(report: Report, name: str, why: str) -> None:
    report.add(name, Table(f"{name}: not complete", ("what", "why"), [(name, why)]))

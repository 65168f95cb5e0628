"""What all benchmarks share: taking turns, CPU and wall seconds, tables and the JSON file."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boxseg.files.writing import write_atomic
from orchestration.record.origin import cpu_name, git_state


@dataclass(frozen=True)
class Table:
    """One result: rows of cells under a title."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    note: str = ""

    def markdown(self) -> str:
        """The table as a page shows it."""
        lines = [
            f"**{self.title}**",
            "",
            f"| {' | '.join(self.columns)} |",
            "|---" * len(self.columns) + "|",
        ]
        lines += [f"| {' | '.join(map(show, row))} |" for row in self.rows]
        return "\n".join(lines + (["", self.note] if self.note else []))


@dataclass
class Times:
    """Seconds of each repetition of one action."""

    cpu: list[float] = field(default_factory=list)
    """Of all threads of this process: what a step costs whatever else the machine does."""
    wall: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """CPU seconds."""
        return statistics.median(self.cpu)

    @property
    def spread(self) -> str:
        """Least and most CPU seconds."""
        return f"{min(self.cpu):.3g} – {max(self.cpu):.3g}"


def take_turns(actions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Times]:
    """Times of all actions, each run once unmeasured and then once in every round, so that load hits all alike."""
    times = {name: Times() for name in actions}
    for action in actions.values():
        action()
    for _ in range(rounds):
        for name, action in actions.items():
            with timed(times[name]):
                action()
    return times


@contextmanager
def timed(times: Times) -> Iterator[None]:
    """Add what happens inside to `times`."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    times.cpu.append(time.process_time() - cpu)
    times.wall.append(time.perf_counter() - wall)


def ratio(times: Times, reference: Times) -> float:
    """Median of the ratios of CPU seconds round by round: a change of the machine between rounds falls out."""
    return statistics.median(
        own / other for own, other in zip(times.cpu, reference.cpu, strict=True)
    )


def show(cell: Any) -> str:
    """A cell as text; numbers with three digits."""
    if isinstance(cell, float):
        return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.3g}"
    return str(cell)


def write_json(path: Path, part: str, tables: list[Table], *, seconds: float) -> None:
    """Put the tables of one part into the file, with what they were measured on; other parts stay as they are."""
    import torch  # not above: what measures a sweep's driver must not load it

    content = json.loads(path.read_text()) if path.exists() else {}
    content[part] = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        **git_state(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": round(seconds),
        "tables": [
            {
                "title": table.title,
                "rows": [dict(zip(table.columns, row, strict=True)) for row in table.rows],
            }
            for table in tables
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(content, indent=1))

"""Where and how long a part may measure, and what becomes of a measurement that fails."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")

NEEDS_GPU = "skipped: needs a GPU"
NO_TIME = "not run: time"
OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class Place:
    """What all parts need to know; made before the first of them starts."""

    device: str
    """As torch names it."""
    folder: Path
    """For pictures and checkpoints; gone afterwards."""
    data: Path
    """Folder of the data sets that are not part of the project."""
    until: float
    """When the part has to end, in seconds of `time.monotonic`."""

    @property
    def has_gpu(self) -> bool:
        return self.device != "cpu"

    def left_s(self) -> float:
        """Time that the part still has [s]."""
        return self.until - time.monotonic()


def attempt(place: Place, measure: Callable[[], T], *, needs_s: float = 0.0) -> T | str:
    """A measurement, or why there is none.

    Args:
        place: Its time is looked at before.
        measure: What is called.
        needs_s: Time that has to be left to begin [s].
    """
    if place.left_s() < needs_s:
        return NO_TIME
    try:
        return measure()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return OUT_OF_MEMORY
    except Exception as error:  # whatever it is, the rest shall be measured
        return explain(error)


def explain(error: BaseException) -> str:
    """An error in one line of a table."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"failed: {type(error).__name__}: {(lines or [''])[0][:200]}".replace("|", "/")


@dataclass
class Steps:
    """What repetitions of one action took."""

    ms: list[float]
    peak_mb: float
    """Most memory that the action's own tensors took; 0 on a CPU."""

    @property
    def median_ms(self) -> float:
        return statistics.median(self.ms)

    def ratio(self, other: Steps) -> float:
        """Median of the ratios round by round: a change of the machine between rounds falls out."""
        return statistics.median(a / b for a, b in zip(self.ms, other.ms, strict=True))


def in_turns(
    place: Place, actions: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, Steps | str]:
    """All actions, each twice unmeasured and then once in every round.

    In place of one that fails stands why; the others go on.
    """
    found: dict[str, Steps | str] = {}
    for name, action in actions.items():
        found[name] = attempt(place, partial(_first_calls, place, action))
    for _ in range(rounds):
        if place.left_s() < 0:
            break
        for name, steps in found.items():
            if isinstance(steps, Steps):
                _add_round(place, found, name, actions[name])
    return {
        name: NO_TIME if isinstance(steps, Steps) and not steps.ms else steps
        for name, steps in found.items()
    }


def _add_round(
    place: Place, found: dict[str, Steps | str], name: str, action: Callable[[], object]
) -> None:
    steps = found[name]
    took = attempt(place, lambda: milliseconds(place, action), needs_s=-60)  # rounds end together
    if isinstance(steps, Steps) and isinstance(took, float):
        steps.ms.append(took)
    else:
        found[name] = took if isinstance(took, str) else steps


def _first_calls(place: Place, action: Callable[[], object]) -> Steps:
    action()
    with memory(place) as peak:
        action()
    return Steps([], peak[0])


@contextmanager
def memory(place: Place) -> Iterator[list[float]]:
    """Peak memory of what happens inside, less what was held before [MB], once it has ended."""
    peak = [0.0]
    if not place.has_gpu:
        yield peak
        return
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    yield peak
    torch.cuda.synchronize()
    peak[0] = (torch.cuda.max_memory_allocated() - before) / 1e6


def milliseconds(place: Place, action: Callable[[], object]) -> float:
    """Time of one call, by events of the GPU where there is one [ms]."""
    if not place.has_gpu:
        began = time.perf_counter()
        action()
        return 1000 * (time.perf_counter() - began)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    action()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)

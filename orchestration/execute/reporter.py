"""Receives the reports of a training process: writes them to the run's folder and passes evaluations on to Ray."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from boxseg.engine.events import EvalReport, StartReport, StepReport
from boxseg.errors import ConfigError
from orchestration.config.spec import COSTS
from orchestration.execute.payload import Payload, Send
from orchestration.record.pulse import Pulse
from orchestration.record.run_folder import RunFolder, only_finite
from orchestration.store.courier import Courier

if TYPE_CHECKING:
    from torch import Tensor

STOP_POLL_S = 0.5
"""Time between two looks whether a stop was requested [s]."""


class PeakMemory:
    """The most memory that this process has held since this object was made, without its children."""

    def __init__(self) -> None:
        # resets Linux's peak, as one process may train several trials one after the other
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()

    def read(self) -> float:
        """Memory of the GPU that torch has held [MiB], where it uses one; else resident memory of the process."""
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            return float(torch.cuda.max_memory_reserved()) / 2**20
        with contextlib.suppress(OSError, ValueError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 2**10  # in KiB
        return float(psutil.Process().memory_info().rss) / 2**20


@dataclass
class FileReporter:
    """Writes reports to the run's folder (rank 0) and passes evaluations to Ray (every rank).

    The evaluation of the last step is passed on by `finish`, so that a trial scheduler cannot end a run between its
    last evaluation and its end. On a machine whose files the driver does not see, an evaluation is passed on only once
    its checkpoint is in the store; training goes on meanwhile.
    """

    folder: RunFolder
    payload: Payload
    rank: int = 0
    workers: int = 1
    """Processes that train together."""
    send: Send | None = None
    taken_away: Callable[[], bool] = lambda: False
    """Says whether a machine will soon be taken away; has to be called equally often on every rank."""
    courier: Courier | None = None
    """Carries the folder's files to a driver that does not see them."""
    _memory: PeakMemory = field(default_factory=PeakMemory)
    _pulse: Pulse | None = None
    _unreported: list[tuple[Path, dict[str, float]]] = field(default_factory=list)
    """Evaluations that Ray does not know yet, oldest first: checkpoint, and the metrics for Ray."""
    _looked: float = 0.0
    _stop: bool = False

    def on_start(self, report: StartReport) -> None:
        """Record what the run took over from other weights."""
        if self.rank == 0:
            self.folder.update(start=str(report))

    def on_best(self, step: int, metrics: dict[str, float]) -> None:
        """Record the best evaluation that there is a checkpoint of."""
        if self.rank == 0:
            self.folder.keep_best(step, metrics)

    def on_update(self, step: int, metrics: dict[str, Tensor]) -> None:
        """Write now and then how fast it goes and what the losses are, for people who watch."""
        if self.rank == 0:
            self._pulse = self._pulse or Pulse(self.folder, first_step=step)
            self._pulse.beat(step, metrics)

    def on_step(self, report: StepReport) -> None:
        """Write the means of some steps."""
        if self.rank == 0:
            self.folder.report(report.step, report.metrics)
        self._report_to_ray()

    def on_eval(self, report: EvalReport) -> None:
        """Write an evaluation and tell Ray.

        Raises:
            ConfigError: the metric that decides is not reported, as data or settings leave it out. A metric of
                `health/` may be missing: it needs masks that the network may only find later.
        """
        self._check_reported(report)
        if self.rank == 0:
            write = self.folder.report_again if report.is_repeated else self.folder.report
            write(report.step, report.metrics | self._costs(report), is_best=report.is_best)
        if report.step < self.payload.spec.train.steps:
            # now, as later evaluations may be better
            metrics = self._for_ray(report.step, report.metrics)
            self._unreported.append((report.checkpoint, metrics))
            self._report_to_ray()

    def _report_to_ray(self) -> None:
        """Pass on evaluations whose checkpoints are safe: a scheduler may end this process as soon as it knows them."""
        while self._unreported and self._is_safe(self._unreported[0][0]):
            self._pass_on(self._unreported.pop(0)[1])

    def _is_safe(self, checkpoint: Path) -> bool:
        """Whether a checkpoint outlives this machine; the same on every rank."""
        if self.payload.driver_link is None:
            return True
        is_safe = self.courier is None or self.courier.has_sent(checkpoint)
        if self.workers == 1:
            return is_safe
        from boxseg.engine.distributed import gather_objects

        return gather_objects(is_safe)[0]  # rank 0 has the courier that sends

    def _check_reported(self, report: EvalReport) -> None:
        sweep = self.payload.sweep
        if sweep is None:
            return
        known = {*report.metrics, *self.folder.stored().metrics, *COSTS}
        for name in (sweep.metric, *sweep.against):
            if name not in known and not name.startswith("health/"):
                setting = "sweep.against" if name in sweep.against else "sweep.metric"
                names = ", ".join(sorted(report.metrics))
                raise ConfigError(f"{setting} {name} is not reported; choose one of {names}")

    def _costs(self, report: EvalReport) -> dict[str, float]:
        """Time and memory that training took so far, if the sweep asks for them; what a repeated evaluation had."""
        sweep = self.payload.sweep
        wanted = [] if sweep is None else [name for name in sweep.against if name in COSTS]
        costs: dict[str, float] = {}
        if wanted and report.is_repeated:
            for earlier in self.folder.reports():
                costs |= earlier.metrics if earlier.step == report.step else {}
        elif wanted:
            costs["cost/memory_mb"] = self._memory.read()
            if report.step_s is not None:
                costs["cost/step_s"] = report.step_s
        return {name: costs[name] for name in wanted if name in costs}

    def should_stop(self) -> bool:
        """True once somebody asked for a stop in the run's folder, or a machine will be taken away."""
        due = time.monotonic() - self._looked > STOP_POLL_S
        # with several workers at every call: all ranks have to ask together, or some would wait for this one
        leaving = (due or self.workers > 1) and self.taken_away()
        if due and not self._stop:
            self._stop = self.folder.stop_requested()
            self._looked = time.monotonic()
        return self._stop or leaving

    def finish(self, step: int, metrics: dict[str, float]) -> None:
        """Write the end: after all checkpoints are in the store, and before Ray knows, which may kill this process.

        Raises:
            StorageError: the driver does not see this folder, and the store does not answer, so this is no end.
        """
        if self.courier is not None:
            self.courier.flush()
        if self.rank == 0:
            self.folder.finish("finished")
        if self.courier is not None:
            self.courier.tell()
        for _, earlier in self._unreported:
            self._pass_on(earlier)
        self._pass_on(self._for_ray(step, metrics))

    def _for_ray(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """The metrics for Ray; the deciding one is that of the best evaluation so far, or worse than any value."""
        finite = only_finite(metrics)
        if self.payload.sweep is not None:
            criterion = self.payload.criterion
            finite[criterion.metric] = criterion.value_or_worst(
                criterion.value(self.folder.stored().best)
            )
        return {**finite, "step": step}

    def _pass_on(self, metrics: dict[str, float]) -> None:
        if self.send is not None:
            self.send(metrics)

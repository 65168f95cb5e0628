"""Reports evaluations once their files are written, which happens in the background of the next steps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from boxseg.engine.distributed import gather_objects, world_size
from boxseg.engine.events import EvalReport, Reporter

Publish = Callable[[], EvalReport]
"""Lets the written checkpoint count, and says what to report."""


class Outbox:
    """Holds at most one evaluation whose files are being written.

    A context: leaving it waits for the writing, and reports unless one of several processes fails alone.

    Args:
        reporter: Told of every evaluation, in order, on every rank.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._waiting: Future[Publish] | None = None

    def __enter__(self) -> Outbox:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None or world_size() == 1:  # a barrier needs all processes
                self.deliver()
        finally:
            self._writer.shutdown()

    def add(self, write: Callable[[], Publish]) -> None:
        """Write files in the background; an earlier evaluation is delivered first."""
        self.deliver()
        self._waiting = self._writer.submit(write)

    def deliver(self, *, wait: bool = True) -> None:
        """Report the evaluation that waits; all processes call this at the same steps.

        Args:
            wait: Wait for its files. Otherwise it is reported only if they are there already, and not at all where
                several processes train: one cannot know whether the files of the others are there.

        Raises:
            StorageError: its files could not be written.
        """
        waiting = self._waiting
        if waiting is None or not (wait or (world_size() == 1 and waiting.done())):
            return
        # Before a fault of the writer is raised: leaving the context would otherwise raise it again.
        self._waiting = None
        # The first call waits for the writer; the second publishes what it wrote, in this thread.
        report = waiting.result()()
        gather_objects(None)  # a barrier: no process reports before the files are there
        self._reporter.on_eval(report)

"""Commands of boxseg as real processes that start at once: forked from one that has loaded what they need.

A command started afresh spends seconds on loading torch and MLflow before it does anything; a drill starts dozens.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

LOADED = (
    "torch",
    "boxseg.build",
    "boxseg.predict",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "cv2",
    "opentelemetry.sdk.metrics",
    "mlflow",
    "mlflow.tracing.processor.base_mlflow",
    "mlflow.utils.search_logged_model_utils",
    "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store",
    "orchestration.cli.app",
    "orchestration.planning.preflight",
    "orchestration.execute.run",
    "warm",
)
ENVIRONMENT = {
    # MLflow loads pyarrow, whose allocator would start a thread
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "NO_COLOR": "1",
    "OMP_NUM_THREADS": "1",
}
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(list(LOADED))


@dataclass(frozen=True)
class Command:
    """A command that runs or has ended, in a session of its own."""

    process: BaseProcess
    output: Path
    """What it writes to stdout and stderr."""

    @property
    def pid(self) -> int:
        """Its process."""
        assert self.process.pid is not None
        return self.process.pid

    @property
    def ended(self) -> bool:
        """Whether its process has gone."""
        return self.process.exitcode is not None

    def signal(self, number: int) -> None:
        """Send a signal to it and to all that it has started, unless it has ended."""
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def kill(self) -> None:
        """End it as `kill -9` does, and wait until it has gone."""
        self.signal(signal.SIGKILL)
        self.process.join()

    def kill_alone(self) -> None:
        """The same, but leave what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.process.join()

    def wait(self, limit_s: float = 60.0) -> int:
        """Its exit code once it has ended by itself; -9 after `kill`.

        Raises:
            TimeoutError: it takes longer; it has been killed.
        """
        self.process.join(limit_s)
        if not self.ended:
            self.kill()
            raise TimeoutError(f"no end within {limit_s:g} s; it wrote:\n{self.text()[-3000:]}")
        assert self.process.exitcode is not None
        return self.process.exitcode

    def text(self) -> str:
        """What it has written so far."""
        return self.output.read_text() if self.output.exists() else ""


def start(
    arguments: Sequence[str | Path], output: Path, environment: Mapping[str, str] | None = None
) -> Command:
    """Run `boxseg ARGUMENTS` in a process of its own, on one CPU core.

    Args:
        arguments: As on the command line.
        output: Gets stdout and stderr, below what is there.
        environment: Variables besides those of this process.
    """
    texts = [str(each) for each in arguments]
    process = FORKS.Process(target=_run, args=(texts, output, dict(environment or {})))
    with _environment():
        process.start()
    return Command(process, output)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """What the process is started with that loads everything; the first command starts it."""
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run(arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    threads = list(Path(f"/proc/{os.getppid()}/task").iterdir())
    assert len(threads) == 1, (
        "a lock that another thread holds while this process is forked would stay locked"
    )
    os.setsid()
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    from orchestration.cli.app import main

    sys.argv = ["boxseg", *arguments]
    try:
        main(arguments)
    finally:
        atexit._run_exitfuncs()  # as a process does that was not forked

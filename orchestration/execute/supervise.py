"""Watches a run, or a sweep with its trials, until it ends: signals, requests to stop, tracking, and the end itself."""

from __future__ import annotations

import contextlib
import itertools
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from boxseg.errors import ConfigError, StorageError
from boxseg.files.writing import naming_storage_faults
from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import RunSpec
from orchestration.execute.notify import notify_end
from orchestration.record.failures import Failure, error_of
from orchestration.record.find_runs import sound_status
from orchestration.record.journal import DAMAGED
from orchestration.record.records import DamagedError
from orchestration.record.run_folder import RunFolder, RunStatus, Status
from orchestration.store.courier import DriverLink
from orchestration.store.desk import read_records, write_records
from orchestration.store.places import shown
from orchestration.store.syncer import Syncer
from orchestration.tracking.tracker import Tracker

logger = logging.getLogger("boxseg.sweep")

POLL_S = 0.25
"""Time between two looks at a run [s]."""
COLLECT_S = 1.0
"""Time between two looks at what processes on other machines have reported [s]."""
GRACE_S = 60.0
"""How long a run may take to save its state after a request to stop [s]."""
END_S = 10.0
"""How long Ray may take to end once no run is waited for any more [s]."""


@contextlib.contextmanager
def supervise(
    folder: RunFolder, spec: RunSpec, syncer: Syncer | None = None
) -> Iterator[Supervisor]:
    """Mark a run or sweep as running; on leaving the block, write how it ended, track that and notify.

    With a `syncer`, leaving waits until the run's store has everything. Signals are heard until then; one that comes
    after the run has ended only sets `RunFolder.stop_requested`.

    Raises:
        StorageError: the folder is gone or cannot be written, so that the end is not written either; or the store
            refuses it.
        BoxSegError: what ended the run or sweep.
        KeyboardInterrupt: a second signal came.
    """
    with StopSignals() as signals:
        try:
            with (
                contextlib.nullcontext() if syncer is None else syncer,
                _supervised(folder, spec, signals, syncer) as supervisor,
            ):
                yield supervisor
            if signals.has_received():
                folder.request_stop()  # for commands that would go on with what was trained, such as `label`
        finally:
            # last, once the store has everything or has refused it
            notify_end(folder, spec, sys.exc_info()[1])


@contextlib.contextmanager
def _supervised(
    folder: RunFolder, spec: RunSpec, signals: StopSignals, syncer: Syncer | None
) -> Iterator[Supervisor]:
    tracker = Tracker(spec.storage.absolute(), spec.name, uri=spec.tracking.uri, logs=folder.logs)
    folder.start()
    tracker.add(folder)
    tracker.start()
    try:
        yield Supervisor(folder, tracker, signals, syncer)
        _end(folder, signals)
    except KeyboardInterrupt:
        folder.finish("interrupted")
        raise
    except Exception as error:
        check_present(folder)
        status = folder.finish("failed", error)
        # without a failure the run had ended well before, and only ending Ray went wrong
        if status.failure is not None:
            raise error_of(status.failure) from error
    finally:
        # waits for little: an end that could not be written cannot be tracked either
        tracker.close(**({} if _end_is_written(folder) else {"timeout_s": 1.0}))


def _end(folder: RunFolder, signals: StopSignals) -> None:
    """Write the end, unless the training process has."""
    if folder.stored().is_final:
        return
    if signals.has_received():
        folder.finish("interrupted")
    else:
        reason = f"training ended without a result; {folder.logs} may tell why"
        folder.finish("failed", Failure("BoxSegError", reason))


def _end_is_written(folder: RunFolder) -> bool:
    try:
        return folder.stored().is_final
    except ConfigError:
        return False


def check_present(folder: RunFolder) -> None:
    """Refuse to go on with a run or sweep whose folder was moved away or unmounted meanwhile.

    Raises:
        StorageError: the folder is gone.
    """
    with naming_storage_faults(folder.path):
        folder.status_path.stat()


class Supervisor:
    """Watches what was started, and opens and closes the trials of a sweep."""

    def __init__(
        self,
        folder: RunFolder,
        tracker: Tracker,
        signals: StopSignals,
        syncer: Syncer | None = None,
    ) -> None:
        """`folder` is that of the run or sweep."""
        self.folder = folder
        self._syncer = syncer
        self.signals = signals
        self.trials: dict[str, RunFolder] = {}
        """Open trials, by the name of their folder."""
        self.is_over = False
        """Whether Tune has to end although not all trials were run."""
        self.driver_link: DriverLink | None = None
        """How processes on machines that do not see this one's folder reach it."""
        self._collected_at = 0.0
        self._collecting = threading.Lock()
        self._tracker = tracker
        self._is_sweep = folder.stored().kind == "sweep"
        self._first: dict[str, RunStatus] = {}
        """State of each open trial before it began."""

    def open(self, trial: RunFolder, status: RunStatus, spec: RunSpec) -> None:
        """Make the folder of a trial, or reopen it, and have it tracked."""
        trial.open(status, dump_resolved(spec))
        self.trials[trial.path.name] = trial
        self._first[trial.path.name] = status
        self._tracker.add(trial)

    def close(self, trial: RunFolder, status: Status, failure: Failure | None = None) -> RunStatus:
        """Write the end of an open trial, unless its own process has; returns the end that counts."""
        self.collect_records()
        if self.driver_link is not None:
            self.driver_link.desk.clear(shown(trial.path))
        del self.trials[trial.path.name]
        first = self._first.pop(trial.path.name)
        try:
            end = trial.finish(status, failure)
        except DamagedError as error:  # what somebody wrote into one trial ends no other
            trial.status_path.rename(trial.path / DAMAGED)
            trial.create(first, trial.config_path.read_text(encoding="utf-8"))
            end = trial.finish("failed", error)
        self._tracker.settle(trial)
        return end

    def track_again(self, trial: RunFolder) -> None:
        """Track a trial again whose end has changed."""
        self._tracker.add(trial)

    @contextlib.contextmanager
    def reached_by(self, driver_link: DriverLink | None) -> Iterator[None]:
        """While Ray runs, let processes on other machines reach this one; None: they see its folder."""
        self.driver_link = driver_link
        try:
            yield
            self.collect_records()
        finally:
            self.driver_link = None

    def hand_over(self, run: RunFolder) -> None:
        """Give a run's records to the process on another machine that will train it."""
        if self.driver_link is not None:
            self.driver_link.desk.lay(shown(run.path), read_records(run.path))

    def collect_records(self) -> None:
        """Write down what processes on other machines have reported."""
        if self.driver_link is None:
            return
        with self._collecting:  # one at a time, so that changes are written in their order
            runs = {shown(run.path): run for run in (self.folder, *self.trials.values())}
            try:
                changes_by_run = self.driver_link.desk.collect()
            except Exception as error:  # if the cluster is lost, Ray raises that elsewhere
                logger.info("the desk does not answer: %s", error)
                return
            for address, changes in changes_by_run.items():
                if address in runs:
                    write_records(runs[address], changes)

    def watch(self, work: Callable[[], Any], look: Callable[[], None]) -> None:
        """Work in a thread until it ends; after a signal, until all runs have saved their state or take too long.

        Args:
            work: Trains.
            look: Called now and then, and at the end.

        Raises:
            StorageError: the folder is gone, or another driver took it over; `work` is not waited for.
            Exception: what `work` raised.
        """
        ticks = _run_beside(work)
        for _ in ticks:
            check_present(self.folder)
            if self._syncer is not None and self._syncer.is_taken_over:
                raise StorageError(
                    f"{shown(self.folder.path)}: another driver has taken it over, as this one was cut off from the "
                    "store; nothing more goes there from here"
                )
            if time.monotonic() - self._collected_at > COLLECT_S:
                self.collect_records()
                self._collected_at = time.monotonic()
            look()
            if self.signals.has_received() and self._have_stopped():
                break
        self.is_over = True
        for _ in itertools.islice(ticks, round(END_S / POLL_S)):
            pass  # gives Tune or Ray Train time to end
        look()

    def _have_stopped(self) -> bool:
        """Ask the run and all open trials to stop; returns whether there is nothing left to wait for."""
        trials = list(self.trials.values())
        for folder in [self.folder, *trials]:
            folder.request_stop()
        if self.driver_link is not None:
            self.driver_link.desk.stop()
        # a single run ends its work by itself; Tune would go on with other trials
        return self.signals.overdue or (self._is_sweep and all(map(_is_done, trials)))


def _is_done(trial: RunFolder) -> bool:
    """Whether a trial has ended by its status; one whose folder cannot be read counts as ended."""
    status = sound_status(trial.path)
    return status is None or status.is_final


def _run_beside(work: Callable[[], Any]) -> Iterator[None]:
    """Run `work` in a thread, so that the main thread hears signals; yields every `POLL_S` until it has ended.

    Raises:
        BaseException: what `work` raised.
    """
    raised: list[BaseException] = []

    def target() -> None:
        try:
            work()
        except BaseException as error:  # raised again below
            raised.append(error)

    thread = threading.Thread(target=target, name="training", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        yield
    if raised:
        raise raised[0]


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks for a stop: Ctrl-C, a machine that shuts down, a terminal that closes."""


class StopSignals:
    """Context that catches `SIGNALS`: the first is noted, a second raises KeyboardInterrupt.

    Outside the main thread, where Python delivers no signals, it hears nothing.
    """

    def __init__(self) -> None:
        self._received_at: float | None = None
        self._previous: dict[int, Any] = {}

    def has_received(self) -> bool:
        """True once a signal has come."""
        return self._received_at is not None

    @property
    def overdue(self) -> bool:
        """True once the signal came so long ago that saved states are not waited for any more."""
        return self._received_at is not None and time.monotonic() - self._received_at > GRACE_S

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # ignored under `nohup`, where work is meant to go on without its terminal
                is_nohup = number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN
                if not is_nohup:
                    self._previous[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def stop(self) -> None:
        """Act as if a signal had come, unless one has already."""
        if self._received_at is None:
            self._received_at = time.monotonic()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.has_received():
            raise KeyboardInterrupt
        self.stop()

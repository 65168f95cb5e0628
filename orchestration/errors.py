"""Errors of orchestration, and the exit code that each error gives the command line."""

from __future__ import annotations

from enum import IntEnum

from boxseg.errors import (
    BoxSegError,
    CollapseError,
    ConfigError,
    DataError,
    NonFiniteLossError,
    StorageError,
)


class ResourceError(BoxSegError):
    """The machine or cluster has too little of something, or cannot be reached."""


class PreemptedError(BoxSegError):
    """The machine was taken away; the run goes on from its last checkpoint when it is started again."""


class StoppedError(BoxSegError):
    """A signal asked for a stop, and what was done is kept."""


class ExitCode(IntEnum):
    """What a command's exit status means."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    """Usage or configuration error."""
    DATA = 3
    """A data set cannot be used as it is."""
    SOME_TRIALS_FAILED = 4
    """The sweep finished and has a best trial, but some trials failed."""
    RESOURCES = 5
    """Too few resources (memory and disk too), or the cluster is not reachable or refused."""
    DIVERGED = 6
    """A loss was not finite, or the masks collapsed to their boxes."""
    # EX_TEMPFAIL of sysexits.h: try again later.
    INTERRUPTED = 75
    """Interrupted with the state saved; run again with `--resume`."""
    # 128 + SIGINT, as shells have it.
    KILLED = 130
    """Interrupted twice, or in a command that has no state: nothing was saved beyond the last checkpoint."""


def exit_code_for(error: BaseException) -> ExitCode:
    """The exit code of a command that ended with this error; FAILED for all that have none of their own."""
    codes: dict[type[BaseException], ExitCode] = {
        ConfigError: ExitCode.USAGE,
        DataError: ExitCode.DATA,
        ResourceError: ExitCode.RESOURCES,
        StorageError: ExitCode.RESOURCES,
        PreemptedError: ExitCode.INTERRUPTED,
        StoppedError: ExitCode.INTERRUPTED,
        NonFiniteLossError: ExitCode.DIVERGED,
        CollapseError: ExitCode.DIVERGED,
    }
    return next((code for kind, code in codes.items() if isinstance(error, kind)), ExitCode.FAILED)

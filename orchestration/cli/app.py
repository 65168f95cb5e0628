"""The `boxseg` command: its subcommands, and one place where errors become a message and an exit code."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import logging
import os
import re
import signal
import sys
import traceback
from pathlib import Path

import typer

from boxseg.errors import BoxSegError, ConfigError
from boxseg.files.writing import STORAGE_FAULTS
from orchestration.cli import config, data, doctor, evaluate, jobs, label, recipe, runs, train, ui
from orchestration.cli.output import say
from orchestration.errors import ExitCode, exit_code_for
from orchestration.proxies import spare_loopback
from orchestration.secret_text import hide
from orchestration.terminal import OnceFilter, SafeFormatter, printable

# pydantic would look for plugins in all packages, which takes a while
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "true")

PATH_FAULTS = {
    errno.EEXIST: "a folder is needed there, and this is a file; name another",
    errno.ENOTDIR: "a folder is needed there, and this is a file; name another",
    errno.EISDIR: "a file is needed there, and this is a folder; name another",
    errno.EACCES: "this account may not use it; change its rights, or name another",
    errno.EPERM: "this account may not use it; change its rights, or name another",
    errno.ENAMETOOLONG: "the name is longer than the disk allows; name another",
}
"""Errors of paths that commands are given -> what is wrong and the way out."""

app = typer.Typer(
    help="Instance masks from bounding boxes: BoxSeg training with Ray and MLflow.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help comes back at once
    context_settings={"help_option_names": ["-h", "--help"]},
)
# commands import torch, Ray and MLflow themselves, as late as possible, because these take seconds to load
app.command()(train.train)
app.command()(train.sweep)
app.command()(label.label)
app.command()(recipe.recipe)
app.command()(evaluate.predict)
app.command("eval")(evaluate.evaluate)
app.command()(evaluate.export)
app.add_typer(data.app, name="data")
app.add_typer(runs.app, name="runs")
app.command()(runs.report)
app.add_typer(config.app, name="config")
app.add_typer(jobs.app, name="jobs")
app.command()(ui.ui)
app.command()(doctor.doctor)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    _open_closed_outputs()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # names may have letters that the terminal cannot show
            stream.reconfigure(errors="stand_in")
    _hear_all_signals_as_ctrl_c()
    code = run(sys.argv[1:] if arguments is None else arguments)
    _end_by_signals_with(code)
    sys.exit(code)


def _open_closed_outputs() -> None:
    """Print nowhere where stdout or stderr was closed before we began; Python has None there."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # takes the lowest free number, which no other file should have
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115


def _hear_all_signals_as_ctrl_c() -> None:
    """Make SIGTERM and SIGHUP end a command as Ctrl-C does: with a message, and with all that it started ended too."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # under `nohup` the work is meant to go on without its terminal
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def _end_by_signals_with(code: int) -> None:
    """Keep the exit code even if a signal comes while Python cleans up, which takes a while."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: os._exit(code))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; errors raised on purpose become a message without traceback."""
    # before anything opens a connection
    spare_loopback()
    try:
        Path.cwd()
    except FileNotFoundError:
        say("error: the current folder is gone; change to another, and run the command again")
        return ExitCode.USAGE
    try:
        _refuse_empty(arguments)
        # in standalone mode click would print errors its own way and end the process
        result = app(arguments, prog_name="boxseg", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        result = ExitCode.KILLED
    except (BrokenPipeError, SystemExit) as end:
        # the reader of our output has left, as `head` does; click turns that into an exit
        if not isinstance(end.__context__ or end, BrokenPipeError):
            raise
        # Python flushes stdout once more at its end, and would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.DONE
    except Exception as error:
        return _report(error)
    # typer turns a KeyboardInterrupt into an exit; commands that save their state on a signal end by themselves
    if result == ExitCode.KILLED:
        say("interrupted")
    # click hands the exit code of a typer.Exit back as the result
    return result if isinstance(result, int) else ExitCode.DONE


def _refuse_empty(arguments: list[str]) -> None:
    """Refuse arguments without text: as a path, each would mean the current folder.

    Raises:
        ConfigError: names the option, or the word in front.
    """
    for before, argument in itertools.pairwise(["boxseg", *arguments]):
        if re.fullmatch(r"(--[\w-]+=)?", argument):
            place = argument or f"the argument after {before}"
            raise ConfigError(
                f"{place}: is empty, as a shell variable that is not set; give it a value, or leave it out"
            )


def _report(error: Exception) -> int:
    """Print the error that ended a command, with a traceback if it is a fault of ours; returns the exit code."""
    # a usage error of click, of which typer may bring its own copy
    if hasattr(error, "show") and hasattr(error, "exit_code"):
        usage = io.StringIO()
        error.show(file=usage)
        typer.echo(printable(hide(usage.getvalue())), err=True, nl=False)
        return int(error.exit_code)
    if isinstance(error, BoxSegError):
        say(f"error: {error}")
        return exit_code_for(error)
    if isinstance(error, MemoryError):
        way_out = "use smaller files or images, or a machine with more"
        say(f"error: there is not enough memory for that; {way_out}")
        return ExitCode.RESOURCES
    if isinstance(error, OSError) and (code := _report_os_error(error)) is not None:
        return code
    typer.echo(printable(hide("".join(traceback.format_exception(error)))), err=True)
    say(f"error: {type(error).__name__}: {error} (unexpected; details above)")
    return ExitCode.FAILED


def _report_os_error(error: OSError) -> ExitCode | None:
    """Print an error of a path or disk and return its exit code; None for what may be a fault of ours."""
    # an error of writing to stdout names no file
    place, number = error.filename or "output", error.errno or 0
    if number in PATH_FAULTS and error.filename is not None:
        say(f"error: {place}: {error.strerror}; {PATH_FAULTS[number]}")
        return ExitCode.USAGE
    # a folder that is gone may be a fault of ours
    if number in STORAGE_FAULTS and number != errno.ENOENT:
        say(
            f"error: {place}: {error.strerror}; {STORAGE_FAULTS[number]}, then run the command again"
        )
        return ExitCode.RESOURCES
    return None


def _print_version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata  # takes a while to load

        typer.echo(f"boxseg {importlib.metadata.version('boxseg')}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False,
        "--version",
        callback=_print_version,
        is_eager=True,
        help="Print the version and exit.",
    ),
) -> None:
    # on stderr, as stdout is for results alone
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(SafeFormatter("%(levelname)s %(name)s: %(message)s"))
    handler.addFilter(OnceFilter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])

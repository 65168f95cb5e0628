"""Text on its way to a terminal: names and messages from files cannot move its cursor or hide what stands there."""

from __future__ import annotations

import codecs
import contextlib
import errno
import logging
import os
import re
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.secret_text import hide

if TYPE_CHECKING:
    from rich.console import Console

UNSAFE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
"""Control characters but the end of a line, marks that turn the direction of text, and halves of characters."""
LINE_END = re.compile("\n(?! )")
"""Lines of a message that go on are indented; another end of a line comes from a name."""

DATA_LOGGERS = ("boxseg.coco.", "orchestration.planning.")
"""Names of the loggers that report what is odd about data start with these."""
STAND_INS = {"★": "*", "…": ".", "±": "~", "–": "-", "→": ">", "·": ".", "×": "x", "²": "2"}
"""One letter for another, so that columns stay in their place."""


def stand_in(error: UnicodeError) -> tuple[str | bytes, int]:
    """What replaces letters that an encoding lacks: similar ones, or else their code, as in `\\u4e2d`."""
    if isinstance(error, UnicodeEncodeError):
        letter = error.object[error.start]
        if letter in STAND_INS:
            return STAND_INS[letter], error.start + 1
        error.end = error.start + 1
    return codecs.backslashreplace_errors(error)


codecs.register_error("stand_in", stand_in)


def printable(text: str) -> str:
    """The text with control characters written as their code, as in `\\x1b`; ends of lines stay."""
    return UNSAFE.sub(_code, text)


def one_message(text: str) -> str:
    """`printable` for a message, which ends lines only where the next is indented; secrets are hidden."""
    return LINE_END.sub(r"\\n", printable(hide(text)))


def one_line(text: str) -> str:
    """`printable` for what stays in one line."""
    return printable(text).replace("\n", r"\n")


def safe_json(text: str) -> str:
    """JSON that means the same and is safe to look at: unsafe characters are escaped, as in `\\u009b`."""
    return UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def leave_gone_terminal() -> None:
    """Print nowhere from now on if the terminal has gone, so that the command ends as it would have."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # no file at all
            number = stream.fileno()
            try:
                termios.tcgetattr(number)
            except termios.error as error:  # another one: a file or a pipe
                if error.args[0] == errno.EIO:
                    # Under the same number, so that code which holds the stream already prints nowhere too.
                    os.dup2(os.open(os.devnull, os.O_WRONLY), number)


class SafeFormatter(logging.Formatter):
    """Writes records of a logger so that they are safe to look at."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_message(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return printable(hide(super().formatException(ei)))


class OnceFilter(logging.Filter):
    """Lets each warning about data through once: a command may check the same data for several purposes."""

    def __init__(self) -> None:
        super().__init__()
        self._here = f"{Path.cwd()}/"
        self._shown: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(DATA_LOGGERS):
            return True
        # one file may be named as it was typed, and as it is in a recipe
        text = record.getMessage().replace(self._here, "")
        is_new = text not in self._shown
        self._shown.add(text)
        return is_new


def safe_console(**options: Any) -> Console:
    """A console of rich, with these options, that makes all text `printable`."""
    from rich.console import Console  # takes a while to load
    from rich.text import Text

    class SafeConsole(Console):
        def render_str(self, text: str, **style: Any) -> Text:
            return super().render_str(printable(text), **style)

        def on_broken_pipe(self) -> None:
            # the BrokenPipeError; rich would end the process, and close stdout whichever pipe it was
            raise

    return SafeConsole(markup=False, emoji=False, **options)


def _code(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"

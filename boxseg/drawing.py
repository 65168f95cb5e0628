"""Pictures are extras: any name from a file can be drawn, and a picture that fails stops nothing else."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxseg.files.writing import write_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LETTERS = 40
"""Most letters of a name in a picture."""

logger = logging.getLogger("boxseg.drawing")
_told: set[Path] = set()


def visible(text: str) -> str:
    """A text without invisible characters, except ends of lines: controls, marks of direction, halves of letters."""
    lines = text.split("\n")
    # line by line: most have nothing to hide, and a line with an embedded picture has a million letters
    return "\n".join(line if line.isprintable() else _without_hidden(line) for line in lines)


def _without_hidden(line: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in line)


def label(text: object, letters: int = LETTERS) -> str:
    """A name as a picture shows it: one line of what is visible, at most `letters` long."""
    shown = " ".join(visible(str(text)).split()) or "(no name)"
    return shown if len(shown) <= letters else f"{shown[: letters - 1]}…"


def figure_label(text: object, letters: int = LETTERS) -> str:
    """`label` for matplotlib, to which text between two `$` is a formula, and `_` at the start a curve without name."""
    shown = label(text, letters).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as `write_picture` does."""

    def save(file: Any, format: str) -> None:
        with warnings.catch_warnings():
            # a box is drawn in place of the letter
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(file, format=format)

    return write_picture(path, save)


@contextlib.contextmanager
def drawing(path: Path) -> Iterator[Path]:
    """A context that makes a file which nothing depends on: errors are logged once for each file, and not raised.

    That includes faults of the storage: checkpoints and metrics decide whether the run can go on.
    """
    try:
        yield path
    except Exception as error:  # not KeyboardInterrupt, so that a user can still stop
        if path not in _told:
            _told.add(path)
            logger.warning("%s is left out: %s: %s", path, type(error).__name__, label(error, 500))
            logger.debug("where it failed", exc_info=True)

"""How commands print: data on stdout, messages on stderr, tables as aligned text."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import typer

from orchestration.terminal import one_line, one_message, safe_console, safe_json

GAP = 2
"""Columns between two cells of a table."""
CELL_LETTERS = 2000
"""Longer values are cut in tables: a name can be as long as a book."""


def say(message: str) -> None:
    """Print a message for people on stderr; once stderr has no reader, the command goes on silently."""
    with contextlib.suppress(OSError):
        typer.echo(one_message(message.rstrip()), err=True)


def warn(sentences: Iterable[str]) -> None:
    """Print warnings on stderr, a line each."""
    for sentence in sentences:
        say(f"warning: {sentence}")


def print_line(line: object) -> None:
    """A line of a result, on stdout."""
    typer.echo(one_line(str(line)))


def print_json(value: Any) -> None:
    """A result as JSON, on stdout; dataclasses become objects, numbers that are not finite become null."""
    from pydantic_core import to_jsonable_python  # takes a while to load

    plain = to_jsonable_python(value, inf_nan_mode="null", fallback=str)
    typer.echo(safe_json(json.dumps(plain, indent=2, ensure_ascii=False)))


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[Any]], *, first_to_go: Sequence[str] = ()
) -> None:
    """Aligned columns on stdout; None as a dash. The first column is never shortened.

    Args:
        headings: Of the columns.
        rows: A value for each heading.
        first_to_go: Headings of columns that are left out, one after the other, if the terminal is too narrow for all;
            a message names them.
    """
    from rich.cells import cell_len  # takes a while to load
    from rich.table import Table

    cells = [[_cell(value) for value in row] for row in rows]
    wide = [
        max(map(cell_len, (heading, *column)))
        for heading, *column in zip(headings, *cells, strict=True)
    ]
    gone: list[str] = []
    # files and pipes have room for all
    for heading in first_to_go if sys.stdout.isatty() else ():
        if (
            sum(wide[place] + GAP for place, name in enumerate(headings) if name not in gone) - GAP
            > safe_console().width
        ):
            gone.append(heading)
    table = Table(box=None, pad_edge=False)
    kept = [place for place, heading in enumerate(headings) if heading not in gone]
    for place in kept:
        table.add_column(
            _cell(headings[place]),
            no_wrap=place == 0,
            min_width=wide[0] if place == 0 else None,
            overflow="fold",  # ids differ in their end
        )
    for row in cells:
        table.add_row(*(row[place] for place in kept))
    print_rich(table)
    if gone:
        say(f"left out, as the terminal is narrow: {', '.join(gone)} (--json has all)")


def print_rich(drawn: Any) -> None:
    """Something that rich draws, on stdout; outside a terminal without colours, and wide enough for whole lines."""
    safe_console(width=None if sys.stdout.isatty() else 10_000).print(drawn)


def print_pairs(pairs: Sequence[tuple[str, Any]]) -> None:
    """Names and values, one line each, on stdout."""
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        print_line(f"{name:<{width}}  {_cell(value)}".rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    text = one_line(f"{value:.4g}" if isinstance(value, float) else str(value))
    return text if len(text) <= CELL_LETTERS else f"{text[:CELL_LETTERS]}…"

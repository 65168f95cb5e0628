"""How commands print: data on stdout, messages on stderr, tables as aligned text."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

Experiment = Annotated[Path, typer.Argument(metavar="EXP.yaml", help="Experiment file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, as in qam.k_top=10; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Storage = Annotated[Path, typer.Option("--storage", metavar="DIR", help="Folder that holds the runs.")]


def say(message: str) -> None:
    """A message for people, on stderr."""
    typer.echo(message, err=True)


def print_json(value: Any) -> None:
    """A result as JSON, on stdout; dataclasses become objects, numbers that are not finite become null."""
    typer.echo(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Aligned columns on stdout; numbers to the right, None as a dash."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(line[column]) for line in [list(headings), *cells]) for column in range(len(headings))]
    right = [bool(rows) and all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(headings))]
    typer.echo(_line(headings, widths, right))
    for line in cells:
        typer.echo(_line(line, widths, right))


def print_rich(drawn: Any) -> None:
    """Something that rich draws, on stdout; outside a terminal without colours, and wide enough for whole lines."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200).print(drawn)


def print_pairs(pairs: Sequence[tuple[str, Any]]) -> None:
    """Names and values, one line each, on stdout."""
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        typer.echo(f"{name:<{width}}  {_cell(value)}".rstrip())


def show_duration(seconds: float) -> str:
    """`48 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def show_bytes(count: float) -> str:
    """`35 MB`, `1.2 GB`."""
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _line(cells: Sequence[str], widths: list[int], right: list[bool]) -> str:
    parts = (f"{c:>{w}}" if to_right else f"{c:<{w}}" for c, w, to_right in zip(cells, widths, right, strict=True))
    return "  ".join(parts).rstrip()

"""How commands print: data on stdout, messages on stderr, tables as aligned text."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

Experiment = Annotated[Path, typer.Argument(metavar="EXP.yaml", help="Experiment file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, as in qam.k_top=10; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.")]
Storage = Annotated[Path, typer.Option("--storage", metavar="DIR", help="Folder that holds the runs.")]


def say(message: str) -> None:
    """A message for people, on stderr."""
    typer.echo(message, err=True)


def print_json(value: Any) -> None:
    """A result as JSON, on stdout; dataclasses become objects, numbers that are not finite become null."""
    from pydantic_core import to_json  # takes a while to load

    typer.echo(to_json(value, indent=2, inf_nan_mode="null", fallback=str))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Aligned columns on stdout; None as a dash."""
    from rich.table import Table  # takes a while to load

    table = Table(*headings, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(_cell, row))
    print_rich(table)


def print_rich(drawn: Any) -> None:
    """Something that rich draws, on stdout; outside a terminal without colours, and wide enough for whole lines."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 10_000, markup=False, emoji=False).print(drawn)


def print_pairs(pairs: Sequence[tuple[str, Any]]) -> None:
    """Names and values, one line each, on stdout."""
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        typer.echo(f"{name:<{width}}  {_cell(value)}".rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)

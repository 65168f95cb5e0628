"""How commands print: data on stdout, messages on stderr, tables as aligned text."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from boxseg.errors import ConfigError
from orchestration.terminal import one_line, one_message, safe_console, safe_json

DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def _known_device(name: str) -> str:
    """Refuse what is none, without torch; whether this machine has it shows where it is used."""
    if DEVICE.fullmatch(name) is None:
        raise ConfigError(f"--device {name}: use auto, cpu, cuda or cuda:N")
    return name


Device = Annotated[
    str,
    typer.Option(
        "--device", callback=_known_device, help="auto, cpu, cuda or cuda:N; auto takes a GPU if there is one."
    ),
]
Experiment = Annotated[Path, typer.Argument(metavar="EXP.yaml", help="Experiment file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, as in qam.k_top=10; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Storage = Annotated[Path, typer.Option("--storage", metavar="DIR", help="Folder that holds the runs.")]

CELL_LETTERS = 2000
"""What a table shows of one value: a name can be as long as a book."""


def say(message: str) -> None:
    """A message for people, on stderr; if nobody reads it any more, the command goes on all the same."""
    with contextlib.suppress(OSError):
        typer.echo(one_message(message.rstrip()), err=True)


def print_line(line: object) -> None:
    """A line of a result, on stdout."""
    typer.echo(one_line(str(line)))


def print_json(value: Any) -> None:
    """A result as JSON, on stdout; dataclasses become objects, numbers that are not finite become null."""
    from pydantic_core import to_jsonable_python  # takes a while to load

    plain = to_jsonable_python(value, inf_nan_mode="null", fallback=str)
    typer.echo(safe_json(json.dumps(plain, indent=2, ensure_ascii=False)))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Aligned columns on stdout; None as a dash."""
    from rich.table import Table  # takes a while to load

    table = Table(*map(_cell, headings), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(_cell, row))
    print_rich(table)


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

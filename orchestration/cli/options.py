"""Arguments and options that several commands share."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from boxseg.errors import ConfigError
from orchestration.store.places import storage_folder

DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
RUN_HELP = "Trained run: its id, folder or name (its newest), best:SWEEP, or a checkpoint folder."


def _known_device(name: str) -> str:
    """Refuse what is no name of a device; whether this machine has it is checked where it is used, with torch."""
    if DEVICE.fullmatch(name) is None:
        raise ConfigError(f"--device {name}: use auto, cpu, cuda or cuda:N")
    return name


def require_room(option: str, folder: Path) -> None:
    """Refuse a folder that cannot be made or written to, before anything heavy starts.

    Raises:
        ConfigError: a file is in the way, this account may not write there, or no folder can be made there.
        OSError: the disk is mounted read-only.
    """
    place = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not place.is_dir():
        raise ConfigError(
            f"{option} {folder}: {place} is a file, and a folder is needed there; name another"
        )
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(place))
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{option} {folder}: this account may not write in {place}; name another folder, or change the rights"
        )
    try:
        # only a trial shows that /proc and the like take no folder
        Path(tempfile.mkdtemp(dir=place)).rmdir()
    except FileNotFoundError as error:
        raise ConfigError(
            f"{option} {folder}: no folder can be made in {place} ({error.strerror}); name another"
        ) from error


def require_new(place: Path, kind: str = "folder") -> None:
    """Refuse an `--output` that exists already.

    Raises:
        ConfigError: names it and the way out.
    """
    if place.exists():
        raise ConfigError(f"--output {place}: is there already; name another {kind}, or remove it")


def flag(name: str, help: str) -> Any:
    """A switch that is off unless it is given."""
    return typer.Option(False, name, help=help)


def optional(metavar: str, help: str) -> Any:
    """An option with a value, None unless it is given; named after its parameter."""
    return typer.Option(None, metavar=metavar, help=help)


def storage_option(help: str) -> Any:
    """`--storage`, a folder or the address of an object store, which becomes the folder of its mirror."""
    return typer.Option(
        metavar="DIR|URI", parser=lambda text: storage_folder(str(text)), help=help
    )


Experiment = Annotated[Path, typer.Argument(metavar="EXP.yaml", help="Experiment file.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help=RUN_HELP)]
Target = Annotated[
    Path,
    typer.Argument(metavar="EXP.yaml|FILE.json", help="Experiment file, or COCO instance file."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Device = Annotated[
    str,
    typer.Option(
        callback=_known_device, help="auto, cpu, cuda or cuda:N; auto takes a GPU if there is one."
    ),
]
Refine = Annotated[
    bool,
    typer.Option(
        "--refine",
        help="Look closer at objects in images that the network sees shrunk, and find their outlines as `label` does: "
        "better masks, about a third of a second more for each object on a CPU core.",
    ),
]
Images = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Image folder of FILE.json; default: beside it, or ../images."
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(metavar="M", help="Time that it may take; default: what suits this machine."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a setting, as in qam.k_top=10; may be repeated.",
    ),
]
Storage = Annotated[Path, storage_option("Folder that holds the runs, or s3://BUCKET/PREFIX.")]

"""`boxseg recipe`: an experiment file for a data set and this machine, with the reason for each value."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from boxseg.errors import ConfigError
from orchestration.cli.options import (
    AsJson,
    Device,
    Images,
    Minutes,
    Overrides,
    optional,
    require_new,
)
from orchestration.cli.output import print_json, print_line, say
from orchestration.words import show_duration


def recipe(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="COCO file with the boxes.")],
    minutes: Minutes = None,
    output: Path | None = optional("FILE.yaml", "Write it there."),
    images: Images = None,
    overrides: Overrides = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Choose settings for a data set and this machine, and print them as an experiment file for train and sweep.

    Nothing is trained: the time of an update is estimated.
    """
    from boxseg.data.fingerprint import take_fingerprint
    from boxseg.files.writing import write_atomic
    from boxseg.formats.find import find_source
    from orchestration.planning.recipe import Machine, check_minutes, make_recipe, name_after

    if data.is_dir():
        way_out = "boxseg data import makes one of other formats, and boxseg label takes YOLO and VOC folders itself"
        raise ConfigError(f"{data}: is a folder, and a recipe is for a COCO file; {way_out}")
    if output is not None:
        require_new(output, "file")
    check_minutes(minutes)
    source = find_source(data, images)
    fingerprint = take_fingerprint(source)
    chosen = make_recipe(
        source,
        fingerprint,
        Machine.here(device=device),
        name=name_after(data),
        minutes=minutes,
        overrides=overrides or [],
    )
    chosen.spec()  # for its errors
    if output is not None:
        write_atomic(output, chosen.text())
    if as_json:
        print_json({**chosen.as_json(), "output": output})
    elif output is None:
        for line in chosen.text().splitlines():
            print_line(line)
    else:
        print_line(output)
    # on stderr: what is on stdout is an experiment file
    say(
        f"{chosen.steps} updates, about {show_duration(chosen.times.total_s)}; {chosen.times.basis}"
    )

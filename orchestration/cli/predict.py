"""`boxseg predict`: boxes, masks and scores for images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from boxseg.errors import DataError
from orchestration.cli.open_run import Run, open_predictor
from orchestration.cli.output import AsJson, Device, Storage, print_json, print_pairs, say


def predict(
    run: Run,
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE…", help="Image files, folders or quoted patterns.")],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Where to write.")] = Path("predictions"),
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Leave out detections below this score.")] = 0.3,
    overlays: Annotated[bool, typer.Option("--overlays/--no-overlays", help="Draw a PNG of each image.")] = True,
    device: Device = "auto",
    storage: Storage = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Find objects in images: boxes, masks and scores as COCO JSON, and pictures of them.

    Writes predictions.coco.json and overlays/ to --output; --json prints the former. Damaged files are named and
    skipped.
    """
    from boxseg.files import write_atomic
    from boxseg.predict_files import find_image_files, join_coco, predict_files
    from orchestration.progress import counted

    paths = find_image_files(sources)
    predictor = open_predictor(run, storage=storage, device=device)
    output.mkdir(parents=True, exist_ok=True)
    parts = []
    found = predict_files(predictor, paths, min_score=min_score, overlays=output / "overlays" if overlays else None)
    for _, result in counted(found, len(paths), what="images"):
        if isinstance(result, DataError):
            say(f"skipped: {result}")
        else:
            parts.append(result)
    if not parts:
        raise DataError(f"none of {len(paths)} files could be read")
    content = join_coco(predictor, parts)
    path = output / "predictions.coco.json"
    write_atomic(path, json.dumps(content))
    if as_json:
        print_json(content)
    else:
        counts = [("images", len(parts)), ("skipped", len(paths) - len(parts))]
        print_pairs([*counts, ("detections", len(content["annotations"])), ("written", path)])

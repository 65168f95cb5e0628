"""`boxseg predict`: boxes, masks and scores for images and videos."""

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
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE…", help="Images, folders of images, videos, quoted patterns.")
    ],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Where to write.")] = Path("predictions"),
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Leave out detections below this score.")] = 0.3,
    overlays: Annotated[bool, typer.Option("--overlays/--no-overlays", help="Draw a PNG of each image.")] = True,
    every: Annotated[int, typer.Option("--every", min=1, metavar="N", help="Of a video, every N-th frame.")] = 1,
    device: Device = "auto",
    storage: Storage = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Find objects in images: boxes, masks and scores as COCO JSON, and pictures of them.

    Writes predictions.coco.json and overlays/ to --output; --json prints the former. Damaged files are named and
    skipped.
    """
    from boxseg.files import write_atomic
    from boxseg.predict_files import count_pictures, find_image_files, join_coco, predict_files, read_pictures
    from orchestration.progress import counted

    paths = find_image_files(sources)
    total = count_pictures(paths, every=every)
    predictor = open_predictor(run, storage=storage, device=device)
    output.mkdir(parents=True, exist_ok=True)
    parts, skipped = [], 0
    pictures = read_pictures(paths, every=every)
    found = predict_files(predictor, pictures, min_score=min_score, overlays=output / "overlays" if overlays else None)
    for _, result in counted(found, total, what="images"):
        if isinstance(result, DataError):
            say(f"skipped: {result}")
            skipped += 1
        else:
            parts.append(result)
    if not parts:
        raise DataError(f"none of {len(paths)} files could be read; name image files (see `boxseg predict --help`)")
    content = join_coco(predictor, parts)
    path = output / "predictions.coco.json"
    write_atomic(path, json.dumps(content))
    if as_json:
        print_json(content)
    else:
        counts = [("images", len(parts)), ("skipped", skipped)]
        print_pairs([*counts, ("detections", len(content["annotations"])), ("written", path)])

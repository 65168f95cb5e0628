"""`boxseg eval`, `boxseg predict`, `boxseg export`: what a trained run is used for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from boxseg.config.criterion import MIN_SCORE
from boxseg.errors import ConfigError, DataError
from orchestration.cli.options import (
    AsJson,
    Device,
    Images,
    Refine,
    Run,
    Storage,
    optional,
    require_room,
)
from orchestration.cli.output import print_json, print_pairs, print_table, say, warn

if TYPE_CHECKING:
    from boxseg.data.dataset import CocoBoxes
    from boxseg.evaluation.ap import CocoScores, ImageResult

WORST = 20
ENDINGS = {"onnx": "onnx", "torchscript": "pt", "safetensors": "safetensors"}


def evaluate(
    run: Run,
    data: Path = typer.Option(..., metavar="FILE.json|URI", help="COCO file to evaluate on."),
    images: Images = None,
    output: Path = typer.Option(Path("evaluation"), metavar="DIR", help="Folder of pictures."),
    refine: Refine = False,
    device: Device = "auto",
    storage: Storage = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Measure box, mask and boundary AP by class and size, and draw the worst images.

    Without drawn masks, it measures how well masks fit the given boxes instead of mask AP.
    """
    from boxseg.formats.find import find_source
    from orchestration.planning.label_input import open_detections, read_data
    from orchestration.store.named import fetch_named
    from orchestration.store.places import named

    require_room("--output", output)
    data, images = fetch_named(data, images, say)
    found_data = find_source(data, images)
    # refuses a file that cannot be read, before torch is loaded
    classes = read_data(found_data, to_evaluate=True)
    file = open_detections(run, classes=classes, data=data, storage=storage)
    if file is not None and refine:
        raise ConfigError(f"--refine: {run} is a file; only what a run finds can be refined")

    # torch is loaded from here on
    from boxseg.data.dataset import CocoBoxes
    from boxseg.evaluation.objects import find_objects, read_objects
    from boxseg.evaluation.pictures import draw_worst
    from boxseg.evaluation.scoring import score_detections
    from orchestration.execute.trained import open_predictor
    from orchestration.record.progress import counted

    source = CocoBoxes(found_data, train=False)
    if file is not None:
        detections = read_objects(file, source)
    else:
        predictor = open_predictor(run, storage=storage, device=device, refine=refine)
        objects = find_objects(predictor, source)
        detections = list(counted(objects, len(source), what="images"))
    scores = score_detections(source, detections)
    shown: dict[str, Any] = {"run": run, "data": named(data), "images": len(source)}
    shown |= _measured(source, detections, scores)
    if scores.image_ap:
        output.mkdir(parents=True, exist_ok=True)
        worst = draw_worst(source, detections, scores, output / "worst.png", count=WORST)
        shown["worst"] = str(worst)
    if not shown["has_masks"]:
        what_there_is = "there is no mask AP, only how well masks fit the given boxes"
        say(f"not all boxes have drawn masks: {what_there_is}")
    if as_json:
        # metrics on top as well, where `train --json` has them
        print_json(shown | shown["metrics"])
        return
    print_table(("metric", "value"), list(shown["metrics"].items()))
    columns = list(next(iter(shown["classes"].values()), {}))
    rows = [(name, *map(of.get, columns)) for name, of in shown["classes"].items()]
    print_table(("class", *columns), rows)
    if "worst" in shown:
        print_pairs([("worst images", shown["worst"])])


def _measured(
    source: CocoBoxes, detections: list[ImageResult], scores: CocoScores
) -> dict[str, Any]:
    """Metrics under the names of a run's evaluations, and those of each class."""
    from boxseg.coco.classes import distinct_names
    from boxseg.evaluation.scoring import box_fit_metrics

    has_masks = "mask" in scores.precision
    metrics = scores.metrics | ({} if has_masks else box_fit_metrics(source, detections))
    by_name = {f"val/{name}": value for name, value in metrics.items()}
    names = distinct_names(source.categories)
    classes = {name: scores.of_class(label) for label, name in enumerate(names)}
    return {
        "has_masks": has_masks,
        "metrics": by_name,
        "classes": {name: values for name, values in classes.items() if values},
    }


def predict(
    run: Run,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE…",
            help="Images, folders of images, quoted patterns, s3://BUCKET/PREFIX.",
        ),
    ],
    output: Path = typer.Option(Path("predictions"), metavar="DIR", help="Where to write."),
    min_score: float | None = typer.Option(
        None,
        min=0,
        max=1,
        help="Leave out detections below this score; if left out, the score that finds boxes best in the run's "
        f"evaluation, or {MIN_SCORE}.",
    ),
    overlays: bool = typer.Option(
        True, "--overlays/--no-overlays", help="Draw a PNG of each image."
    ),
    refine: Refine = False,
    device: Device = "auto",
    storage: Storage = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Find objects in images: boxes, masks and scores as COCO JSON, and pictures of them.

    Writes predictions.coco.json and overlays/ to --output, replacing those of an earlier call; --json also prints the
    content of predictions.coco.json. Damaged files are named and skipped.
    """
    from boxseg.coco.picture_checks import describe_turned
    from boxseg.files.images import describe_paged, find_image_files
    from boxseg.files.writing import write_atomic
    from orchestration.record.find_runs import find_trained
    from orchestration.store.named import fetch_pictures

    require_room("--output", output)
    paths = find_image_files([file for source in sources for file in fetch_pictures(source, say)])
    find_trained(storage, run)  # for its errors, before torch is loaded
    warn(filter(None, (describe_paged(paths), describe_turned(paths))))

    from boxseg.predict.files import (
        join_coco,
        overlay_name,
        predict_files,
        read_pictures,
        remove_earlier,
    )
    from orchestration.execute.trained import open_predictor
    from orchestration.record.progress import counted

    predictor = open_predictor(run, storage=storage, device=device, refine=refine)
    output.mkdir(parents=True, exist_ok=True)
    parts, skipped = [], 0
    results = predict_files(
        predictor,
        read_pictures(paths),
        min_score=predictor.min_score if min_score is None else min_score,
        overlays=output / "overlays" if overlays else None,
    )
    for result in counted(results, len(paths), what="images"):
        if isinstance(result, DataError):
            say(f"skipped: {result}")
            skipped += 1
        else:
            parts.append(result)
    if not parts:
        raise DataError(
            f"none of {len(paths)} files could be read; name image files (see `boxseg predict --help`)"
        )
    content = join_coco(predictor, parts)
    path = output / "predictions.coco.json"
    write_atomic(path, json.dumps(content))
    drawn = {overlay_name(Path(part["image"]["file_name"]), part["image"]["id"]) for part in parts}
    remove_earlier(output / "overlays", drawn if overlays else ())
    if as_json:
        print_json(content)
    else:
        counts = [("images", len(parts)), ("skipped", skipped)]
        print_pairs([*counts, ("detections", len(content["annotations"])), ("written", path)])


def export(
    run: Run,
    form: Literal["onnx", "torchscript", "safetensors"] = typer.Option(
        ..., "--format", help="What to write."
    ),
    output: Path | None = optional("FILE", "File to write; model.onnx and the like if left out."),
    storage: Storage = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Write the network of a run for use without boxseg, and check that the file does what the network does.

    A JSON file beside it names classes, sizes and the mean colour; docs/deploy.md shows how to use both.
    """
    from orchestration.record.find_runs import find_trained

    find_trained(storage, run)  # for its errors, before torch is loaded

    from boxseg.predict.export import export_network
    from orchestration.execute.trained import open_predictor

    path = output or Path(f"model.{ENDINGS[form]}")
    about = export_network(open_predictor(run, storage=storage, device="cpu"), form, path)
    if about["tile"]:
        say(
            f"warning: the run looks at large images in tiles of {about['tile']} px; the exported network does not cut "
            "tiles by itself (docs/deploy.md)"
        )
    if as_json:
        print_json(about | {"file": path})
        return
    shown = [name for name in ("difference", "seconds", "torch_seconds") if name in about]
    print_pairs([("file", path), *((name.replace("_", " "), about[name]) for name in shown)])

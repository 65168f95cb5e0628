"""`boxseg eval`: how good a run is on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestration.cli.data import Images, find_source
from orchestration.cli.open_run import Run, open_predictor
from orchestration.cli.output import AsJson, Device, Storage, print_json, print_pairs, print_table, say

if TYPE_CHECKING:
    from boxseg.data.coco import CocoBoxes
    from boxseg.engine.evaluate import CocoScores, ImageResult

WORST = 20


def evaluate(
    run: Run,
    data: Annotated[Path, typer.Option("--data", metavar="FILE.json", help="COCO file to evaluate on.")],
    images: Images = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="RUN|FILE.json", help="Another run, or a COCO file with masks.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder of pictures.")] = Path("evaluation"),
    device: Device = "auto",
    storage: Storage = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Measure box, mask and boundary AP by class and size, and draw the worst images.

    Where masks are not drawn, how well masks fit the given boxes is told instead; that is no mask AP.
    """
    from boxseg.data.coco import CocoBoxes
    from boxseg.engine.pictures import draw_worst
    from boxseg.scoring import mask_agreement, score_detections

    source = CocoBoxes(find_source(data, images), train=False)
    names = [run] if against is None else [against, run]  # a file that cannot be read is told at once
    found = [_detections(name, source, device=device, storage=storage) for name in names][::-1]
    scores = [score_detections(source, each) for each in found]
    results = [_told(source, *each) for each in zip(found, scores, strict=True)]
    shown: dict[str, Any] = {"run": run, "data": str(data), "images": len(source), **results[0]}
    if against is not None:
        shown["against"] = {"name": against, **results[1], "agreement": mask_agreement(source, *found)}
    if scores[0].image_ap:
        shown["worst"] = str(draw_worst(source, found[0], scores[0], output / "worst.png", count=WORST))
    if not results[0]["has_masks"]:
        say("not all boxes have drawn masks: there is no mask AP, only how well masks fit the given boxes")
    if as_json:
        print_json(shown | shown["metrics"])
    else:
        _print(shown)


def _detections(name: str, source: CocoBoxes, *, device: str, storage: Path) -> list[ImageResult]:
    """Detections of a run, or those that a JSON file holds."""
    from boxseg.scoring import find_objects, read_objects
    from orchestration.progress import counted

    if name.endswith(".json"):
        return read_objects(Path(name), source)
    predictor = open_predictor(name, storage=storage, device=device)
    return list(counted(find_objects(predictor, source), len(source), what="images"))


def _told(source: CocoBoxes, found: list[ImageResult], scores: CocoScores) -> dict[str, Any]:
    """Metrics under the names of a run's evaluations, and those of each class."""
    from boxseg.scoring import box_fit_metrics

    has_masks = "mask" in scores.precision
    metrics = scores.metrics | ({} if has_masks else box_fit_metrics(source, found))
    named = {f"val/{name}": value for name, value in metrics.items()}
    classes = {name: scores.of_class(label) for label, name in enumerate(source.class_names)}
    return {"has_masks": has_masks, "metrics": named, "classes": {name: each for name, each in classes.items() if each}}


def _print(shown: dict[str, Any]) -> None:
    other = shown.get("against", {"name": None, "metrics": {}, "classes": {}})
    compared = other["name"] is not None
    headings = ("metric", shown["run"], other["name"], "difference") if compared else ("metric", "value")
    rows: list[tuple[Any, ...]] = []
    for name, value in shown["metrics"].items():
        there = other["metrics"].get(name)
        rows.append((name, value, there, None if there is None else value - there) if compared else (name, value))
    print_table(headings, rows)
    columns = list(next(iter(shown["classes"].values()), {}))
    print_table(
        ("class", *columns), [(name, *(each.get(key) for key in columns)) for name, each in shown["classes"].items()]
    )
    if compared:
        print_pairs([("agreement of masks (mean IoU)", other["agreement"])])
    if "worst" in shown:
        print_pairs([("worst images", shown["worst"])])

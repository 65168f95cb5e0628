"""`boxseg label`: masks for known boxes, with a quality each."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from boxseg.errors import ConfigError, DataError
from orchestration.cli.options import (
    RUN_HELP,
    AsJson,
    Device,
    Images,
    Minutes,
    Overrides,
    flag,
    optional,
    require_room,
    storage_option,
)
from orchestration.cli.output import print_json, print_line, print_pairs, say
from orchestration.errors import ExitCode

if TYPE_CHECKING:
    from orchestration.execute.label_run import LabelTask

SHOWN_PROBLEMS = 5


def label(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="COCO file with the boxes (also s3://BUCKET/FILE.json), YOLO folder or VOC folder.",
        ),
    ],
    run: str | None = optional(
        "RUN", f"{RUN_HELP} Left out: settings are chosen for DATA, and trained."
    ),
    minutes: Minutes = None,
    train_on: Path | None = optional(
        "FILE.json", "Without --run: learn from these boxes, not from DATA's."
    ),
    overrides: Overrides = None,
    plan: bool = flag(
        "--plan", "Without --run: print data, settings and time; write and start nothing."
    ),
    source: str = typer.Option(
        "run", metavar="run|box|file:COCO.json", help="Where the masks come from."
    ),
    fuse_with: Path | None = optional(
        "COCO.json", "Masks of another tool that join the run's candidates."
    ),
    output: Path | None = optional("DIR", "Where to write; labels/<name of DATA> if left out."),
    images: Images = None,
    review: bool = flag("--review", "Write a page to look through the masks as well."),
    apply: Path | None = optional(
        "DECISIONS.json", "Apply the decisions of the review page; label nothing."
    ),
    device: Device = "auto",
    storage: Annotated[
        Path | None,
        storage_option(
            "Folder that holds the runs, or s3://BUCKET/PREFIX: runs; without --run, runs in the output."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Turn known boxes into masks, each with a quality in [0, 1] and checks.

    Without --run, and without another --source, a recipe is chosen for the data and this machine, and trained first:
    recipe.yaml in the output folder tells each setting with its reason.

    Writes labels.coco.json (run lengths), labels.polygons.json and yolo/ (YOLO segmentation). Run it again to go on
    after a break. With --review, review/index.html shows the masks, doubtful ones first; what it downloads is applied
    with --apply and gives labels.reviewed.json.
    """
    from boxseg.coco.checks import reading_once
    from boxseg.files.reading import plain_file
    from boxseg.formats.find import find_boxes, find_source
    from orchestration.execute.label_run import LabelTask
    from orchestration.planning.label_input import open_masks, read_data
    from orchestration.planning.recipe import check_minutes, name_after
    from orchestration.planning.run_doubts import class_doubts
    from orchestration.store.named import fetch_named

    folder = output or Path("labels") / data.absolute().stem
    trains = run is None and source == "run" and apply is None
    if not trains:
        for_training = {"--minutes": minutes, "--train-on": train_on, "--set": overrides}
        _refuse(for_training | {"--plan": plan})
    check_minutes(minutes)
    runs = Path("runs") if storage is None else storage
    masks = None
    # all that can be refused, before `find_boxes` imports anything into the output folder
    if apply is not None:
        plain_file(apply, "decisions are a file that the review page downloads")
    elif not trains:
        masks = open_masks(source, run=run, fuse_with=fuse_with, storage=runs)
    if not plan:
        require_room("--output", folder)
    data, images = fetch_named(data, images, say)
    # nothing stays of a plan
    place = tempfile.TemporaryDirectory() if plan else contextlib.nullcontext(folder)
    with reading_once(), place as imports:
        to_label = find_boxes(data, images, imports=Path(imports))
        task = LabelTask(
            to_label,
            to_label if train_on is None else find_source(train_on, None),
            name=name_after(data),
            folder=folder,
            storage=storage,
            minutes=minutes,
            overrides=tuple(overrides or ()),
            device=device,
        )
        classes = read_data(to_label)  # for its errors, before torch is loaded
        if train_on is not None:
            for doubt in class_doubts(str(train_on), read_data(task.train_on), classes):
                say(f"warning: {doubt}")
        if plan:
            _print_plan(task, Path(imports), as_json)
            return
    if apply is not None:
        _apply(apply, folder, to_label.images, as_json)
        return
    about_training: dict[str, Any] = {}
    if trains:
        run, about_training = _train(task)
        review = True
    doubts = _tell_doubts(str(run), runs, classes) if source == "run" else []

    from boxseg.data.dataset import CocoBoxes
    from orchestration.execute.label_run import make_labels, open_source

    boxes = CocoBoxes(to_label, train=False)
    opened = open_source(source, boxes, run=run, masks=masks, device=device, storage=runs)
    about = about_training | {"about_the_run": doubts}
    _print_summary(make_labels(boxes, folder, opened, say, about=about, review=review), as_json)


def _refuse(for_training: dict[str, Any]) -> None:
    """Refuse options that have no meaning where nothing is trained."""
    for option, value in for_training.items():
        if value:
            raise ConfigError(
                f"{option}: is for training, and nothing is trained here; leave it out"
            )


def _apply(decisions: Path, folder: Path, images: Path, as_json: bool) -> None:
    """Apply what the review page downloads to the labels in a folder, and print how many were changed how."""
    from boxseg.label.review import apply_decisions

    counts = apply_decisions(folder, decisions, images)
    print_json(counts) if as_json else print_pairs(list(counts.items()))


def _tell_doubts(run: str, storage: Path, classes: list[str]) -> list[str]:
    """Say what speaks against a run's masks; gives the sentences."""
    from orchestration.planning.run_doubts import find_doubts
    from orchestration.record.find_runs import find_trained

    doubts = list(find_doubts(find_trained(storage, run), classes))
    for doubt in doubts:
        say(f"warning: {doubt}")
    return doubts


def _print_plan(task: LabelTask, imports: Path, as_json: bool) -> None:
    """Print data, settings and time; files in `imports` are named as they would be called in the output."""
    from orchestration.execute.label_run import describe_time
    from orchestration.planning.recipe import Machine

    fingerprint, recipe = task.choose()
    recipe = recipe.moved(imports, task.folder)
    if as_json:
        machine = str(Machine.here(device=task.device))
        about = {"data": dict(fingerprint.rows()), "machine": machine}
        print_json({**about, **recipe.as_json()})
    else:
        for line in recipe.text().splitlines():
            print_line(line)
    say(describe_time(recipe))


def _train(task: LabelTask) -> tuple[str, dict[str, str]]:
    """The checkpoint to label with, and what the summary tells of its run.

    Raises:
        typer.Exit: training was interrupted, with its state saved.
    """
    from orchestration.execute.label_run import last_checkpoint, train_recipe

    recipe = task.open_recipe(say)
    status = train_recipe(recipe, say)
    if status.status != "finished":
        say("interrupted, state saved; the same command goes on")
        raise typer.Exit(ExitCode.INTERRUPTED)
    return str(last_checkpoint(status)), {"recipe": str(recipe), "run": status.folder}


def _print_summary(summary: dict[str, Any], as_json: bool) -> None:
    """The result on stdout, problems on stderr.

    Raises:
        DataError: no image could be read.
    """
    problems = summary["unreadable"]
    for problem in problems[:SHOWN_PROBLEMS]:
        say(f"skipped: {problem}")
    if len(problems) > SHOWN_PROBLEMS:
        say(f"skipped {len(problems) - SHOWN_PROBLEMS} more images")
    if as_json:
        print_json(summary)
    else:
        doubts = ", ".join(f"{name} {count}" for name, count in summary["doubts"].items())
        shown = summary | {"doubts": doubts or "none", "unreadable": len(problems)}
        del shown["about_the_run"]  # said before anything was written
        if shown.get("expected_iou") is not None:
            shown["expected_iou"] = str(shown["expected_iou"])
        print_pairs([(name.replace("_", " "), value) for name, value in shown.items()])
    # only now, so that the summary is printed all the same
    if problems and len(problems) == summary["images"]:
        raise DataError("no image could be read; `boxseg data check` tells more")

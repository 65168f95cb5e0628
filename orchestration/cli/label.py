"""`boxseg label`: masks for known boxes, with a quality each."""

from __future__ import annotations

import contextlib
import tempfile
from contextlib import AbstractContextManager
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
from orchestration.cli.output import print_json, print_line, print_pairs, say, warn
from orchestration.errors import ExitCode

if TYPE_CHECKING:
    from boxseg.config.method import CocoSource
    from boxseg.data.mask_files import MaskFile
    from boxseg.label.sources import Source
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
        "RUN", f"{RUN_HELP} Without it, a run is trained with settings that suit DATA."
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
            "Folder that holds the runs, or s3://BUCKET/PREFIX; default: runs; without --run, runs in the output."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Turn known boxes into masks, each with a quality in [0, 1] and checks.

    Without --run and --source, settings are chosen for the data and this machine, and a run is trained with them first:
    recipe.yaml in the output folder has each setting with its reason.

    Writes labels.coco.json (run lengths), labels.polygons.json and yolo/ (YOLO segmentation). After a break, the same
    command goes on. With --review, review/index.html shows the masks, doubtful ones first; --apply takes the decisions
    that it downloads and writes labels.reviewed.json.
    """
    from boxseg.coco.checks import reading_once
    from boxseg.formats.find import find_boxes, find_source
    from orchestration.execute.label_run import LabelTask
    from orchestration.planning.recipe import check_minutes, name_after
    from orchestration.store.named import fetch_named

    folder = output or Path("labels") / data.absolute().stem
    trains = run is None and source == "run" and apply is None
    if not trains:
        _refuse_for_training(
            {"--minutes": minutes, "--train-on": train_on, "--set": overrides, "--plan": plan}
        )
    check_minutes(minutes)
    runs = storage or Path("runs")
    # refuse what can be refused before `find_boxes` imports anything into the output folder
    masks = _open_named(apply, source, run, fuse_with, runs)
    if not plan:
        require_room("--output", folder)
    data, images = fetch_named(data, images, say)
    # a plan leaves nothing behind
    place = tempfile.TemporaryDirectory() if plan else contextlib.nullcontext(folder)
    with reading_once(), place as imports:
        with _alone_if_there(Path(imports)):  # another command may be reading what it imported
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
        classes = _read_classes(task)
        if plan:
            _print_plan(task, Path(imports), as_json)
            return
    if apply is not None:
        _apply(apply, folder, to_label.images, as_json)
        return
    summary = _label(task, classes, source, run, masks, storage=runs, review=review)
    _print_summary(summary, as_json)


def _refuse_for_training(options: dict[str, Any]) -> None:
    """Refuse options that mean nothing where nothing is trained."""
    for option, value in options.items():
        if value:
            raise ConfigError(
                f"{option}: is for training, and nothing is trained here; leave it out"
            )


def _open_named(
    decisions: Path | None, source: str, run: str | None, fuse_with: Path | None, storage: Path
) -> MaskFile | None:
    """The file of masks that the options name, if any; refuses decisions, sources and runs that do not exist."""
    from boxseg.files.reading import plain_file
    from orchestration.planning.label_input import open_masks

    if decisions is not None:
        plain_file(decisions, "decisions are a file that the review page downloads")
        return None
    return open_masks(source, run=run, fuse_with=fuse_with, storage=storage)


def _read_classes(task: LabelTask) -> list[str]:
    """Names of the classes to label; warns of what is odd about the data, and fails before torch is loaded."""
    from orchestration.planning.label_input import read_data
    from orchestration.planning.run_doubts import class_doubts

    classes = read_data(task.data)
    if task.train_on is not task.data:
        trained = read_data(task.train_on)
        warn(class_doubts(str(task.train_on.annotations), trained, classes))
    return classes


def _alone_if_there(folder: Path) -> AbstractContextManager[None]:
    """`alone_in` for a folder that is not made where it is missing, as what follows may be refused."""
    from orchestration.execute.label_run import alone_in

    return alone_in(folder) if folder.is_dir() else contextlib.nullcontext()


def _apply(decisions: Path, folder: Path, images: Path, as_json: bool) -> None:
    """Apply the decisions of the review page to the labels in a folder, and print their counts."""
    from boxseg.label.review import apply_decisions

    with _alone_if_there(folder):
        counts = apply_decisions(folder, decisions, images)
    print_json(counts) if as_json else print_pairs(list(counts.items()))


def _warn_of_doubts(run: str, storage: Path, classes: list[str]) -> list[str]:
    """Warn of what speaks against a run's masks; returns the warnings."""
    from orchestration.planning.run_doubts import find_doubts
    from orchestration.record.find_runs import find_trained

    doubts = list(find_doubts(find_trained(storage, run), classes))
    warn(doubts)
    return doubts


def _print_plan(task: LabelTask, imports: Path, as_json: bool) -> None:
    """Print data, settings and time; files in `imports` are named as they would be called in the output.

    Raises:
        DataError: the boxes cannot be trained on, which would end the command at once.
    """
    from boxseg.coco.checks import require_usable
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
    require_usable(task.train_on, training=True)


def _train(task: LabelTask) -> tuple[str, dict[str, str]]:
    """The checkpoint to label with, and what the summary says about its run.

    Raises:
        typer.Exit: training was interrupted, with its state saved.
    """
    from orchestration.execute.label_run import alone_in, last_checkpoint, train_recipe

    with alone_in(task.folder):
        recipe = task.open_recipe(say)
        status = train_recipe(recipe, say)
    if status.status != "finished":
        say("interrupted, state saved; the same command goes on")
        raise typer.Exit(ExitCode.INTERRUPTED)
    return str(last_checkpoint(status)), {"recipe": str(recipe), "run": status.folder}


def _label(
    task: LabelTask,
    classes: list[str],
    source: str,
    run: str | None,
    masks: MaskFile | None,
    *,
    storage: Path,
    review: bool,
) -> dict[str, Any]:
    """Label the boxes of a task; trains a run first if one is needed and none is named."""
    about: dict[str, Any] = {}
    matched = None
    if source == "run" and run is None:
        if masks is not None:
            matched = _match(masks, task.data)
        run, about = _train(task)
        review = True

    from orchestration.execute.supervise import StopSignals

    # from here on a stop loses little, and the same command goes on
    with StopSignals() as signals:
        doubts = _warn_of_doubts(str(run), storage, classes) if source == "run" else []

        from boxseg.data.dataset import CocoBoxes
        from orchestration.execute.label_run import alone_in, make_labels, open_source

        boxes = CocoBoxes(task.data, train=False)
        opened = open_source(
            source,
            boxes,
            run=run,
            masks=masks,
            matched=matched,
            device=task.device,
            storage=storage,
        )
        about["about_the_run"] = doubts
        with alone_in(task.folder):  # only now, so that a run that is refused leaves no folder
            return make_labels(
                boxes, task.folder, opened, say, about=about, review=review, signals=signals
            )


def _match(masks: MaskFile, data: CocoSource) -> Source:
    """Masks that are to join those of a run; before it is trained, so that those that cannot are refused at once."""
    from boxseg.data.dataset import CocoBoxes
    from boxseg.label.sources import from_file

    return from_file(masks, CocoBoxes(data, train=False))


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
        del shown["about_the_run"]  # `_warn_of_doubts` has said it already
        if shown.get("expected_iou") is not None:
            shown["expected_iou"] = str(shown["expected_iou"])
        print_pairs([(name.replace("_", " "), value) for name, value in shown.items()])
    # last, so that the summary is printed in any case
    if problems and len(problems) == summary["images"]:
        raise DataError("no image could be read; `boxseg data check` says more")

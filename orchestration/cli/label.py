"""`boxseg label`: masks for known boxes, with a quality each."""

from __future__ import annotations

import functools
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from boxseg.errors import ConfigError, DataError
from orchestration.cli.data import Images, find_source
from orchestration.cli.evaluate import RUN_HELP, open_predictor
from orchestration.cli.output import (
    AsJson,
    Device,
    Overrides,
    print_json,
    print_line,
    print_pairs,
    print_table,
    say,
)
from orchestration.cli.recipe import Minutes, check_minutes, recipe_as_json
from orchestration.errors import ExitCode

if TYPE_CHECKING:
    from boxseg.config.method import CocoSource
    from boxseg.data.dataset import CocoBoxes
    from boxseg.data.fingerprint import Fingerprint
    from boxseg.label.sources import BatchSource
    from orchestration.execute.label_run import LabelTask
    from orchestration.planning.recipe import Recipe

SHOWN_PROBLEMS = 5


def label(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="COCO file with the boxes, YOLO folder or VOC folder."
        ),
    ],
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help=f"{RUN_HELP} Left out: settings are chosen for DATA, and trained.",
        ),
    ] = None,
    minutes: Minutes = None,
    train_on: Annotated[
        Path | None,
        typer.Option(
            "--train-on",
            metavar="FILE.json",
            help="Without --run: learn from these boxes, not from DATA's.",
        ),
    ] = None,
    overrides: Overrides = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Without --run: print data, settings and time; write and start nothing."
        ),
    ] = False,
    source: Annotated[
        str,
        typer.Option(
            "--source", metavar="run|grabcut|box|file:COCO.json", help="Where the masks come from."
        ),
    ] = "run",
    fuse_with: Annotated[
        Path | None,
        typer.Option(
            "--fuse-with",
            metavar="COCO.json",
            help="Masks of another tool that join the run's candidates.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="DIR", help="Where to write; labels/<name of DATA> if left out."
        ),
    ] = None,
    images: Images = None,
    review: Annotated[
        bool, typer.Option("--review", help="Write a page to look through the masks as well.")
    ] = False,
    apply: Annotated[
        Path | None,
        typer.Option(
            "--apply",
            metavar="DECISIONS.json",
            help="Apply the decisions of the review page; label nothing.",
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="A,B,…",
            help="Print how far these sources agree, and with drawn masks.",
        ),
    ] = None,
    device: Device = "auto",
    storage: Annotated[
        Path | None,
        typer.Option(
            "--storage",
            metavar="DIR",
            help="Folder that holds the runs: runs; without --run, runs in the output.",
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
    from boxseg.files.reading import plain_file
    from orchestration.planning.label_input import check_sources, read_data
    from orchestration.planning.run_doubts import find_doubts
    from orchestration.record.find_runs import find_trained

    folder = output or Path("labels") / data.absolute().stem
    training = _Training(minutes, train_on, tuple(overrides or ()), storage, device)
    trains = run is None and source == "run" and apply is None and compare is None
    if not trains:
        training.refuse(plan=plan)
    check_minutes(minutes)
    runs = Path("runs") if storage is None else storage
    asked = [source] if compare is None else compare.split(",")
    if apply is not None:
        plain_file(apply, "decisions are a file that the review page downloads")
    elif not trains:
        check_sources(asked, run=run, fuse_with=fuse_with, storage=runs)
    if images is not None and not images.is_dir():
        raise ConfigError(
            f"--images {images}: is not a folder; name the one that holds the images"
        )
    if plan:
        with tempfile.TemporaryDirectory() as scratch:
            fingerprint, made = training.choose(
                data, _find_boxes(data, Path(scratch), images), folder
            )
        made = made.moved(Path(scratch), folder)  # where the boxes of a folder will be imported to
        training.print_plan(fingerprint, made, as_json)
        return
    found = _find_boxes(data, folder, images)
    classes = read_data(found)  # for its errors, before torch is loaded
    trained: dict[str, Any] = {}
    if trains:
        run, trained = training.train(data, found, folder)
        review = True
    asks_run = apply is None and "run" in asked
    warnings = find_doubts(find_trained(runs, str(run)), classes) if asks_run else []
    for told in warnings:
        say(f"warning: {told}")

    from boxseg.data.dataset import CocoBoxes
    from boxseg.label.checks import shared_doubt
    from boxseg.label.expected import expect_mean_iou
    from boxseg.label.review import apply_decisions, write_review
    from orchestration.record.progress import counted

    source_of = functools.partial(_open_source, fuse_with=fuse_with, device=device, storage=runs)
    boxes = CocoBoxes(found, train=False)
    if compare is not None:
        _compare(
            boxes, {name: source_of(name, run, boxes)[0] for name in compare.split(",")}, as_json
        )
        return
    if apply is not None:
        counts = apply_decisions(folder, apply, boxes.source.images)
        print_json(counts) if as_json else print_pairs(list(counts.items()))
        return
    written, qualities = _make_labels(boxes, folder, *source_of(source, run, boxes))
    doubt = shared_doubt(written["doubts"], written["boxes"])
    summary: dict[str, Any] = {"warning": doubt} if doubt else {}
    summary |= {"output": str(folder), **trained, **written, "about_the_run": warnings}
    if source == "run":
        summary["expected_iou"] = expect_mean_iou(qualities)
    if review:
        for _ in counted(
            write_review(folder, boxes.source.images), len(boxes), what="images drawn"
        ):
            pass
        summary["review"] = str(folder / "review/index.html")
    _tell(summary, as_json)


def _make_labels(
    boxes: CocoBoxes, folder: Path, masks: BatchSource, about: dict[str, Any], batch_size: int
) -> tuple[dict[str, Any], list[float]]:
    """Label the images that are left and write all; gives counts for people, and the qualities."""
    from boxseg.label.dataset import Journal, label_images, write_labels
    from orchestration.record.progress import counted

    journal = Journal(folder, about)
    left = len(boxes) - len(journal.done)
    if journal.done and left:
        say(f"{len(journal.done)} images are labelled already")
    images_done = label_images(boxes, masks, journal, batch_size=batch_size)
    for _ in counted(images_done, left, what="images"):
        pass
    qualities = [label["quality"] for image in journal.done.values() for label in image.labels]
    return write_labels(boxes, journal, folder), qualities


@dataclass(frozen=True)
class _Training:
    """What is asked for where a run is to be trained first."""

    minutes: float | None
    train_on: Path | None
    overrides: tuple[str, ...]
    storage: Path | None
    device: str

    def refuse(self, *, plan: bool) -> None:
        """Refuse what has no meaning where nothing is trained.

        Raises:
            ConfigError: names the option.
        """
        asked = {
            "--minutes": self.minutes,
            "--train-on": self.train_on,
            "--set": self.overrides,
            "--plan": plan,
        }
        for option, value in asked.items():
            if value:
                raise ConfigError(
                    f"{option}: is for training, and nothing is trained here; leave it out"
                )

    def choose(self, data: Path, found: CocoSource, folder: Path) -> tuple[Fingerprint, Recipe]:
        """What the data are like, and the settings for them."""
        return self._task(data, found, folder).choose()

    def print_plan(self, fingerprint: Fingerprint, made: Recipe, as_json: bool) -> None:
        """Print data, settings and time."""
        from orchestration.execute.label_run import time_told
        from orchestration.planning.recipe import Machine

        if as_json:
            about = {
                "data": dict(fingerprint.told()),
                "machine": str(Machine.here(device=self.device)),
            }
            print_json({**about, **recipe_as_json(made)})
        else:
            for line in made.text().splitlines():
                print_line(line)
        say(time_told(made))

    def train(self, data: Path, found: CocoSource, folder: Path) -> tuple[str, dict[str, str]]:
        """The checkpoint to label with, and what the summary tells of its run.

        Raises:
            typer.Exit: training was interrupted, with its state saved.
        """
        from orchestration.execute.label_run import last_checkpoint, train_recipe

        recipe = self._task(data, found, folder).open_recipe(say)
        status = train_recipe(recipe, say)
        if status.status != "finished":
            say("interrupted, state saved; the same command goes on")
            raise typer.Exit(ExitCode.INTERRUPTED)
        return str(last_checkpoint(status)), {"recipe": str(recipe), "run": status.folder}

    def _task(self, data: Path, found: CocoSource, folder: Path) -> LabelTask:
        from orchestration.execute.label_run import LabelTask
        from orchestration.planning.recipe import name_after

        return LabelTask(
            data=found,
            train_on=found if self.train_on is None else find_source(self.train_on, None),
            name=name_after(data),
            folder=folder,
            storage=self.storage,
            minutes=self.minutes,
            overrides=self.overrides,
            device=self.device,
        )


def _find_boxes(data: Path, folder: Path, images: Path | None) -> CocoSource:
    """Images and boxes; those of a YOLO or VOC folder are imported into a folder."""
    return import_boxes(data, folder, images) if data.is_dir() else find_source(data, images)


def import_boxes(data: Path, folder: Path, images: Path | None) -> CocoSource:
    """The boxes of a YOLO or VOC folder as `folder/boxes.json`, each image once.

    Of VOC with its lists those of `ImageSets/Main`, or else of `ImageSets/Segmentation`; of `trainval` if there.

    Raises:
        DataError: the folder is neither, or damaged.
    """
    from boxseg.coco.writer import join_splits, require_objects
    from boxseg.config.method import CocoSource
    from boxseg.files.writing import write_atomic
    from boxseg.formats.convert import convert

    is_voc = (data / "Annotations").is_dir() or any(data.glob("*.xml"))
    splits = convert(data, "voc" if is_voc else "yolo")
    require_objects(splits, data)
    named = [name for name in splits if name.startswith("boxes_")] or list(splits)
    wanted = [name for name in named if name.endswith("trainval")] or named
    joined = join_splits([splits[name] for name in wanted])
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "boxes.json", json.dumps(joined.content))
    return CocoSource(images=images or joined.images.absolute(), annotations=folder / "boxes.json")


def _compare(boxes: CocoBoxes, sources: dict[str, BatchSource], as_json: bool) -> None:
    from boxseg.label.compare import compare_sources
    from orchestration.record.progress import counted

    compared = compare_sources(
        boxes, sources, counted(range(len(boxes)), len(boxes), what="images")
    )
    if as_json:
        print_json(compared)
        return
    agreement, drawn = compared["agreement"], compared["drawn"]
    print_table(
        ("agreement (IoU)", *sources), [(name, *row.values()) for name, row in agreement.items()]
    )
    if drawn:
        columns = ("iou", "best_iou", "quality_auroc", "quality_rank")
        print_table(
            ("against drawn", *columns),
            [(n, *(row.get(key) for key in columns)) for n, row in drawn.items()],
        )
    else:
        say("no masks are drawn, so there is no IoU with the truth")


def _open_source(
    source: str,
    run: str | None,
    boxes: CocoBoxes,
    *,
    fuse_with: Path | None,
    device: str,
    storage: Path,
) -> tuple[BatchSource, dict[str, Any], int]:
    """Where masks come from, what identifies data and source for a later call that goes on, and the batch size."""
    from boxseg.label import sources as label_sources
    from boxseg.label.boxes import LABEL_VERSION
    from orchestration.planning.label_input import OF_FILE
    from orchestration.record.files import digest

    about: dict[str, Any] = {"data": digest(boxes.source.annotations), "source": source}
    # also where masks come from no run: how they are made changes too
    about["label_version"] = LABEL_VERSION
    if source == "run":
        assert run is not None
        others = None if fuse_with is None else label_sources.from_file(fuse_with, boxes)
        predictor = open_predictor(run, storage=storage, device=device)
        about |= {"run": str(predictor.folder)}
        about |= {} if fuse_with is None else {"fuse_with": digest(fuse_with)}
        return label_sources.from_run(predictor, boxes, others=others), about, predictor.batch_size
    if source.startswith(OF_FILE):
        path = Path(source.removeprefix(OF_FILE))
        return (
            label_sources.one_by_one(label_sources.from_file(path, boxes)),
            about | {"file": digest(path)},
            1,
        )
    simple: dict[str, label_sources.Source] = {
        "grabcut": label_sources.from_grabcut,
        "box": label_sources.from_boxes,
    }
    return label_sources.one_by_one(simple[source]), about, 1


def _tell(summary: dict[str, Any], as_json: bool) -> None:
    """The result on stdout, problems on stderr; an error if no image could be read."""
    problems = summary["unreadable"]
    for problem in problems[:SHOWN_PROBLEMS]:
        say(f"skipped: {problem}")
    if len(problems) > SHOWN_PROBLEMS:
        say(f"skipped {len(problems) - SHOWN_PROBLEMS} more images")
    if as_json:
        print_json(summary)
    else:
        doubts = (
            ", ".join(f"{name} {count}" for name, count in summary["doubts"].items()) or "none"
        )
        shown = summary | {"doubts": doubts, "unreadable": len(problems)}
        del shown["about_the_run"]  # said before anything was written
        if shown.get("expected_iou") is not None:
            shown["expected_iou"] = str(shown["expected_iou"])
        print_pairs([(name.replace("_", " "), value) for name, value in shown.items()])
    if problems and len(problems) == summary["images"]:
        raise DataError("no image could be read; `boxseg data check` tells more")

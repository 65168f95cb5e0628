"""`boxseg data`: check, count, import and split data sets, draw the generated one."""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from boxseg.errors import ConfigError, DataError
from orchestration.cli.output import AsJson, print_json, print_line, print_pairs, print_table, say
from orchestration.errors import ExitCode

if TYPE_CHECKING:
    from boxseg.coco.faults import Fault
    from boxseg.config.method import CocoSource

app = typer.Typer(
    help="Check, count, import, split and draw data sets.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

SHOWN_CLASSES = 1000
"""Lines of a table; more take minutes to print."""

Format = Literal["coco", "voc", "sbd", "cityscapes", "yolo"]
Target = Annotated[
    Path,
    typer.Argument(metavar="EXP.yaml|FILE.json", help="Experiment file, or COCO instance file."),
]
Images = Annotated[
    Path | None,
    typer.Option(
        "--images", metavar="DIR", help="Image folder of FILE.json; else beside it, or ../images."
    ),
]


@app.command()
def check(
    target: Target,
    images: Images = None,
    use: Annotated[
        Literal["train", "val"],
        typer.Option("--for", help="What FILE.json is for: val asks for masks."),
    ] = "train",
    decode: Annotated[bool, typer.Option("--decode", help="Decode every image in full.")] = False,
    fix: Annotated[
        Path | None,
        typer.Option(
            "--fix", metavar="DIR", help="Write a copy without the faults, and check that."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find what is wrong with a data set; exit code 3 if it cannot be used."""
    from boxseg.coco.checks import check_source
    from boxseg.coco.faults import count_faults

    faults = []
    sources = _sources(target, images, use)
    if fix is not None:
        sources = {
            split: _fix(source, fix if len(sources) == 1 else fix / split)
            for split, source in sources.items()
        }
    for split, source in sources.items():
        faults.extend(
            check_source(source, training=split == "train", decode=decode, look_at_masks=True)
        )
    errors, warnings = (count_faults(faults, fatal=fatal) for fatal in (True, False))
    misfits = [] if errors or target.suffix == ".json" else _misfits(target)
    if as_json:
        about = {"usable": not errors, "errors": errors, "warnings": warnings, "faults": faults}
        print_json(about | {"misfits": misfits})
    elif faults:
        print_table(
            ("", "file", "image", "annotation", "what is wrong"),
            itertools.chain(*map(_fault_rows, faults)),
        )
    for told in misfits:
        say(f"settings: {told}")
    say(f"{errors} errors, {warnings} warnings")
    if errors:
        raise typer.Exit(ExitCode.DATA)


def _misfits(experiment: Path) -> list[str]:
    """Where the settings of an experiment file do not fit its data."""
    from orchestration.config.spec import load_run
    from orchestration.planning.preflight import warnings

    return warnings(load_run(experiment))


def _fault_rows(fault: Fault) -> Iterator[tuple[Any, ...]]:
    level = "error" if fault.fatal else "warning"
    yield level, fault.file.name, fault.image_id, fault.annotation_id, fault.told
    if fault.more:
        yield level, None, None, None, f"… and {fault.more} more of this kind: {fault.rule}"


def _fix(source: CocoSource, output: Path) -> CocoSource:
    """Write the cleaned copy, tell what was done, and give where it is."""
    from boxseg.coco.fix import ANNOTATIONS, IMAGES, write_fixed
    from boxseg.config.method import CocoSource

    for line in write_fixed(source, output).lines():
        say(line)
    say(f"cleaned copy: {{images: {output / IMAGES}, annotations: {output / ANNOTATIONS}}}")
    return CocoSource(images=output / IMAGES, annotations=output / ANNOTATIONS)


@app.command()
def stats(
    target: Target,
    images: Images = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE.png", help="Draw it as well.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count images, boxes, classes and sizes (small below 32² px, large from 96² px on)."""
    from boxseg.coco.checks import read_well_formed
    from boxseg.data.picture import draw_stats

    sources = _sources(target, images or target.parent, "train")  # counting needs no images
    contents = {
        split: read_well_formed(each.annotations, whole=False) for split, each in sources.items()
    }
    counts = {split: _count(content) for split, content in contents.items()}
    if picture is not None:
        first = next(iter(contents))  # the training images, where there are several splits
        boxes = [
            each["bbox"][2:] for each in contents[first]["annotations"] if not each.get("iscrowd")
        ]
        sides = [
            math.sqrt(each[0]) * math.sqrt(each[1])
            for each in boxes
            if 0 < min(each) <= max(each) < math.inf
        ]
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_stats(counts[first]["classes"], sides, picture)
        say(f"drawn: {picture}")
    if as_json:
        print_json(counts if target.suffix != ".json" else counts["train"])
        return
    for split, found in counts.items():
        classes = found.pop("classes")
        if target.suffix != ".json":
            print_line(f"{split}:")
        print_pairs([(name.replace("_", " "), value) for name, value in found.items()])
        most = sorted(classes.items(), key=lambda item: -item[1])
        print_table(("class", "boxes"), most[:SHOWN_CLASSES])
        if len(most) > SHOWN_CLASSES:
            say(f"… and {len(most) - SHOWN_CLASSES} more classes; --json has all")


@app.command()
def toy(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to draw it.")],
    train_images: Annotated[int, typer.Option(min=1)] = 320,
    val_images: Annotated[int, typer.Option(min=1)] = 80,
    size: Annotated[
        int, typer.Option(min=64, max=1024, help="Side of the square images [px].")
    ] = 128,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Draw the generated data set of shapes."""
    from boxseg.config.method import ToyConfig
    from boxseg.data.toy import ensure_toy

    settings = ToyConfig(train_images=train_images, val_images=val_images, size=size, seed=seed)
    sources = dict(zip(("train", "val"), ensure_toy(folder, settings), strict=True))
    _print_sources(
        {name: (each.images, each.annotations) for name, each in sources.items()}, as_json
    )


@app.command("import")
def import_(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="The unpacked data set; of COCO a file.")
    ],
    format_name: Annotated[Format, typer.Option("--from", help="Format of the source.")],
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Gets one COCO file for each split.")
    ],
    exclude: Annotated[
        list[Path] | None,
        typer.Option(
            "--exclude",
            metavar="FILE.json",
            help="Leave out the images of this file; may be repeated.",
        ),
    ] = None,
    images: Images = None,
    as_json: AsJson = False,
) -> None:
    """Write COCO instance files for a data set in another format; its images stay where they are.

    Of a COCO file the sound entries are taken over with all their fields, and boxes are cut to their image.
    """
    from boxseg.coco.checks import read_well_formed
    from boxseg.coco.writer import require_objects
    from boxseg.formats.convert import convert

    listed = [
        entry for path in exclude or () for entry in read_well_formed(path, whole=False)["images"]
    ]
    splits = convert(
        source, format_name, exclude=frozenset(Path(entry["file_name"]).stem for entry in listed)
    )
    require_objects(splits, source)
    if images is not None or format_name == "coco":
        folder = find_source(source, images).images
        for split in splits.values():
            split.images = folder
    _write_splits(
        {name: (split.images, split.content) for name, split in splits.items()}, output, as_json
    )


@app.command()
def export(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.json", help="COCO file with masks, as `boxseg label` writes."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="A new folder.")],
    form: Annotated[
        Literal["coco", "yolo"], typer.Option("--to", help="COCO instances, or YOLO segmentation.")
    ] = "coco",
    min_quality: Annotated[
        float, typer.Option("--min-quality", min=0, max=1, help="Leave out masks below.")
    ] = 0.0,
    without_doubts: Annotated[
        bool,
        typer.Option(
            "--without-doubts", help="Leave out masks with a doubt that nobody accepted."
        ),
    ] = False,
    only_accepted: Annotated[
        bool,
        typer.Option(
            "--only-accepted", help="Leave out masks that nobody accepted on the review page."
        ),
    ] = False,
    images: Images = None,
    as_json: AsJson = False,
) -> None:
    """Write masks as training data for any segmenter; images of which a mask is left out go with all their masks.

    A segmenter would learn that an object without a mask is background. A mask that `boxseg label` made and that is no
    more than its box is left out, unless it was accepted.
    """
    from boxseg.coco.checks import read_well_formed
    from boxseg.coco.good_masks import Wanted, find_good_masks
    from boxseg.coco.picture_checks import image_fault
    from boxseg.files.reading import DOES_NOT_EXIST

    source = find_source(target, images)
    wanted = Wanted(min_quality, without_doubts=without_doubts, only_accepted=only_accepted)
    good = find_good_masks(read_well_formed(target), wanted, target)
    for image in good.content["images"]:
        fault = image_fault(source.images, image, decode=False)
        if fault is not None and fault.fatal and fault.value != DOES_NOT_EXIST:
            raise DataError(str(fault))
    if output.exists():
        raise ConfigError(
            f"--output {output}: is there already; name another folder, or remove it"
        )
    good.require_some(target)
    for told in good.told():
        say(told)
    if form == "yolo":
        from boxseg.formats.yolo import write_yolo  # loads torch

        splits = write_yolo(good.content, source.images, output)
        say(", ".join(f"{split}: {count} images" for split, count in splits.items()))
        if "val" not in splits:
            say(
                "warning: one image is too few to hold any out; name others to validate on in data.yaml"
            )
        print_json({"data": output / "data.yaml"}) if as_json else print_line(output / "data.yaml")
    else:
        _write_splits({"all": (source.images, good.content)}, output, as_json)


@app.command()
def split(
    target: Annotated[Path, typer.Argument(metavar="FILE.json", help="COCO instance file.")],
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Gets train.json and val.json.")
    ],
    val: Annotated[float, typer.Option("--val", help="Share of the images to validate on.")] = 0.2,
    group: Annotated[
        str | None,
        typer.Option(
            "--group",
            metavar="FIELD|folder",
            help="Images that agree in this field, or folder, stay together.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    images: Images = None,
    as_json: AsJson = False,
) -> None:
    """Split a COCO file into two, to train on and to validate on; the same call gives the same split."""
    from boxseg.coco.split import split_coco

    parts = split_coco(target, val=val, group=group, seed=seed)
    folder = find_source(target, images).images
    _write_splits({name: (folder, content) for name, content in parts.items()}, output, as_json)


def _write_splits(
    parts: dict[str, tuple[Path, dict[str, Any]]], output: Path, as_json: bool
) -> None:
    """Write `output/NAME.json` for the images and content of each split, over nothing that is there; tell of them."""
    import json

    from boxseg.files.writing import write_atomic

    paths = {name: output / f"{name}.json" for name in parts}
    for path in paths.values():
        if path.exists():
            raise ConfigError(
                f"--output {output}: {path.name} is there already; name another folder, or remove it"
            )
    output.mkdir(parents=True, exist_ok=True)
    for name, (_, content) in parts.items():
        write_atomic(paths[name], json.dumps(content))
        say(f"{name}: {len(content['images'])} images, {len(content['annotations'])} objects")
    _print_sources(
        {name: (images.absolute(), paths[name]) for name, (images, _) in parts.items()}, as_json
    )


def _print_sources(sources: dict[str, tuple[Path, Path]], as_json: bool) -> None:
    """Split -> (images, annotations), as the settings `data.train` and `data.val` want them."""
    if as_json:
        print_json(
            {
                name: {"images": images, "annotations": path}
                for name, (images, path) in sources.items()
            }
        )
        return
    for name, (images, path) in sources.items():
        print_line(f"{name}: {{images: {images}, annotations: {path}}}")


def _sources(target: Path, images: Path | None, use: str) -> dict[str, Any]:
    """Split -> CocoSource."""
    from boxseg.config.method import CocoSource

    _refuse_folder(target)
    if target.suffix == ".json":
        return {use: find_source(target, images)}
    from orchestration.config.spec import load_run

    data = load_run(target).data
    found = {
        name: each
        for name, each in (("train", data.train), ("val", data.val))
        if isinstance(each, CocoSource)
    }
    if not found:
        raise ConfigError(
            f"{target}: data.train and data.val are toy, which is drawn and has no files to look at"
        )
    return found


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        form = "voc" if (path / "Annotations").is_dir() else "yolo"
        raise ConfigError(
            f"{path}: is a folder, and an annotation file in COCO's format is needed; make one with "
            f"`boxseg data import {path} --from {form} --output DIR`"
        )


def find_source(annotations: Path, images: Path | None) -> CocoSource:
    """An annotation file and its images: in the named folder, or else where the first image is that the file names."""
    from boxseg.coco.checks import read_annotations
    from boxseg.config.method import CocoSource
    from boxseg.files.names import is_inside

    _refuse_folder(annotations)
    if images is not None:
        if not images.is_dir():
            raise ConfigError(
                f"--images {images}: is not a folder; name the one that holds the images"
            )
        return CocoSource(images=images, annotations=annotations)
    entries = [each for each in read_annotations(annotations)["images"] if isinstance(each, dict)]
    name = next(
        (each["file_name"] for each in entries if isinstance(each.get("file_name"), str)), ""
    )
    above = annotations.absolute().parent.parent
    folders = [
        annotations.parent,
        annotations.parent / "images",
        above / "images",
        above / annotations.stem,
    ]
    for folder in folders:
        if name and is_inside(name) and os.path.isfile(folder / name):  # noqa: PTH113 - False for any name at all
            return CocoSource(images=folder, annotations=annotations)
    looked = ", ".join(str(folder) for folder in folders)
    raise ConfigError(
        f"{annotations}: its image {name or '(none)'} is not in {looked}; name the folder with --images"
    )


def _count(content: dict[str, Any]) -> dict[str, Any]:
    from boxseg.coco.classes import distinct_names

    boxes = [each for each in content["annotations"] if not each.get("iscrowd")]
    areas = [float(each["bbox"][2]) * float(each["bbox"][3]) for each in boxes]
    categories = [(each["id"], each["name"]) for each in content["categories"]]
    per_class = Counter(each["category_id"] for each in boxes)
    with_boxes = len({each["image_id"] for each in boxes})
    return {
        "images": len(content["images"]),
        "images_with_boxes": with_boxes,
        "boxes": len(boxes),
        "crowd_regions": len(content["annotations"]) - len(boxes),
        "boxes_per_image": round(len(boxes) / with_boxes, 2) if with_boxes else 0.0,
        "small_boxes": sum(area < 32**2 for area in areas),
        "medium_boxes": sum(32**2 <= area < 96**2 for area in areas),
        "large_boxes": sum(area >= 96**2 for area in areas),
        "classes": {
            name: per_class.get(number, 0)
            for (number, _), name in zip(categories, distinct_names(categories), strict=True)
        },
    }

"""`boxseg data`: check, count, import and split data sets, draw the generated one."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from boxseg.errors import ConfigError, DataError
from boxseg.files.names import is_json
from boxseg.formats import Format
from orchestration.cli.options import (
    AsJson,
    Images,
    Target,
    flag,
    optional,
    require_new,
    require_room,
)
from orchestration.cli.output import print_json, print_line, print_pairs, print_table, say, warn
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


@app.command()
def check(
    target: Target,
    images: Images = None,
    use: Literal["train", "val"] = typer.Option(
        "train", "--for", help="What FILE.json is for: val asks for masks."
    ),
    decode: bool = flag("--decode", "Decode every image in full."),
    fix: Path | None = optional("DIR", "Write a copy without the faults, and check that."),
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
        faults += check_source(
            source, training=split == "train", decode=decode, look_at_masks=True
        )
    errors = count_faults(faults, fatal=True)
    warnings = count_faults(faults, fatal=False)
    # settings are only held against data that can be used
    misfits = [] if errors else _misfits(target, sources)
    if as_json:
        about = {"usable": not errors, "errors": errors, "warnings": warnings, "faults": faults}
        print_json(about | {"misfits": misfits})
    elif faults:
        headings = ("", "file", "image", "annotation", "what is wrong")
        print_table(headings, itertools.chain(*map(_fault_rows, faults)))
    warn(misfits)
    say(f"{errors} errors, {warnings} warnings")
    if errors:
        raise typer.Exit(ExitCode.DATA)


def _misfits(target: Path, sources: dict[str, CocoSource]) -> list[str]:
    """Warnings of boxes that look misplaced; for an experiment file, also of settings that do not fit its data."""
    from boxseg.data.fingerprint import take_fingerprint
    from boxseg.data.misfits import find_misplaced
    from orchestration.config.spec import load_run
    from orchestration.planning.preflight import warnings

    if not is_json(target):
        return warnings(load_run(target))
    (source,) = sources.values()
    return list(find_misplaced(take_fingerprint(source)))


def _fault_rows(fault: Fault) -> Iterator[tuple[Any, ...]]:
    level = "error" if fault.fatal else "warning"
    yield level, fault.file.name, fault.image_id, fault.annotation_id, fault.text
    if fault.more:
        yield level, None, None, None, f"… and {fault.more} more of this kind: {fault.rule}"


def _fix(source: CocoSource, output: Path) -> CocoSource:
    """Write the cleaned copy, say what was changed, and return the copy."""
    from boxseg.coco.fix import ANNOTATIONS, IMAGES, write_fixed
    from boxseg.config.method import CocoSource

    require_room("--fix", output)
    for line in write_fixed(source, output).lines():
        say(line)
    say(f"cleaned copy: {{images: {output / IMAGES}, annotations: {output / ANNOTATIONS}}}")
    return CocoSource(images=output / IMAGES, annotations=output / ANNOTATIONS)


@app.command()
def stats(target: Target, images: Images = None, as_json: AsJson = False) -> None:
    """Count images, boxes, classes and sizes (small below 32² px, large from 96² px on)."""
    from boxseg.coco.checks import read_well_formed
    from boxseg.data.stats import count_content

    sources = _sources(target, images or target.parent, "train")  # counting needs no images
    counts = {}
    for split, source in sources.items():
        counts[split] = count_content(read_well_formed(source.annotations, whole=False))
    if as_json:
        # a lone file has one split, which `_sources` has called train
        print_json(counts["train"] if is_json(target) else counts)
        return
    for split, counted in counts.items():
        classes = counted.pop("classes")
        if not is_json(target):
            print_line(f"{split}:")
        print_pairs([(name.replace("_", " "), value) for name, value in counted.items()])
        most = sorted(classes.items(), key=lambda item: -item[1])
        print_table(("class", "boxes"), most[:SHOWN_CLASSES])
        if len(most) > SHOWN_CLASSES:
            say(f"… and {len(most) - SHOWN_CLASSES} more classes; --json has all")


@app.command()
def toy(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to draw it.")],
    train_images: int = typer.Option(320, min=1),
    val_images: int = typer.Option(80, min=1),
    size: int = typer.Option(128, min=64, max=1024, help="Side of the square images [px]."),
    seed: int = typer.Option(0, min=0),
    as_json: AsJson = False,
) -> None:
    """Draw the generated data set of shapes."""
    from boxseg.config.method import ToyConfig
    from boxseg.data.toy import ensure_toy

    require_room("DIR", folder)
    settings = ToyConfig(train_images=train_images, val_images=val_images, size=size, seed=seed)
    sources = dict(zip(("train", "val"), ensure_toy(folder, settings), strict=True))
    _print_sources(sources, as_json)


@app.command("import")
def import_(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Folder of the data set, or a COCO file.")
    ],
    format_name: Format = typer.Option(..., "--from", help="Format of the source."),
    output: Path = typer.Option(..., metavar="DIR", help="Gets one COCO file for each split."),
    exclude: list[Path] | None = optional(
        "FILE.json", "Leave out the images of this file; may be repeated."
    ),
    images: Images = None,
    as_json: AsJson = False,
) -> None:
    """Write COCO instance files for a data set in another format; its images stay where they are.

    From a COCO file, sound entries are taken over with all their fields, and boxes are clipped to their image.
    """
    from boxseg.coco.checks import read_well_formed
    from boxseg.coco.writer import require_objects
    from boxseg.files.images import describe_paged
    from boxseg.formats.convert import convert
    from boxseg.formats.find import find_source, refuse_addresses

    refuse_addresses(source, images, *(exclude or ()))
    excluded = set()
    for path in exclude or ():
        for entry in read_well_formed(path, whole=False)["images"]:
            # without folder and ending, as copies of an image often differ in these
            excluded.add(Path(entry["file_name"]).stem)
    splits = convert(source, format_name)
    if exclude:
        left_out = sum(split.leave_out(excluded) for split in splits.values())
        say(
            f"{left_out} images left out of the {len(excluded)} names in {', '.join(map(str, exclude))}"
        )
    require_objects(splits, source)
    for name, split in splits.items():
        _warn_of_odd_boxes(source, output / f"{name}.json", split.content)
    if images is not None or format_name == "coco":
        folder = find_source(source, images).images
        for split in splits.values():
            split.images = folder
    pictures = {
        split.images / image["file_name"]
        for split in splits.values()
        for image in split.content["images"]
    }
    if warning := describe_paged(sorted(pictures)):
        say(f"warning: {warning}")
    _write_splits(
        {name: (split.images, split.content) for name, split in splits.items()}, output, as_json
    )


def _warn_of_odd_boxes(source: Path, path: Path, content: dict[str, Any]) -> None:
    """Warn of odd boxes in a file before it is written.

    Raises:
        DataError: most of them cannot be used.
    """
    from boxseg.coco.entries import annotation_faults
    from boxseg.coco.faults import first_of_each_kind
    from boxseg.coco.odd_boxes import box_faults
    from orchestration.planning.label_input import log_faults

    faults = itertools.chain(box_faults(path, content), annotation_faults(path, content))
    of = len(content["annotations"])
    log_faults(path, first_of_each_kind(faults), of=of, source=source)


@app.command()
def export(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.json", help="COCO file with masks, as `boxseg label` writes."
        ),
    ],
    output: Path = typer.Option(..., metavar="DIR", help="A new folder."),
    form: Literal["coco", "yolo"] = typer.Option(
        "coco", "--to", help="COCO instances, or YOLO segmentation."
    ),
    min_quality: float = typer.Option(0.0, min=0, max=1, help="Leave out masks below."),
    without_doubts: bool = flag(
        "--without-doubts", "Leave out masks with a doubt that nobody accepted."
    ),
    only_accepted: bool = flag(
        "--only-accepted", "Leave out masks that nobody accepted on the review page."
    ),
    images: Images = None,
    as_json: AsJson = False,
) -> None:
    """Write masks as training data for any segmenter; if a mask is left out, its whole image is left out.

    Otherwise a segmenter would learn that the object is background. A mask of `boxseg label` that is just its box is
    left out as well, unless it was accepted.
    """
    from boxseg.coco.checks import read_well_formed
    from boxseg.coco.picture_checks import image_fault
    from boxseg.files.images import require_some_image
    from boxseg.files.reading import DOES_NOT_EXIST
    from boxseg.formats.find import find_source
    from boxseg.formats.good_masks import Wanted, find_good_masks

    source = find_source(target, images)
    wanted = Wanted(min_quality, without_doubts=without_doubts, only_accepted=only_accepted)
    good = find_good_masks(read_well_formed(target), wanted, target)
    missing = []
    for image in good.content["images"]:
        fault = image_fault(source.images, image, decode=False)
        if fault is None or not fault.fatal:
            continue
        # masks become shares of the listed size, which has to be that of the image
        if fault.value != DOES_NOT_EXIST:
            raise DataError(str(fault))
        missing.append(image["file_name"])
    require_new(output)
    require_room("--output", output)
    good.require_some(target)
    require_some_image(source, good.content["images"])
    for left_out in good.summary():
        say(left_out)
    if missing:
        what = "are left out" if form == "yolo" else "are listed all the same"
        say(
            f"warning: {len(missing)} of these images are not in {source.images}, such as "
            f"{missing[0]}; they {what}"
        )
    if form == "yolo":
        from boxseg.formats.yolo_writer import write_yolo

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
    output: Path = typer.Option(..., metavar="DIR", help="Gets train.json and val.json."),
    val: float = typer.Option(0.2, help="Share of the images to validate on."),
    group: str | None = optional(
        "FIELD|folder", "Images that agree in this field, or folder, stay together."
    ),
    seed: int = typer.Option(0, min=0),
    images: Images = None,
    as_json: AsJson = False,
) -> None:
    """Split a COCO file into two, to train on and to validate on; the same call gives the same split."""
    from boxseg.coco.split import split_coco
    from boxseg.formats.find import find_source, refuse_addresses

    refuse_addresses(target, images)
    parts = split_coco(target, val=val, group=group, seed=seed)
    folder = find_source(target, images).images
    _write_splits({name: (folder, content) for name, content in parts.items()}, output, as_json)


def _write_splits(
    parts: dict[str, tuple[Path, dict[str, Any]]], output: Path, as_json: bool
) -> None:
    """Write `output/NAME.json` for each split and print what was written; refuses to replace files."""
    from boxseg.config.method import CocoSource
    from boxseg.files.writing import write_atomic

    require_room("--output", output)
    paths = {name: output / f"{name}.json" for name in parts}
    # check all of them before the first is written
    for path in paths.values():
        if path.exists():
            raise ConfigError(
                f"--output {output}: {path.name} is there already; name another folder, or remove it"
            )
    output.mkdir(parents=True, exist_ok=True)
    sources = {}
    for name, (images, content) in parts.items():
        write_atomic(paths[name], json.dumps(content))
        say(f"{name}: {len(content['images'])} images, {len(content['annotations'])} objects")
        sources[name] = CocoSource(images=images.absolute(), annotations=paths[name])
    _print_sources(sources, as_json)


def _print_sources(sources: dict[str, CocoSource], as_json: bool) -> None:
    """Print images and annotations of each split in the form of the settings `data.train` and `data.val`."""
    if as_json:
        print_json(sources)
        return
    for name, source in sources.items():
        print_line(f"{name}: {{images: {source.images}, annotations: {source.annotations}}}")


def _sources(target: Path, images: Path | None, use: str) -> dict[str, CocoSource]:
    """Images and annotations by split."""
    from boxseg.formats.find import find_source, refuse_others

    refuse_others(target)
    if is_json(target):
        return {use: find_source(target, images)}
    from orchestration.config.spec import load_run
    from orchestration.store.data import fetch_data

    spec = load_run(target)
    fetch_data(spec, say)
    if not spec.data.files:
        raise ConfigError(
            f"{target}: data.train and data.val are toy, which is drawn and has no files to look at"
        )
    return spec.data.files

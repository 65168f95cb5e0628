"""Finds the annotation file and the folder of its images from the file or folder that a person names."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Literal

from boxseg.config.method import CocoSource
from boxseg.errors import ConfigError, DataError
from boxseg.files.names import files_in, is_file_inside, split_name
from boxseg.formats.common import example_json

OTHER_ENDINGS = frozenset(
    {".csv", ".gz", ".jsonl", ".manifest", ".ndjson", ".parquet", ".rar", ".record", ".tar"}
    | {".tfrecord", ".tsv", ".txt", ".xml", ".zip"}
)
"""Other files that people keep annotations in, which are not read."""


def find_source(annotations: Path, images: Path | None) -> CocoSource:
    """An annotation file and its images: in the named folder, or else where its first image is found.

    Args:
        annotations: COCO instance file.
        images: Folder of its images. If left out, they are looked for beside the file, in `images` or `data` there, and
            one level up in `images` and in a folder of the file's own name, without `instances_`.

    Raises:
        ConfigError: `annotations` is a folder, `images` is not one, or no folder has the first image.
        DataError: the file cannot be read, or lists no image.
    """
    from boxseg.coco.checks import read_annotations

    refuse_addresses(annotations, images)
    refuse_others(annotations)
    if images is not None:
        _require_folder(images)
        return CocoSource(images=images, annotations=annotations)
    name = _first_file_name(read_annotations(annotations)["images"])
    above = annotations.absolute().parent.parent
    split = annotations.stem.removeprefix("instances_")  # COCO and CVAT call their files so
    folders = [
        annotations.parent,
        annotations.parent / "images",
        annotations.parent / "data",  # as FiftyOne writes it
        above / "images",
        above / split,
        above / "images" / split,
    ]
    if not name:
        raise DataError(
            f"{annotations}: lists no image with a file name (name another file; if it names them by `coco_url`, as "
            f"LVIS does, `boxseg data check {shlex.quote(str(annotations))} --images DIR --fix NEW` writes a copy with "
            "file names)"
        )
    # The name may be one of another machine; the check of the images reports that.
    for listed in (name, "/".join(split_name(name)[:1])):
        for folder in folders:
            if is_file_inside(folder, listed):
                return CocoSource(images=folder, annotations=annotations)
    looked = ", ".join(str(folder) for folder in folders)
    raise ConfigError(
        f"{annotations}: its image {name} is not in {looked}; name the folder with --images"
    )


def _require_folder(images: Path) -> None:
    if not images.is_dir():
        raise ConfigError(
            f"--images {images}: is not a folder; name the one that holds the images"
        )


def refuse_addresses(*paths: Path | None) -> None:
    """Refuse addresses of an object store, for commands that read only files of this machine.

    Raises:
        ConfigError: one of them is an address.
    """
    for path in filter(None, paths):
        # `s3://bucket` is `s3:/bucket` as a path
        if path.parts[:1] in (("s3:",), ("gs:",), ("az:",)):
            raise ConfigError(
                f"{path.parts[0]}//{'/'.join(path.parts[1:])}: is in an object store; copy it here, or name a COCO "
                "file as data.train of an experiment file, which is fetched"
            )


def find_boxes(data: Path, images: Path | None, *, imports: Path) -> CocoSource:
    """Boxes and images of a COCO file, or of a YOLO or VOC folder, which is imported into the folder `imports`.

    Raises:
        ConfigError: see `find_source`.
        DataError: see `import_boxes`.
    """
    return import_boxes(data, imports, images) if data.is_dir() else find_source(data, images)


def import_boxes(data: Path, folder: Path, images: Path | None) -> CocoSource:
    """Write the boxes of a YOLO or VOC folder as `folder/boxes.json`, each image once.

    Of a VOC folder with lists, those of `ImageSets/Main` are used, or else those of `ImageSets/Segmentation`; if one of
    them is called `trainval`, only that one.

    Args:
        data: The YOLO or VOC folder.
        folder: Gets the annotation file; made if it is missing.
        images: Folder of the images; if left out, the one that the folder's format has for them.

    Raises:
        ConfigError: `images` is no folder.
        DataError: `data` is no such folder, or is damaged.
    """
    from boxseg.coco.writer import join_splits, require_objects
    from boxseg.files.writing import write_atomic
    from boxseg.formats.convert import convert

    if images is not None:
        _require_folder(images)
    splits = convert(data, _format_of(data))
    require_objects(splits, data)
    with_boxes = [name for name in splits if name.startswith("boxes_")] or list(splits)
    # `trainval` holds all images of `train` and `val`.
    chosen = [name for name in with_boxes if name.endswith("trainval")] or with_boxes
    joined = join_splits([splits[name] for name in chosen])
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "boxes.json", json.dumps(joined.content))
    return CocoSource(images=images or joined.images.absolute(), annotations=folder / "boxes.json")


def refuse_others(path: Path) -> None:
    """Refuse a folder where an annotation file is needed, and files whose names show that they are none.

    Raises:
        ConfigError: tells how to import it.
    """
    if path.is_file() and path.suffix.lower() in OTHER_ENDINGS:
        raise ConfigError(
            f"{path}: is not a COCO file (.json), and no other file is read; export it as COCO instances, or import "
            "the whole folder with `boxseg data import` if it is one of YOLO or VOC"
        )
    if path.is_dir():
        raise ConfigError(
            f"{path}: is a folder, and an annotation file in COCO's format is needed; name it{example_json(path)}, "
            f"or make one with `boxseg data import {shlex.quote(str(path))} --from {_format_of(path)} --output DIR`"
        )


def _format_of(folder: Path) -> Literal["voc", "yolo"]:
    is_voc = (folder / "Annotations").is_dir() or bool(files_in(folder, ".xml"))
    return "voc" if is_voc else "yolo"


def _first_file_name(images: list[object]) -> str:
    """The first file name among entries that may be damaged; empty if there is none."""
    for image in images:
        if isinstance(image, dict) and isinstance(image.get("file_name"), str):
            return str(image["file_name"])
    return ""

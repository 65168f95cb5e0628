"""Checks what `boxseg label` and `boxseg eval` are given, before torch is loaded and anything is written."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from boxseg.coco.checks import check_entries, read_well_formed
from boxseg.coco.classes import require_shared_class
from boxseg.coco.entries import objects_of
from boxseg.coco.faults import Fault, count_faults, first_of_each_kind
from boxseg.coco.picture_checks import picture_faults
from boxseg.config.method import CocoSource
from boxseg.data.fingerprint import take_fingerprint
from boxseg.data.mask_files import MaskFile
from boxseg.data.misfits import find_misplaced
from boxseg.engine.checkpoint import load_about
from boxseg.errors import ConfigError, DataError
from boxseg.files.images import require_some_image
from boxseg.files.names import is_json
from orchestration.record.find_runs import find_trained

logger = logging.getLogger(__name__)

OF_FILE = "file:"
SOURCES = ("run", "box")


def read_data(source: CocoSource, *, to_evaluate: bool = False) -> list[str]:
    """Names of the classes of a data set; logs what is odd about its entries and pictures.

    Args:
        source: Images and annotation file.
        to_evaluate: Whether other masks are measured against its masks.

    Raises:
        DataError: the annotation file is damaged, lists a file twice, has no box, or has boxes that are not in pixels.
        ConfigError: none of its images is in the folder.
    """
    content = read_well_formed(source.annotations, whole=False)
    require_some_image(source, content["images"])
    if to_evaluate and not objects_of(content):
        raise DataError(
            f"{source.annotations}: has no object that is not a crowd, so there is nothing to find; "
            "AP needs objects (name another file)"
        )
    faults = check_entries(source, training=not to_evaluate)
    log_faults(source.annotations, faults, of=len(content["annotations"]))
    for fault in first_of_each_kind(
        picture_faults(source.images, content["images"], decode=False)
    ):
        logger.warning("%s", fault)
    for warning in find_misplaced(take_fingerprint(source)):
        logger.warning("%s: %s", source.annotations, warning)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    return [category["name"] for category in categories]


def log_faults(path: Path, faults: list[Fault], *, of: int, source: Path | None = None) -> None:
    """Log the faults of an annotation file's entries, if most entries can be used.

    Args:
        path: The file.
        faults: The first of each kind.
        of: Number of annotations.
        source: The name to use for a file that is refused before it is written.

    Raises:
        DataError: a fault concerns the whole file, such as boxes in another notation, or most annotations have one.
    """
    is_of_all = any(fault.fatal and fault.annotation_id is None for fault in faults)
    unusable = count_faults(faults, fatal=True)
    are_most_wrong = 2 * unusable > of  # the others are probably wrong too
    if source is not None and (is_of_all or are_most_wrong):
        path, faults = source, [replace(fault, file=source) for fault in faults]
    for fault in faults:
        if fault.fatal and fault.annotation_id is None:
            raise DataError(str(fault))
        logger.warning("%s%s", fault, f" … and {fault.more} more" if fault.more else "")
    if are_most_wrong:
        raise DataError(
            f"{path}: {unusable} of {of} annotations are wrong, as those above; boxes are x, y, width, height in "
            "pixels of these images (correct or remove them)"
        )


def open_masks(
    name: str, *, run: str | None, fuse_with: Path | None, storage: Path
) -> MaskFile | None:
    """The file of a source of masks, or of masks that join those of a run; refuses unknown sources.

    Raises:
        ConfigError: the source is unknown, or the run does not exist.
        DataError: the file is missing or holds something else.
    """
    path = name.removeprefix(OF_FILE)
    if name not in SOURCES and (not name.startswith(OF_FILE) or not path):
        raise ConfigError(f"--source {name}: use run, box or file:COCO.json")
    if name != "run" and fuse_with is not None:
        raise ConfigError(
            f"--fuse-with {fuse_with}: joins the candidates of a run, not --source {name}; leave one out"
        )
    file = fuse_with if name in SOURCES else Path(path)
    masks = None if file is None else MaskFile.read(file)
    if name == "run" and run is not None:
        find_trained(storage, run)
    return masks


def open_detections(
    name: str, *, classes: Sequence[str], data: Path, storage: Path
) -> MaskFile | None:
    """A file of detections; None for a run, which is refused if it knows no class of the data.

    Args:
        name: A run, or a JSON file.
        classes: Names of the classes of the data.
        data: Annotation file.
        storage: Where runs are kept.

    Raises:
        ConfigError: there is no such run, or none of its classes is one of the data.
        DataError: the file is missing or holds something else.
    """
    if is_json(name):
        return MaskFile.read(Path(name))
    about = load_about(find_trained(storage, name))
    require_shared_class(about["classes"]["names"], classes, data)
    return None

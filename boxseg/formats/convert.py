"""Data sets in other formats -> COCO instances: Pascal VOC, SBD, YOLO, and COCO itself cleaned.

Only annotation files are made; pictures stay where they are. VOC's difficult objects become crowd regions, which are
neither trained on nor evaluated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from boxseg.coco.checks import read_whole
from boxseg.coco.fix import clean_content
from boxseg.coco.mend import Changes
from boxseg.coco.writer import CocoSplit
from boxseg.errors import DataError
from boxseg.files.names import is_inside
from boxseg.formats import Format
from boxseg.formats.common import Splits
from boxseg.formats.sbd import convert_sbd
from boxseg.formats.voc import convert_voc
from boxseg.formats.yolo import convert_yolo

logger = logging.getLogger(__name__)


def convert(source: Path, format_name: Format) -> Splits:
    """Read a data set in its published layout.

    Args:
        source: A COCO file; `VOC2012` of VOC's archive; `dataset` of SBD's; a YOLO folder.
        format_name: Which of them it is.

    Returns:
        Split name -> its images and objects: for VOC the lists of `ImageSets/Segmentation` and, as `boxes_…`, those of
        `ImageSets/Main`; for SBD `train`, `val` and both together as `trainval`.

    Raises:
        DataError: a folder or file is missing or not in the format; names it.
    """
    if not source.exists():
        raise DataError(
            f"{source}: does not exist; a data set is a folder, or for COCO a file (correct the path)"
        )
    return CONVERTERS[format_name](source)


def convert_coco(source: Path) -> Splits:
    """COCO: the sound entries with all their fields, boxes cut to their image; what is left out is logged."""
    content = read_whole(source)
    changes = Changes()

    # Without a folder: the images of a COCO file can be anywhere and are not looked at.
    clean_content(
        content, changes, path=source, keep_image=lambda image: is_inside(image["file_name"])
    )
    for line in changes.lines():
        logger.warning("%s: %s", source, line)
    class_names = [category["name"] for category in content["categories"]]
    split = CocoSplit(source.parent, class_names)
    split.content = content
    return {source.stem: split}


CONVERTERS: dict[Format, Callable[[Path], Splits]] = {
    "coco": convert_coco,
    "voc": convert_voc,
    "sbd": convert_sbd,
    "yolo": convert_yolo,
}
"""Format -> what reads it."""

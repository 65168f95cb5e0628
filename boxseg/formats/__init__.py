"""Other formats of data sets, which become COCO."""

from typing import Literal

Format = Literal["coco", "voc", "sbd", "yolo"]
"""Formats that are read; defined here, since the command line lists them before it loads the readers."""

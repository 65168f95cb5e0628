"""Reads SBD, the Semantic Boundaries Dataset: masks of VOC's classes in MATLAB files."""

from __future__ import annotations

import io
import multiprocessing
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from boxseg.coco.writer import CocoSplit
from boxseg.errors import DataError
from boxseg.files.reading import read_bytes
from boxseg.formats.common import MAX_OBJECTS, UNPACK, Splits, require_splits
from boxseg.formats.voc import VOC_CLASSES, read_stems

SBD_RULE = "`GTinst` has `Segmentation`, numbers from 1 on, and `Categories`, a class 1 … 20 for each of them"


def convert_sbd(source: Path) -> Splits:
    """SBD: masks of `inst/*.mat`, and the tight boxes around them.

    Source: the description that comes with the Semantic Boundaries Dataset (Hariharan et al., ICCV 2011).
    """
    stems = {}
    for name in ("train", "val"):
        path = source / f"{name}.txt"
        if path.is_file():
            stems[name] = read_stems(path)
    if len(stems) == 2:
        stems["trainval"] = stems["train"] + stems["val"]
    splits: Splits = {}
    # SciPy's reader can end its process at a damaged file, so it has one of its own.
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as reader:
        for name, stems_of_split in stems.items():
            splits[name] = CocoSplit(source / "img", VOC_CLASSES)
            for stem in stems_of_split:
                _add_image(splits[name], source / "inst" / f"{stem}.mat", reader)
    return require_splits(splits, source, "train.txt", "benchmark_RELEASE/dataset")


def _add_image(split: CocoSplit, path: Path, reader: Executor) -> None:
    try:
        numbers, classes = reader.submit(_read_file, path).result()
    except BrokenProcessPool as error:
        raise DataError(
            f"{path}: is so damaged that reading it ends the process; {SBD_RULE} ({UNPACK})"
        ) from error
    split.add_image(f"{path.stem}.jpg", numbers.shape)
    for number, class_number in enumerate(classes, start=1):
        mask = numbers == number
        if mask.any():  # an object may be hidden by others altogether
            split.add_object(class_number - 1, mask=mask)


def _read_file(path: Path) -> tuple[NDArray[Any], list[int]]:
    """The number of the object at each pixel (h, w), and the class number of each object from 1 on."""
    data = read_bytes(path, SBD_RULE)
    try:
        truth = loadmat(io.BytesIO(data), variable_names=["GTinst"])["GTinst"][0, 0]
        numbers = np.asarray(truth["Segmentation"])
        classes = np.asarray(truth["Categories"]).ravel()
        are_known = bool(np.isin(classes, range(1, len(VOC_CLASSES) + 1)).all())
    except Exception as error:  # whatever SciPy meets in a file of another kind
        raise DataError(
            f"{path}: is not an instance file of SBD: {error}; {SBD_RULE} ({UNPACK})"
        ) from error
    if numbers.ndim != 2 or not numbers.size or len(classes) > MAX_OBJECTS or not are_known:
        raise DataError(
            f"{path}: has a Segmentation of shape {numbers.shape} and Categories "
            f"{classes[:9].tolist()}; {SBD_RULE} ({UNPACK})"
        )
    return numbers, [int(class_number) for class_number in classes]

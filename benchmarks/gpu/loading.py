"""Whether a step waits for its images: what loader processes read, and what a GPU could decode."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import torch
import torchvision

from benchmarks.around import PICTURE
from benchmarks.gpu.place import NEEDS_GPU, Place, attempt
from benchmarks.harness import Table
from benchmarks.scenario import Scenario, build, write_pictures
from boxseg.config.method import CocoSource, DataConfig
from boxseg.data.dataset import CocoBoxes
from boxseg.data.images import read_image
from boxseg.data.loader import TrainLoader
from boxseg.engine.train import optimise

Row = tuple[str, float | str]
BATCH = 16


def loading(place: Place) -> Iterator[Table]:
    """Images per second of files of COCO's size, then how long a step waits for them."""
    images = 64 if place.has_gpu else 4
    source = write_pictures(place.folder / "files", images, PICTURE, 7)
    files = sorted(Path(source["images"]).iterdir())
    rows: list[Row] = []
    for name, rate in {
        "decode, one process": lambda: _rate(images, lambda: [read_image(each) for each in files]),
        "decode on the GPU (nvjpeg)": lambda: _decode_there(place, files),
    }.items():
        rows.append((name, attempt(place, rate)))
    title = f"Images per second, JPEG of {PICTURE[1]} x {PICTURE[0]}"
    for workers in (0, 4, 8, 16) if place.has_gpu else (0, 2):
        name = f"views of {_side(place)} px on the device, {workers} loader processes"
        rows.append((name, attempt(place, partial(_views, place, source, workers))))
        note = f"{os.cpu_count()} cores. Both views are made on the device."
        yield Table(title, ("what", "images/s"), rows, note)
    yield Table(
        "Waits of a full step for its images", ("loader processes", "share"), _waits(place)
    )


def _rate(images: int, read: Callable[[], object]) -> float:
    """Images per second of the second of two calls."""
    read()
    began = time.perf_counter()
    read()
    return images / (time.perf_counter() - began)


def _decode_there(place: Place, files: list[Path]) -> float | str:
    if not place.has_gpu:
        return NEEDS_GPU
    content = [torchvision.io.read_file(str(each)) for each in files]

    def decode() -> None:
        torchvision.io.decode_jpeg(content, device=place.device)
        torch.cuda.synchronize()

    return _rate(len(files), decode)


def _views(place: Place, source: dict[str, Path], workers: int) -> float:
    """Images per second of the loader alone, once its processes have started."""
    config = Scenario(_side(place)).settings("full")
    data = CocoBoxes(CocoSource(**source), train=True)
    train = config.train.model_copy(update={"batch_size": BATCH if place.has_gpu else 2})
    views = DataConfig(strong="strong", loader_workers=workers)
    loader = TrainLoader(data, train, views, device=place.device)
    first, counted = (2 * max(workers, 1), 48) if place.has_gpu else (1, 2)
    batches = loader.batches(0, first + counted)
    for _ in islice(batches, first):
        pass
    began = time.perf_counter()
    images = sum(len(batch) for batch in batches)
    if place.has_gpu:
        torch.cuda.synchronize()
    return images / (time.perf_counter() - began)


def _side(place: Place) -> int:
    """Short side of a view [px]."""
    return 800 if place.has_gpu else 64


def _waits(place: Place) -> list[Row]:
    """Share of the time of training that passes while it waits for a batch."""
    return [
        (str(workers), attempt(place, partial(_wait_share, place, workers)))
        for workers in ((4, 16) if place.has_gpu else (0,))
    ]


def _wait_share(place: Place, workers: int) -> float:
    small = not place.has_gpu
    scenario = Scenario(_side(place), batch_size=2 if small else BATCH, small=small)
    settings = {"data": {"loader_workers": workers}}
    trainer, _ = build(scenario, "full", place.folder, place.device, **settings)
    steps, waited = (4 if small else 24), 0.0
    began = asked = time.perf_counter()
    for step, batch in enumerate(trainer.loader.batches(0, 2 * steps)):
        if step == steps:  # from here on the loader is as far ahead as it gets
            began, waited = asked, 0.0
        waited += time.perf_counter() - asked
        optimise(trainer, batch, step)
        asked = time.perf_counter()
    return waited / (asked - began)

"""What happens around the step: reading annotation files and images, and evaluation."""

from __future__ import annotations

import json
import statistics
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Table, Times, ratio, take_turns, timed
from benchmarks.scenario import CLASSES, Scenario, build, draw_ellipse, step_of, write_pictures
from boxseg.config.method import CocoSource, DataConfig, TrainConfig
from boxseg.data.dataset import CocoBoxes
from boxseg.data.ground_truth import coco_ground_truth
from boxseg.data.images import read_image
from boxseg.data.loader import TrainLoader
from boxseg.engine.train import Progress, save
from boxseg.evaluation.ap import coco_scores, encode_detections
from boxseg.model.postprocess import postprocess

PICTURE = (480, 640)
"""Height and width of the files [px]: what most of COCO has."""


def loading(folder: Path, images: int) -> Table:
    """Images per CPU second of decoding and of all that loader processes do, and the cost of what is left for later."""
    data = CocoBoxes(
        CocoSource(**write_pictures(folder / "files", images, PICTURE, 7)),
        train=True,
    )
    sides, steps = (256, 480, 800), range(images // 2)
    paths = [data.image_path(index) for index in range(images)]
    actions: dict[str, Any] = {"decode": lambda: drop(map(read_image, paths))}
    for side in sides:
        train = TrainConfig(image_size=side, batch_size=2)
        loader = TrainLoader(data, train, DataConfig(strong="strong"))
        found = [loader.read(step) for step in steps]
        actions[f"read {side}"] = lambda loader=loader: drop(map(loader.read, steps))
        actions[f"views {side}"] = lambda loader=loader, found=found: drop(
            map(loader.finish, found)
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as loader processes have it
    times = take_turns(actions, 5)
    torch.set_num_threads(threads)
    rows: list[tuple[Any, ...]] = [("decode", images / times["decode"].median, 1, "")]
    for side in sides:
        read, views = times[f"read {side}"], times[f"views {side}"]
        later_ms = 1000 * views.median / images
        rows.append(
            (
                f"loader, short side {side}",
                images / read.median,
                ratio(times["decode"], read),
                later_ms,
            )
        )
    note = (
        "One process, one thread. The loader decodes, makes images smaller where the view is, and fits boxes; its "
        "processes (`data.loader_workers`) multiply the rate and run beside the step. The last column comes on top, "
        "where the step runs: enlarging, padding and the colours of the strong view, here on the CPU; without loader "
        "processes both add up."
    )
    title = f"Reading JPEG images of {PICTURE[1]} x {PICTURE[0]}"
    return Table(
        title,
        ("what", "images per CPU s", "/ decode", "then on the device [CPU ms per image]"),
        rows,
        note,
    )


def drop(results: Iterable[object]) -> None:
    """Run through results and keep none, as training does."""
    deque(results, maxlen=0)


def evaluation(folder: Path, images: int) -> Table:
    """CPU seconds for 1,000 images with 100 detections each, the network's forward pass apart."""
    scenario = Scenario(256, boxes=7, batch_size=images, small=True)
    trainer, batch = build(scenario, "boxinst", folder)
    trainer.student.eval()
    spent = {"masks, rescoring, NMS": Times(), "encoding": Times(), "AP": Times()}
    settings = trainer.config.fcos.model_copy(update={"score_thr": 1e-12})
    with torch.no_grad():
        found = trainer.student(batch.weak, batch.valid)
    truth = coco_ground_truth(trainer.val_data.source)
    for _ in range(3):
        with torch.no_grad(), timed(spent["masks, rescoring, NMS"]):
            detections = postprocess(trainer.student, found, batch, settings)
        with timed(spent["encoding"]):
            results = [encode_detections(each) for each in detections]
        with timed(spent["AP"]):
            coco_scores(
                truth,
                results,
                image_ids=batch.image_ids,
                category_ids=trainer.val_data.category_ids,
            )
    count = sum(len(each.scores) for each in detections) / images
    rows = [(name, own.median / images * 1000) for name, own in spent.items()]
    return Table(
        f"Evaluation, 256 x 256, {count:.0f} detections per image",
        ("part", "CPU s per 1,000 images"),
        rows,
    )


def saving(folder: Path, rounds: int, *, small: bool) -> Table:
    """Seconds that training waits for a checkpoint."""
    trainer, batch = build(Scenario(256, small=small), "full", folder)
    step_of(trainer, batch)()
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir()
    spent = Times()
    for _ in range(rounds):
        with timed(spent):
            written = save(trainer, checkpoints, Progress())
    size = sum(path.stat().st_size for path in written.iterdir()) / 1e6
    row = (statistics.median(spent.wall), spent.median)
    return Table(f"A checkpoint of {size:.0f} MB", ("wall s", "CPU s"), [row])


def reading(folder: Path, images: int) -> Table:
    """Reading a COCO file without images."""
    rng = np.random.default_rng(0)
    path, per_image = folder / f"annotations-{images}.json", 7
    entries = [
        {"id": number, "image_id": number // per_image, "iscrowd": 0, **draw_ellipse(rng, PICTURE)}
        for number in range(images * per_image)
    ]
    height, width = PICTURE
    rows = [
        {"id": i, "file_name": f"{i:012d}.jpg", "height": height, "width": width}
        for i in range(images)
    ]
    names = [{"id": number + 1, "name": f"class {number}"} for number in range(CLASSES)]
    path.write_text(json.dumps({"images": rows, "annotations": entries, "categories": names}))
    del entries, rows
    spent = Times()
    with timed(spent):
        CocoBoxes(CocoSource(images=folder, annotations=path), train=True)
    size = path.stat().st_size / 1e6
    path.unlink()
    cells = [(images, images * per_image, size, spent.median)]
    return Table("Reading an annotation file", ("images", "boxes", "MB", "CPU s"), cells)

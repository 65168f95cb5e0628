"""Labels from any source of masks: a run, the boxes themselves, or masks that a file holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.execute.trained import open_predictor
from orchestration.planning.label_input import OF_FILE
from orchestration.record.files import digest
from orchestration.record.progress import counted

if TYPE_CHECKING:
    from boxseg.data.dataset import CocoBoxes
    from boxseg.label.sources import BatchSource


@dataclass(frozen=True)
class MaskSource:
    """Where masks come from."""

    masks: BatchSource
    about: dict[str, Any]
    """Identifies data and source, so that a later call goes on with the same ones only."""
    batch_size: int = 1


def open_source(
    name: str,
    boxes: CocoBoxes,
    *,
    run: str | None,
    fuse_with: Path | None,
    device: str,
    storage: Path,
) -> MaskSource:
    """A source of masks by its name: `run`, `box` or `file:COCO.json`.

    Args:
        name: Of the source; checked by `check_sources` already.
        boxes: Images and boxes to label.
        run: For the source `run`, as `open_predictor` takes it.
        fuse_with: Masks of another tool that join the candidates of the run.
        device: For the source `run`.
        storage: Folder that holds the runs.
    """
    from boxseg.label import sources
    from boxseg.label.boxes import LABEL_VERSION

    # The version counts for every source: how masks are made from boxes changes too.
    about = {
        "data": digest(boxes.source.annotations),
        "source": name,
        "label_version": LABEL_VERSION,
    }
    if name == "run":
        assert run is not None
        others = None if fuse_with is None else sources.from_file(fuse_with, boxes)
        predictor = open_predictor(run, storage=storage, device=device)
        about["run"] = str(predictor.folder)
        if fuse_with is not None:
            about["fuse_with"] = digest(fuse_with)
        masks = sources.from_run(predictor, boxes, others=others)
        return MaskSource(masks, about, predictor.batch_size)
    if name.startswith(OF_FILE):
        path = Path(name.removeprefix(OF_FILE))
        about["file"] = digest(path)
        return MaskSource(sources.one_by_one(sources.from_file(path, boxes)), about)
    return MaskSource(sources.one_by_one(sources.from_boxes), about)


def make_labels(
    boxes: CocoBoxes, folder: Path, source: MaskSource, tell: Callable[[str], None]
) -> tuple[dict[str, Any], list[float]]:
    """Label the images that are left and write all; gives counts for people, and the qualities."""
    from boxseg.label.dataset import Journal, label_images, write_labels

    journal = Journal(folder, source.about)
    left = len(boxes) - len(journal.done)
    if journal.done and left:
        tell(f"{len(journal.done)} images are labelled already")
    finished = label_images(boxes, source.masks, journal, batch_size=source.batch_size)
    for _ in counted(finished, left, what="images"):
        pass
    qualities = [label["quality"] for image in journal.done.values() for label in image.labels]
    return write_labels(boxes, journal, folder), qualities

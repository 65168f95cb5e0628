"""A trained checkpoint and images in, boxes and masks out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from boxseg.build import build_network
from boxseg.config import BoxSegConfig
from boxseg.data import coco
from boxseg.data.loader import collate
from boxseg.data.transforms import resize_only
from boxseg.engine import checkpoint
from boxseg.engine.evaluate import detect
from boxseg.errors import CheckpointError, ShapeError
from boxseg.structures import Batch, Detections, Sample


class Predictor:
    """Finds objects and their masks with a trained network.

    ```python
    predictor = Predictor("runs/pennfudan/20261122-171500-k3f9/checkpoints/best")
    found = predictor(["street.jpg"])[0]
    print(predictor.class_names[found.labels[0]], found.scores[0], found.masks[0].sum())
    ```
    """

    def __init__(self, folder: str | Path, *, network: str | None = None, device: str = "cpu") -> None:
        """Load a network.

        Args:
            folder: A checkpoint folder, or the folder of a run (its best checkpoint is taken).
            network: `teacher` or `student`; None takes the one with the better mask AP in its last evaluation.
            device: As torch names it.

        Raises:
            CheckpointError: there is no checkpoint, it is damaged, or it has no such network.
        """
        folder = Path(folder)
        if (folder / "checkpoints" / checkpoint.BEST).exists():
            folder = folder / "checkpoints" / checkpoint.BEST
        self.folder = folder
        about = checkpoint.load_about(folder)
        try:
            self.config = BoxSegConfig.model_validate(about["config"])
        except ValidationError as error:
            raise CheckpointError(f"{folder}: settings of another version of boxseg: {error}; train again") from error
        self.class_names: list[str] = about["classes"]["names"]
        self.category_ids: list[int] = about["classes"]["ids"]
        self.network_name = network or _better_network(about["metrics"] or {})
        if self.network_name not in ("teacher", "student"):
            raise CheckpointError(f"{folder}: there is no network {self.network_name!r}; use teacher or student")
        self.device = torch.device(device)
        self.network = build_network(self.config, num_classes=len(self.class_names), weights="none")
        self.network.load_state_dict(checkpoint.load_network(folder, self.network_name))
        self.network.eval().to(self.device)

    def __call__(self, images: Sequence[str | Path | Tensor | np.ndarray]) -> list[Detections]:
        """Detections of each image, best first, at the image's own size.

        Args:
            images: Files, uint8 tensors (3, h, w) or uint8 arrays (h, w, 3), RGB; each is run on its own.

        Raises:
            DataError: a file is missing or cannot be read.
            ShapeError: a tensor or array has another shape or dtype.
        """
        return list(self.stream(images))

    @torch.no_grad()
    def stream(self, images: Iterable[str | Path | Tensor | np.ndarray]) -> Iterable[Detections]:
        """The same, one image at a time: memory stays that of one image."""
        for number, item in enumerate(images):
            batch = self.view(read_image(item), image_id=number)
            yield detect(self.network, batch, self.config.fcos)[1][0]

    def view(self, image: Tensor, *, image_id: int = -1, scale: float = 1.0) -> Batch:
        """An image uint8 (3, h, w) as a batch of one without boxes, at `scale` times the size of evaluation."""
        train = self.config.train
        none = torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64)
        sample = Sample(image, *none, image_id=image_id, original_size=(image.shape[1], image.shape[2]))
        view = resize_only(sample, round(scale * train.eval_short_side), round(scale * train.max_size))
        return collate([view]).to(self.device)


def read_image(item: str | Path | Tensor | np.ndarray) -> Tensor:
    """uint8 (3, h, w) RGB of a file, tensor or array.

    Raises:
        DataError: the file is missing or cannot be read.
        ShapeError: the tensor or array has another shape or dtype.
    """
    if isinstance(item, (str, Path)):
        return coco.read_image(Path(item))
    image = item if isinstance(item, Tensor) else torch.from_numpy(np.moveaxis(item, -1, 0))
    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
        raise ShapeError(f"image has dtype {image.dtype} and shape {tuple(image.shape)}; uint8 RGB (3, h, w) is needed")
    return image


def _better_network(metrics: dict[str, float]) -> str:
    teacher, student = (metrics.get(f"val/{name}_mask_ap") for name in ("teacher", "student"))
    if teacher is None:
        return "student"
    return "teacher" if student is None or teacher >= student else "student"

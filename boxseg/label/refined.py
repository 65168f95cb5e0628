"""Better masks for what a network finds: the boxes of its detections are labelled as if they were known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from boxseg.label.boxes import BoxLabels, label_together
from boxseg.ops.images import resized_shape
from boxseg.predict.predictor import Predictor, as_images, in_batches
from boxseg.structures import Detections, Sample


class RefiningPredictor(Predictor):
    """A predictor that looks closer at each confident object and gives it the outline that `label_boxes` would find.

    ```python
    predictor = RefiningPredictor("runs/pennfudan/20261122-171500-k3f9/checkpoints/best")
    found = predictor(["street.jpg"])[0]
    ```

    Boxes, scores and labels are those of `Predictor`. So are the masks of objects below `min_score`, and of images that
    the network sees at their own size or enlarged, as there a closer look shows nothing more.
    """

    def __call__(self, images: Iterable[str | Path | Tensor | np.ndarray]) -> list[Detections]:
        """Detections of each image, see `Predictor`, with refined masks."""
        detections: list[Detections] = []
        batches = in_batches(
            as_images(images), size=self.batch_size, pixels=lambda image: image[0].numel()
        )
        for batch in batches:
            for found in self._refine(batch, super().__call__(batch)):
                detections.append(replace(found, image_id=len(detections)))
        return detections

    def _refine(self, images: Sequence[Tensor], found: Sequence[Detections]) -> list[Detections]:
        """The detections of some images with better masks; all objects together, as that saves time on a GPU."""
        samples = [
            self._as_known(image, of_image) for image, of_image in zip(images, found, strict=True)
        ]
        labels = label_together(self, samples)
        return [
            _with_masks(of_image, refined) for of_image, refined in zip(found, labels, strict=True)
        ]

    def _as_known(self, image: Tensor, found: Detections) -> Sample:
        """An image whose known boxes are those of the detections that a closer look can improve."""
        train = self.config.train
        seen = resized_shape(found.size, short_side=train.eval_short_side, max_size=train.max_size)
        is_shrunk = seen[0] < found.size[0]
        refined = found.from_score(self.min_score if is_shrunk else math.inf)
        return Sample(image, refined.boxes.cpu(), refined.labels.cpu(), found.image_id, found.size)


def _with_masks(found: Detections, refined: BoxLabels) -> Detections:
    """Detections, the first of which have other masks; where there is none, the network's own mask stays."""
    parts = list(found.parts)
    # Detections are sorted by score, so those that were looked at again come first.
    for row, part in enumerate(refined.parts):
        if part.area:
            parts[row] = part
    return replace(found, parts=parts)

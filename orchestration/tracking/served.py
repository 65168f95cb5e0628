"""The code of a logged model, which MLflow runs to serve it; needs the method of boxseg and no Ray."""

from __future__ import annotations

import base64
import binascii
import tempfile
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel
from torch import Tensor

from boxseg.coco.masks import encode_part
from boxseg.errors import DataError
from boxseg.predict.predictor import Predictor, as_image
from boxseg.structures import Detections


class BoxSegModel(PythonModel):
    """Finds objects and their masks: what `boxseg predict` finds."""

    def load_context(self, context: Any) -> None:
        """Load the network that the model was logged with."""
        self.predictor = Predictor(context.artifacts["checkpoint"])

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """One object for each row: what was found in its image, best first.

        Args:
            model_input: Table with a column `image`: a PNG or JPEG file as base64, or a path on the serving machine.
            params: `min_score`, below which detections are left out; by default what its evaluation found best.

        Returns:
            `boxes` (x1 y1 x2 y2 in pixels), `scores`, `labels` (class names), `category_ids`, and `masks` as COCO
            run lengths `{"size": [h, w], "counts": text}`.

        Raises:
            DataError: an image cannot be read.
        """
        least = float((params or {}).get("min_score", self.predictor.min_score))
        images = [_open(text) for text in model_input["image"]]
        return [
            self._as_row(detections.from_score(least)) for detections in self.predictor(images)
        ]

    def _as_row(self, detections: Detections) -> dict[str, Any]:
        """The detections of one image as plain values."""
        labels = detections.labels.tolist()
        return {
            "boxes": detections.boxes.tolist(),
            "scores": detections.scores.tolist(),
            "labels": [self.predictor.class_names[label] for label in labels],
            "category_ids": [self.predictor.category_ids[label] for label in labels],
            "masks": [encode_part(part, detections.size) for part in detections.parts],
        }


def _open(text: str) -> Tensor:
    """Pixels of a path or of a file as base64, which are read by the same rules."""
    if "." in text:  # paths have endings, and base64 has no dot
        return as_image(text)
    try:
        # `validate`, as b64decode would otherwise leave out foreign letters and take any text.
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        rule = "neither the path of a picture nor a picture as base64"
        raise DataError(f"image {text[:40]!r}: {rule}") from error
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            return as_image(file.name)
        except DataError as error:
            raise DataError(str(error).replace(file.name, f"image {text[:40]!r}")) from error


mlflow.models.set_model(BoxSegModel())

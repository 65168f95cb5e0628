"""Uses of a trained run: boxes and masks for images, and the network as one file."""

from boxseg.predict.predictor import Predictor

__all__ = ["Predictor"]

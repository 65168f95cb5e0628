"""What a trained run is used for: boxes and masks for images, and a network as one file."""

from boxseg.predict.predictor import Predictor

__all__ = ["Predictor"]

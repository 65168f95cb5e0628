"""A trained network as a file that runs without this package: ONNX, TorchScript or bare weights, each checked."""

from __future__ import annotations

import io
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load, save
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from boxseg.errors import BoxSegError, ConfigError
from boxseg.files.writing import write_atomic
from boxseg.model.condinst import CondInst
from boxseg.model.vit import PlainVit
from boxseg.ops.boxes import decode_boxes
from boxseg.predict import Predictor

Format = Literal["onnx", "torchscript", "safetensors"]
OUTPUTS = ("boxes", "scores", "labels", "masks")
OPSET = 18
CANDIDATES = 100
"""Detections that an exported network gives, before NMS."""
TOLERANCE = 1e-3
"""Largest difference from PyTorch: of scores and probabilities, and of boxes as a share of the image's longer side."""
ROUNDING = 1e-5
"""Scores that differ by less may be the same."""
CHECK_SIZES = ((128, 160), (160, 96))
"""(H, W) of the images that a file is checked with; it is made with the first."""

Run = Callable[[NDArray[np.float32]], list[NDArray[Any]]]


class Deployed(nn.Module):
    """The network as one function of one image, without NMS, as it is exported."""

    def __init__(self, network: CondInst) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best detections of an image, still overlapping.

        Args:
            image: Float (1, 3, H, W), RGB in 0 … 255; H and W multiples of 32, padding has the mean colour.

        Returns:
            `boxes` float (K, 4), x1 y1 x2 y2 in pixels of the input, not clipped; `scores` float (K,) in [0, 1] of
            these boxes, falling; `labels` int64 (K,); `masks` float (K, H/4, W/4) in [0, 1], cell k is pixel 4 k + 2.
        """
        every_pixel = torch.ones_like(image[:, 0], dtype=torch.bool)
        predictions = self.network(image, every_pixel)
        centerness = predictions.centerness_logits[0].sigmoid()
        product = predictions.class_logits[0].sigmoid() * centerness[:, None]  # (L, classes)
        scores, place = F.pad(product.flatten(), (0, CANDIDATES)).topk(CANDIDATES)
        place = torch.where(scores > 0, place, 0)  # small images have fewer; the rest has score 0
        location = torch.div(place, product.shape[1], rounding_mode="floor")
        boxes = decode_boxes(predictions.locations, predictions.distances[0], predictions.strides)[
            location
        ]
        masks = self.network.mask_logits(
            predictions, torch.zeros_like(location), location
        ).sigmoid()
        return boxes, scores.sqrt(), place - location * product.shape[1], masks


def export_network(predictor: Predictor, form: Format, path: Path) -> dict[str, Any]:
    """Write a network to `path`, and what is needed to use it beside, as in `model.onnx.json`; check the file.

    Args:
        predictor: A trained CondInst.
        form: `onnx` and `torchscript` are `Deployed`, for images of any size that is a multiple of 32, one at a time;
            `safetensors` are the bare weights.
        path: File to write; its folder is made.

    Returns:
        What the JSON file holds: classes, mean colour, sizes, and of the check `difference` and seconds per image.

    Raises:
        ConfigError: the network is another one, or not for ONNX, or a package is missing.
        BoxSegError: the file would give other results than the network; nothing is written.
        StorageError: the disk is full, read-only or gone; what was there before is untouched.
    """
    if not isinstance(predictor.network, CondInst):
        raise ConfigError(
            f"{predictor.folder}: holds a {type(predictor.network).__name__}, and exports are of CondInst; "
            "write a network of yours with torch's own functions"
        )
    if form == "onnx" and not has_onnx(predictor.network):
        raise ConfigError(
            f"{predictor.folder}: ONNX cannot express how {predictor.config.model.backbone} resizes images and "
            "positions; use --format torchscript"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    network: Any = predictor.network.cpu().eval()
    train = predictor.config.train
    about: dict[str, Any] = {
        "format": form,
        "classes": predictor.class_names,
        "category_ids": predictor.category_ids,
        "mean_rgb": network.pixel_mean.flatten().tolist(),
        "short_side": train.eval_short_side,
        "max_size": train.max_size,
        "tile": train.eval_tile,
        "outputs": OUTPUTS,
    }
    content, check = WRITERS[form](network)
    about |= check
    if not check["difference"] <= TOLERANCE:
        raise BoxSegError(
            f"{path}: differs from the network by {check['difference']:.2g}; up to {TOLERANCE:g} is allowed"
        )
    # From memory: libraries that write it themselves may abort on a full disk.
    # The whole name and .json: a model.pt beside model.onnx may be of another run.
    description = path.with_name(f"{path.name}.json")
    # whatever stops what follows, no earlier description may stay beside another network
    description.unlink(missing_ok=True)
    write_atomic(path, content)
    write_atomic(description, json.dumps(about, indent=1))
    return about


def has_onnx(network: nn.Module) -> bool:
    """Whether ONNX has all operations of a network: it lacks resizing with antialiasing, which many plain ViTs use."""
    vits = (module for module in network.modules() if isinstance(module, PlainVit))
    return not any(vit.resizes for vit in vits)


def _make_onnx(network: Any) -> tuple[bytes, dict[str, float]]:
    model = Deployed(network).eval()
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            "--format onnx needs ONNX; in boxseg's folder: pip install -c constraints.txt -e '.[onnx]'"
        ) from error
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        path = Path(folder, "model.onnx")
        warnings.simplefilter("ignore")  # those of tracing: the check below shows if it worked
        torch.onnx.export(
            model,
            (_image(CHECK_SIZES[0]),),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=list(OUTPUTS),
            dynamic_axes={
                "image": {2: "height", 3: "width"},
                "masks": {1: "mask_height", 2: "mask_width"},
            },
        )
        content = path.read_bytes()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, _compare(model, lambda image: session.run(None, {"image": image}))


def _make_torchscript(network: Any) -> tuple[bytes, dict[str, float]]:
    model = Deployed(network).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = torch.jit.trace(
            model, _image(CHECK_SIZES[0]), check_trace=False
        ).save_to_buffer()
        loaded = torch.jit.load(io.BytesIO(content))

    def run(image: NDArray[np.float32]) -> list[NDArray[Any]]:
        return [output.numpy() for output in loaded(torch.from_numpy(image))]

    return content, _compare(model, run)


def _make_safetensors(network: nn.Module) -> tuple[bytes, dict[str, float]]:
    weights = {name: value.detach().contiguous() for name, value in network.state_dict().items()}
    content = save(weights)
    loaded = load(content)
    difference = 0.0
    for name, value in weights.items():
        difference = max(difference, float((loaded[name] - value).abs().max()))
    return content, {"difference": difference}


WRITERS: dict[Format, Callable[[Any], tuple[bytes, dict[str, float]]]] = {
    "onnx": _make_onnx,
    "torchscript": _make_torchscript,
    "safetensors": _make_safetensors,
}
"""Format -> what makes the content of the file, and checks it."""


@torch.no_grad()
def _compare(model: Deployed, run: Run) -> dict[str, float]:
    """Largest difference on images of several sizes (see `_difference`), and seconds per image of either side."""
    difference, seconds = 0.0, {"seconds": 0.0, "torch_seconds": 0.0}
    # Two sizes, as tracing may have turned sizes of the first image into constants.
    for size in CHECK_SIZES:
        image = _image(size)
        began = time.perf_counter()
        expected = [output.numpy() for output in model(image)]
        between = time.perf_counter()
        outputs = run(image.numpy())
        seconds["torch_seconds"] += (between - began) / len(CHECK_SIZES)
        seconds["seconds"] += (time.perf_counter() - between) / len(CHECK_SIZES)
        difference = max(difference, _difference(expected, outputs, longer_side=max(size)))
    return {"difference": difference, **seconds}


def _difference(here: list[NDArray[Any]], there: list[NDArray[Any]], *, longer_side: int) -> float:
    """Largest difference of two times the outputs of a network for one image.

    Detections whose scores are the same but for rounding may come in another order, and at the end be others.
    """
    have_shapes = [output.shape for output in here] == [output.shape for output in there]
    if not have_shapes or not all(np.isfinite(output).all() for output in there):
        return float("inf")
    rows = []
    for boxes, scores, labels, masks in (here, there):
        flat = masks.reshape(len(masks), -1)
        rows.append(np.hstack([boxes / longer_side, scores[:, None], labels[:, None], flat]))
    scores_here, scores_there = here[1], there[1]
    is_sure = scores_here > scores_here[-1] + ROUNDING
    to_nearest = cdist(*rows, "chebyshev")[is_sure].min(axis=1)
    return float(max(np.abs(scores_here - scores_there).max(), to_nearest.max(initial=0)))


def _image(size: tuple[int, int]) -> Tensor:
    """Coloured noise, float (1, 3, H, W) in 0 … 255, always the same."""
    return 255 * torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))

"""The trained weights that a new run starts from: those of an earlier run, or of a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from boxseg.engine import checkpoint
from boxseg.engine.events import StartReport
from boxseg.errors import CheckpointError
from boxseg.model.weights import read_state
from boxseg.structures import MaskNetwork


@dataclass(frozen=True)
class TrainedWeights:
    """What a new run can start from."""

    place: str
    state: dict[str, Tensor]
    class_names: list[str] | None
    """In the order of labels; None where they are not known."""


def read_trained(path: Path) -> TrainedWeights:
    """The better network of a checkpoint, or the state dict in a file.

    Args:
        path: Folder of a run (its best checkpoint is taken) or of a checkpoint, or a file of safetensors or torch.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
        DataError: the file holds no state dict.
    """
    if path.is_file():
        return TrainedWeights(str(path), read_state(str(path)), None)
    folder = checkpoint.find_checkpoint(path)
    about = checkpoint.load_about(folder)
    name = checkpoint.better_network(about)
    state = checkpoint.load_network(folder, name)
    return TrainedWeights(f"{folder} ({name})", state, about["classes"]["names"])


def take_over(
    network: MaskNetwork, trained: TrainedWeights, class_names: Sequence[str]
) -> StartReport:
    """Load all weights whose name and shape are those of the network's.

    Layers with a row of weights for each class take the rows of the classes that both networks have.

    Args:
        network: Is changed; what does not fit stays as it is.
        trained: If its classes are not known, layers with a row for each class are taken like any other.
        class_names: Classes of the network; case does not count.

    Raises:
        CheckpointError: no layer fits except those with a row for each class; the network is unchanged.
    """
    own, parameters = network.state_dict(), dict(network.named_parameters())
    pairs = (
        None if trained.class_names is None else _same_classes(trained.class_names, class_names)
    )
    fitting: dict[str, Tensor] = {}
    for name, tensor in own.items():
        weights, layer = trained.state.get(name), name.rpartition(".")[0]
        if weights is None:
            continue
        if pairs is not None and layer in network.class_layers:
            weights = _join_classes(tensor, weights, pairs)
        if weights is not None and weights.shape == tensor.shape:
            fitting[name] = weights
    # Vectors, such as biases, have the same shape in many networks; only a matrix shows that the networks are alike.
    shared = (name for name in fitting if name.rpartition(".")[0] not in network.class_layers)
    if not any(parameters[name].dim() > 1 for name in shared if name in parameters):
        raise CheckpointError(
            f"{trained.place}: no layer has the name and shape of one of this network; give weights of the same "
            "model.backbone and model.channels"
        )
    # torch asks for all names, so what does not fit is loaded with its own values.
    network.load_state_dict(own | fitting)
    anew = tuple(name for name in parameters if name not in fitting)
    known = None if pairs is None else tuple(class_names[new] for new, _ in pairs)
    return StartReport(trained.place, len(parameters) - len(anew), anew, known)


def _same_classes(before: Sequence[str], now: Sequence[str]) -> list[tuple[int, int]]:
    """(label now, label before) of the classes that both lists name."""
    label_of = {name.casefold(): label for label, name in enumerate(before)}
    return [
        (label, label_of[name.casefold()])
        for label, name in enumerate(now)
        if name.casefold() in label_of
    ]


def _join_classes(own: Tensor, trained: Tensor, pairs: list[tuple[int, int]]) -> Tensor | None:
    """A layer's weights with the rows of common classes taken over; None if no class is common or the shapes differ.

    Args:
        own: (K, ...), a row for each class.
        trained: (K', ...), likewise.
        pairs: (label in `own`, label in `trained`).
    """
    if not pairs or own.shape[1:] != trained.shape[1:]:
        return None
    # Trained weights are on the CPU; `load_state_dict` brings the result to the network's device.
    joined = own.detach().cpu().clone()
    for now, before in pairs:
        joined[now] = trained[before]
    return joined

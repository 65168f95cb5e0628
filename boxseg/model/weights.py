"""Reading state dicts from files, packages and model hubs; offline it fails fast and says what to do."""

from __future__ import annotations

import contextlib
import io
import pickle
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import constants as hub_constants
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from boxseg.errors import DataError

TIMEOUT_S = 10
"""A server that is silent for so long counts as out of reach."""

State = dict[str, Tensor]


def read_state(path: str) -> State:
    """The state dict in a file of torch or safetensors; one level of `state_dict` or `model` is unwrapped.

    Raises:
        DataError: the file is missing, unreadable or holds no tensors.
    """
    if not Path(path).is_file():
        raise DataError(
            f"{path}: no such file; model.weights takes auto, imagenet, none or the path of a state dict"
        )
    try:
        state = (
            load_file(path)
            if path.endswith(".safetensors")
            else torch.load(path, "cpu", weights_only=True)
        )
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, SafetensorError) as error:
        raise DataError(
            f"{path}: cannot be read as a state dict ({error}); save one with torch.save"
        ) from error
    for key in ("state_dict", "model"):
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not any(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise DataError(f"{path}: holds no state dict; a dict of names and tensors is needed")
    return {
        # DataParallel puts this in front of all names.
        name.removeprefix("module."): value
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def load_weights_into(network: nn.Module, state: State, *, place: str) -> None:
    """Load into `network` all the entries it has; further entries of `state`, such as a classifier, are left out.

    Raises:
        DataError: an entry is missing or has another shape; `place` names the origin in the message.
    """
    own = network.state_dict()
    for name, tensor in own.items():
        # Early versions of torch did not save this count, and nothing here depends on it.
        if name not in state and not name.endswith("num_batches_tracked"):
            raise DataError(
                f"{place}: has no entry {name!r}; the state dict of another network? see model.backbone"
            )
        if name in state and state[name].shape != tensor.shape:
            raise DataError(
                f"{place}: {name} has shape {tuple(state[name].shape)}, the network needs {tuple(tensor.shape)}; "
                "see model.backbone"
            )
    network.load_state_dict(own | {name: state[name] for name in own if name in state})


def pair_states(state: State, like: State, *, place: str) -> State:
    """The tensors of `state` under the names of `like`, paired one by one in order.

    Raises:
        DataError: their numbers or shapes differ.
    """
    shapes = [tensor.shape for tensor in state.values()]
    needed = [tensor.shape for tensor in like.values()]
    if shapes != needed:
        raise DataError(
            f"{place}: {len(shapes)} tensors that do not pair with the network's {len(needed)}"
        )
    return dict(zip(like, state.values(), strict=True))


def download_state(url: str) -> State:
    """The state dict at `url`, from the cache of `torch.hub` where it is there already.

    Raises:
        DataError: it cannot be downloaded.
    """
    timeout = socket.getdefaulttimeout()
    # `torch.hub` has no timeout that could be set.
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        with named_errors(url), contextlib.redirect_stdout(io.StringIO()):
            return torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=False, check_hash=True
            )
    finally:
        socket.setdefaulttimeout(timeout)


@contextlib.contextmanager
def named_errors(place: str) -> Iterator[None]:
    """Turn failures to get weights into a DataError that names `place` and the ways out."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, urllib.error.URLError) as error:
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"{place}: the weights cannot be loaded ({cause}); set model.weights to the path of a state dict, "
            "or to none"
        ) from error


@contextlib.contextmanager
def fast_hub() -> Iterator[None]:
    """Let the Hugging Face hub answer from its cache alone while it is out of reach, instead of retrying for long."""
    offline = hub_constants.HF_HUB_OFFLINE
    hub_constants.HF_HUB_OFFLINE = offline or not _is_reachable(hub_constants.ENDPOINT)
    try:
        yield
    finally:
        hub_constants.HF_HUB_OFFLINE = offline


def _is_reachable(url: str) -> bool:
    question = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(question, timeout=TIMEOUT_S / 2).close()
    except urllib.error.HTTPError:  # whatever it answers, somebody is there
        return True
    except OSError:
        return False
    return True

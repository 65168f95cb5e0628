"""Trained networks by the names that people give their runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from boxseg.errors import ConfigError
from orchestration.record.find_runs import find_trained

if TYPE_CHECKING:
    from boxseg.predict import Predictor


def open_predictor(run: str, *, storage: Path, device: str, refine: bool = False) -> Predictor:
    """The better network of a run, ready to use.

    Args:
        run: Id, folder or name of a run, `best:SWEEP`, or a checkpoint folder.
        storage: Folder that holds the runs.
        device: See `find_device`.
        refine: Whether it looks closer at what it finds, see `RefiningPredictor`.

    Raises:
        ConfigError: there is no such run or device.
        CheckpointError: the run has no sound checkpoint.
    """
    # Both load torch.
    from boxseg.label.refined import RefiningPredictor
    from boxseg.predict import Predictor

    kind = RefiningPredictor if refine else Predictor
    return kind(find_trained(storage, run), device=find_device(device))


def find_device(name: str) -> str:
    """The device that a name means: `auto` is a GPU where there is one.

    Raises:
        ConfigError: torch does not know the device, or has none here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        cause = str(error).splitlines()[0]
        raise ConfigError(
            f"--device {name} cannot be used: {cause}; use auto, cpu, cuda or cuda:N"
        ) from error
    return name

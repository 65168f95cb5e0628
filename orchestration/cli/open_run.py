"""From the name of a run to its checkpoint and network, as the commands that use a trained run take it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from boxseg.errors import ConfigError

if TYPE_CHECKING:
    from boxseg.predict import Predictor

RUN_HELP = "Trained run: its id or folder, best:SWEEP, or a checkpoint folder."
Run = Annotated[str, typer.Argument(metavar="RUN", help=RUN_HELP)]


def checkpoint_of(run: str, storage: Path) -> Path:
    """The folder of the best checkpoint of a run.

    Raises:
        ConfigError: there is no such run, or it has no checkpoint yet.
    """
    if (Path(run) / "about.json").exists():
        return Path(run).resolve()
    from orchestration.run_folder import find_run

    folder = find_run(storage, run).best_checkpoint
    if not (folder / "about.json").exists():
        raise ConfigError(f"{run}: {folder} has no checkpoint yet; a run writes one at its first evaluation")
    return folder.resolve()


def open_predictor(run: str, *, storage: Path, device: str) -> Predictor:
    """The better network of a run, ready to use."""
    from boxseg.predict import Predictor

    return Predictor(checkpoint_of(run, storage), device=find_device(device))


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
        raise ConfigError(f"--device {name} cannot be used: {cause}; use auto, cpu, cuda or cuda:N") from error
    return name

"""Checkpoints: everything a run needs to go on, in one folder that appears whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from boxseg.errors import CheckpointError

LAST, BEST = "last", "best"
"""Names in the checkpoints folder that point to a step's folder."""


def save_checkpoint(
    checkpoints: Path,
    *,
    step: int,
    networks: dict[str, dict[str, Tensor]],
    state: dict[str, Any],
    about: dict[str, Any],
) -> Path:
    """Write `checkpoints/step-NNNNNNNN/` and return it; beside, then renamed, so a kill leaves no half folder.

    Args:
        checkpoints: Folder of all checkpoints of a run.
        step: Optimizer updates done.
        networks: Name (`student`, `teacher`) -> state dict, each a safetensors file.
        state: Everything else that training needs to go on: tensors, numbers and plain containers.
        about: What a person or a loader wants to know, JSON: step, metrics, settings, classes.
    """
    checkpoints.mkdir(parents=True, exist_ok=True)
    folder = checkpoints / f"step-{step:08d}"
    scratch = checkpoints / f".{folder.name}-{uuid4().hex[:8]}"
    scratch.mkdir()
    for name, weights in networks.items():
        save_file(
            {key: value.detach().cpu().contiguous() for key, value in weights.items()}, scratch / f"{name}.safetensors"
        )
    torch.save(state, scratch / "state.pt")
    (scratch / "about.json").write_text(json.dumps({"step": step, **about}, indent=1))
    for path in scratch.iterdir():
        _sync(path)
    if folder.exists():  # the same step was saved before a restart; the new one is as good
        shutil.rmtree(folder)
    scratch.rename(folder)
    _sync(checkpoints)
    return folder


def publish(checkpoints: Path, folder: Path, *, is_best: bool) -> None:
    """Let `last` (and `best`) point to `folder`, each in one atomic change; delete folders that nothing points to."""
    for name in (LAST, BEST) if is_best else (LAST,):
        link = checkpoints / f".{name}-{uuid4().hex[:8]}"
        link.symlink_to(folder.name)
        link.replace(checkpoints / name)
    kept = {(checkpoints / pointer).resolve() for pointer in (LAST, BEST) if (checkpoints / pointer).exists()}
    for old in checkpoints.glob("step-*"):
        if old.resolve() not in kept:
            shutil.rmtree(old, ignore_errors=True)


def load_about(folder: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    try:
        about: dict[str, Any] = json.loads((folder / "about.json").read_text())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder}: no checkpoint here (about.json is missing); name a folder that has one"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{folder}/about.json is damaged: {error}; use another checkpoint") from error
    return about


def load_network(folder: Path, name: str) -> dict[str, Tensor]:
    """State dict of `student` or `teacher`, on the CPU.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = folder / f"{name}.safetensors"
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; this checkpoint has no {name}")
    try:
        return load_file(path)
    except Exception as error:
        raise CheckpointError(f"{path} is damaged: {error}; use another checkpoint") from error


def load_state(folder: Path) -> dict[str, Any]:
    """Optimizer, bank, thresholds and random state.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = folder / "state.pt"
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; training cannot go on from {folder}") from error
    except Exception as error:
        raise CheckpointError(f"{path} is damaged: {error}; use another checkpoint") from error
    return state


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

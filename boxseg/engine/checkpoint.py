"""Checkpoints: everything a run needs to go on, in one folder that appears whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from boxseg.errors import CheckpointError
from boxseg.files import naming_storage_faults

logger = logging.getLogger("boxseg.checkpoint")

LAST, BEST = "last", "best"
"""Names in the checkpoints folder that point to a step's folder."""


def pack(networks: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> dict[str, bytes]:
    """Content of the files of a checkpoint, by name: as things are now, whatever training does to them afterwards.

    Args:
        networks: Name (`student`, `teacher`) -> state dict, each a safetensors file.
        state: Everything else that training needs to go on: tensors, numbers and plain containers.
    """
    files = {}
    for name, weights in networks.items():
        tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
        files[f"{name}.safetensors"] = to_safetensors(tensors)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return files | {"state.pt": buffer.getvalue()}


def save_checkpoint(checkpoints: Path, *, step: int, files: dict[str, bytes], about: dict[str, Any]) -> Path:
    """Write `checkpoints/step-NNNNNNNN/` and return it; beside, then renamed, so a kill leaves no half folder.

    Args:
        checkpoints: Folder of all checkpoints of a run; it exists.
        step: Optimizer updates done.
        files: From `pack`.
        about: What a person or a loader wants to know, JSON: step, metrics, settings, classes.

    Raises:
        StorageError: the disk is full, read-only or gone; earlier checkpoints are untouched.
    """
    folder = folder_of(checkpoints, step)
    for left in checkpoints.glob(".step-*"):  # a kill left these; only one process writes here
        shutil.rmtree(left, ignore_errors=True)
    scratch = checkpoints / f".{folder.name}-{uuid4().hex[:8]}"
    with naming_storage_faults(folder):
        scratch.mkdir()
        try:
            sums = {name: _write(scratch / name, content) for name, content in files.items()}
            told = {"step": step, **about, "sha256": sums}
            _write(scratch / "about.json", json.dumps(told, indent=1).encode())
            if folder.exists():  # the same step was saved before a restart; the new one is as good
                shutil.rmtree(folder)
            scratch.rename(folder)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        _sync(checkpoints)
    return folder


def folder_of(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return checkpoints / f"step-{step:08d}"


def publish(checkpoints: Path, folder: Path, *, is_best: bool) -> None:
    """Let `last` (and `best`) point to `folder`, each in one atomic change.

    Folders that nothing points to go, but for the one that `last` pointed to before: it serves if the new one is
    damaged.
    """
    before = (checkpoints / LAST).resolve()
    for name in (BEST, LAST) if is_best else (LAST,):  # a kill in between repeats the step, and finds the same best
        link = checkpoints / f".{name}-{uuid4().hex[:8]}"
        link.symlink_to(folder.name)
        link.replace(checkpoints / name)
    kept = {before} | {(checkpoints / pointer).resolve() for pointer in (LAST, BEST)}
    for old in checkpoints.glob("step-*"):
        if old.resolve() not in kept:
            shutil.rmtree(old, ignore_errors=True)


def find_sound(checkpoints: Path) -> Path | None:
    """The checkpoint that `last` points to, or if it is damaged the newest sound one before; None where there is none.

    Raises:
        CheckpointError: there are checkpoints, but all of them are damaged.
    """
    if not (checkpoints / LAST).is_symlink():
        return None
    newest = (checkpoints / LAST).readlink().name
    damaged: list[str] = []
    for name in sorted({newest, *(each.name for each in checkpoints.glob("step-*") if each.name < newest)})[::-1]:
        fault = find_damage(checkpoints / name)
        if fault is None:
            for each in damaged:
                logger.warning("%s; going on from %s", each, name)
            return checkpoints / name
        damaged.append(fault)
    raise CheckpointError(f"{'; '.join(damaged)}; no other checkpoint is left, so start a new run")


def find_damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint; None if they are as they were written."""
    try:
        sums: dict[str, str] = load_about(folder).get("sha256", {})
    except CheckpointError as error:
        return str(error)
    for name, expected in sums.items():
        path = folder / name
        if not path.exists():
            return f"{path} is missing"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                return f"{path} is damaged: its checksum is not that of about.json"
    return None


def load_about(folder: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    path = folder / "about.json"
    with _naming_damage(path):
        about: dict[str, Any] = json.loads(path.read_text())
    return about


def load_network(folder: Path, name: str) -> dict[str, Tensor]:
    """State dict of `student` or `teacher`, on the CPU.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = folder / f"{name}.safetensors"
    with _naming_damage(path):
        return load_file(path)


def load_state(folder: Path) -> dict[str, Any]:
    """Optimizer, bank, thresholds and random state.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = folder / "state.pt"
    with _naming_damage(path):
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent}: no checkpoint here, or one that has no {path.stem} ({path.name} is missing); name another"
        ) from error
    except Exception as error:  # whatever the readers meet in a damaged file
        raise CheckpointError(f"{path} is damaged: {error}; use another checkpoint") from error


def _write(path: Path, data: bytes) -> str:
    """Write a file, flushed to the disk; gives its SHA-256."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def _sync(path: Path) -> None:
    """Flush a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

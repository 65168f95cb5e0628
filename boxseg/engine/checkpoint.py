"""Checkpoints: everything a run needs to go on, in one folder that appears whole or not at all.

A run keeps them in `checkpoints/step-NNNNNNNN/`. Beside them, `last` and `best` are links for people. Copying a run can
lose these links, or turn them into files or folders, so nothing depends on them: the names of the folders say which
checkpoint is the newest, and its `about.json` says which is the best. torch is imported only where tensors are read
or written, so the driver of a sweep can look for checkpoints without it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from boxseg.config.criterion import Criterion
from boxseg.errors import CheckpointError
from boxseg.files.writing import (
    naming_storage_faults,
    plain_size,
    read_plain,
    sync_folder,
    write_atomic,
    write_file,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger("boxseg.checkpoint")

LAST, BEST = "last", "best"
"""Names in the checkpoints folder that point to a step's folder."""
ABOUT = "about.json"
"""File that describes a checkpoint: step, metrics, settings, classes, and the SHA-256 of every file."""
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}
"""Errors of file systems without symbolic links, such as exFAT and some network folders."""
STEP = re.compile(r"step-(\d{8,})")


def pack(networks: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> dict[str, bytes]:
    """The files of a checkpoint as bytes, by name: a snapshot that later training does not change.

    Args:
        networks: Name (`student`, `teacher`) -> state dict, each a safetensors file.
        state: Everything else that training needs to go on: tensors, numbers and plain containers.
    """
    import torch
    from safetensors.torch import save

    files = {}
    for name, weights in networks.items():
        # safetensors takes contiguous tensors only, and those of a channels-last network are not.
        tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
        files[f"{name}.safetensors"] = save(tensors)
    # In memory: training may go on while the bytes are checksummed and written.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return files | {"state.pt": buffer.getvalue()}


def save_checkpoint(
    checkpoints: Path, *, step: int, files: dict[str, bytes], about: dict[str, Any]
) -> Path:
    """Write `checkpoints/step-NNNNNNNN/` and return it.

    The files are written to a scratch folder and flushed to the disk; then that folder is renamed. So neither a kill
    nor a power loss leaves half a checkpoint.

    Args:
        checkpoints: Folder of all checkpoints of a run; it exists.
        step: Optimizer updates done.
        files: From `pack`.
        about: What a person or a loader wants to know, JSON: step, metrics, settings, classes.

    Raises:
        StorageError: the disk is full, read-only or gone; earlier checkpoints are untouched.
    """
    folder = folder_of(checkpoints, step)
    for leftover in checkpoints.glob(".step-*"):  # of a kill; only one process writes here
        shutil.rmtree(leftover, ignore_errors=True)
    # The dot in front keeps both from being taken for checkpoints.
    scratch, replaced = (checkpoints / f".{folder.name}-{uuid4().hex[:8]}" for _ in range(2))
    with naming_storage_faults(folder):
        scratch.mkdir()
        try:
            for name, content in files.items():
                write_file(scratch / name, content)
            sizes = {name: len(content) for name, content in files.items()}
            sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
            described = {"step": step, "bytes": sizes, **about}
            text = json.dumps(_with_sums(described, sums), indent=1)
            write_file(scratch / ABOUT, text.encode())
            sync_folder(scratch)
            # A rename cannot replace a folder with files in it, so that one moves away first.
            if folder.exists():  # the same step was saved before a restart; the new one is as good
                folder.rename(replaced)
            scratch.rename(folder)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        sync_folder(checkpoints)
        sync_folder(checkpoints.parent)  # the folder of all checkpoints may be new too
    shutil.rmtree(replaced, ignore_errors=True)
    return folder


def folder_of(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return checkpoints / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The step of a checkpoint, by the name of its folder."""
    return int(folder.name.removeprefix("step-"))


def publish(checkpoints: Path, folder: Path) -> None:
    """Point `last` to `folder` and `best` to the best checkpoint, and remove the checkpoints that are no longer needed.

    Each link changes in one atomic step. The best checkpoint stays, and so does the one before `folder`, in case
    `folder` gets damaged. Checkpoints of later steps are removed: they were damaged, so the run went back to an earlier
    step and will write them again.
    """
    with naming_storage_faults(folder):
        for step, later in oldest_first(checkpoints):
            if step > step_of(folder):
                shutil.rmtree(later, ignore_errors=True)
        best = find_best(checkpoints)
        if best is not None:
            _link(checkpoints / BEST, best)
        _link(checkpoints / LAST, folder)
        sync_folder(checkpoints)
    remove_old(checkpoints, folder, best)


def remove_old(checkpoints: Path, folder: Path, best: Path | None) -> None:
    """Remove all checkpoints before `folder`, except its predecessor and the best one."""
    newest = step_of(folder)
    until_now = [earlier for step, earlier in oldest_first(checkpoints) if step <= newest]
    for old in until_now[:-2]:
        if best is None or old.name != best.name:
            shutil.rmtree(old, ignore_errors=True)


def find_sound(checkpoints: Path) -> Path | None:
    """The newest checkpoint that is as it was written; None where there is none at all.

    Raises:
        CheckpointError: there are checkpoints, but all of them are damaged.
    """
    faults: list[str] = []
    for _, folder in oldest_first(checkpoints)[::-1]:
        fault = find_checkpoint_damage(folder)
        if fault is None:
            for newer_fault in faults:
                logger.warning("%s; going on from %s", newer_fault, folder.name)
            return folder
        faults.append(fault)
    if faults:
        raise CheckpointError(
            f"{'; '.join(faults)}; no other checkpoint is left, so put a copy back, or start a new run"
        )
    return None


def newest_step(checkpoints: Path) -> int:
    """Step of the newest checkpoint, sound or not; 0 where there is none."""
    return max((step for step, _ in oldest_first(checkpoints)), default=0)


def settle(saved: Path, criterion: Criterion) -> None:
    """Before a run goes on from `saved`, make that its newest checkpoint, and the best one that it names a sound one.

    If the best checkpoint is lost, the best of those that are left takes its place; if none is left, the next
    evaluation will be the best.
    """
    checkpoints, about = saved.parent, load_about(saved)
    best = folder_of(checkpoints, about["best_step"])
    if about["best_step"] not in (0, about["step"]) and (fault := find_checkpoint_damage(best)):
        about |= {"best": {}, "best_step": 0}
        for step, folder in oldest_first(checkpoints):
            if step > about["step"] or find_checkpoint_damage(folder) is not None:
                continue
            earlier = load_about(folder)
            # a stop between two evaluations saves a checkpoint too, with the metrics of the evaluation before it
            is_evaluated = earlier["evaluated"] == step
            if is_evaluated and criterion.better(earlier["metrics"], than=about["best"]):
                about |= {"best": earlier["metrics"], "best_step": step}
        instead = f"step {about['best_step']}" if about["best_step"] else "the next evaluation"
        logger.warning(
            "the best checkpoint is lost: %s; %s takes its place as the best", fault, instead
        )
        _rewrite_about(saved, about)
    # removes newer checkpoints, which are damaged, and old ones that a killed process left
    publish(checkpoints, saved)


def find_best(checkpoints: Path) -> Path | None:
    """The checkpoint of the best evaluation, sound or not; None before the first one.

    The newest checkpoint that can be read names the step of the best one.
    """
    folders = dict(oldest_first(checkpoints))
    newest_first = list(folders.values())[::-1]
    for folder in newest_first:
        about = _try_about(folder)
        if about is not None:
            return folders.get(about.get("best_step", 0))
    return newest_first[0] if newest_first else None


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder that a path stands for.

    The folder of a run stands for its best checkpoint, even if that is lost. `last` and `best` stand for what they
    would point to, even in a copied run that has lost these links. Any other path stands for itself.
    """
    meant = None
    if (path / "checkpoints").is_dir():
        meant = _find_named_best(path / "checkpoints")
    elif path.name == BEST and not (path / ABOUT).exists():
        meant = _find_named_best(path.parent)
    elif path.name == LAST and not (path / ABOUT).exists():
        meant = next((folder for _, folder in oldest_first(path.parent)[::-1]), None)
    return meant or path


def _find_named_best(checkpoints: Path) -> Path | None:
    """`find_best`, or the newer one that the link `best` names: no earlier one takes its place unnoticed.

    Without the link, a newest checkpoint that cannot be read may have been the best, which a warning says.
    """
    best, link = find_best(checkpoints), checkpoints / BEST
    if link.is_symlink():
        named = checkpoints / link.readlink().name
        is_step = STEP.fullmatch(named.name) is not None
        is_newer = is_step and (best is None or step_of(named) > step_of(best))
        return named if is_newer else best
    newest = folder_of(checkpoints, newest_step(checkpoints))
    if best not in (None, newest) and _try_about(newest) is None:
        doubt = "%s cannot be read, and may have been the best; %s is used"
        logger.warning(doubt, newest / ABOUT, best)
    return best


def find_checkpoint_damage(folder: Path, *, only: str | None = None) -> str | None:
    """What is wrong with the files of a checkpoint; None if they are as they were written.

    Args:
        folder: The checkpoint.
        only: The one file that matters beside `about.json`; None: all of them.
    """
    try:
        sums: dict[str, str] = _read_about(folder)["sha256"]
        # `_read_about` has compared its own sum already.
        for name in sums.keys() - {ABOUT} if only is None else {only}:
            with _naming_damage(folder / name):
                # raises for a pipe, from which reading would wait forever
                plain_size(folder / name)
                with (folder / name).open("rb") as file:
                    _check_sum(hashlib.file_digest(file, "sha256").hexdigest(), sums.get(name))
    except CheckpointError as error:
        return str(error)
    return None


def find_obvious_damage(folder: Path) -> str | None:
    """`find_checkpoint_damage` as far as sizes tell: weights are not read."""
    try:
        for name, size in _read_about(folder).get("bytes", {}).items():
            with _naming_damage(folder / name):
                if plain_size(folder / name) != size:
                    raise ValueError(f"its size is not the one in {ABOUT}")
    except CheckpointError as error:
        return str(error)
    return None


def require_sound(folder: Path) -> None:
    """Refuse a checkpoint that is not as it was written.

    Raises:
        CheckpointError: names the damage, and a sound one beside it if there is one.
    """
    with _naming_way_out(folder):
        if (damage := find_checkpoint_damage(folder)) is not None:
            raise CheckpointError(damage)


def load_about(folder: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint.

    Raises:
        CheckpointError: there is no checkpoint, or it is not as it was written.
    """
    with _naming_way_out(folder):
        return _read_about(folder)


def better_network(about: dict[str, Any]) -> str:
    """`student` or `teacher`: which was better at the checkpoint's evaluation; unknown before the first one."""
    return about.get("network") or "student"


def load_network(folder: Path, name: str) -> dict[str, Tensor]:
    """State dict of `student` or `teacher`, on the CPU.

    Raises:
        CheckpointError: the file is missing, or not as it was written.
    """
    from safetensors.torch import load

    path = folder / f"{name}.safetensors"
    with _naming_way_out(folder):
        data = _read_file(folder, path.name)
        with _naming_damage(path):
            return load(data)


def load_weights(network: nn.Module, folder: Path, name: str) -> None:
    """Load `student` or `teacher` into a network.

    Raises:
        CheckpointError: the file is missing, not as it was written, or of another network.
    """
    weights = load_network(folder, name)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        cause = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{folder}: {name} has the weights of another network than the settings describe: {cause}; name a "
            "checkpoint that was trained with these settings"
        ) from error


def load_state(folder: Path) -> dict[str, Any]:
    """Optimizer, bank, thresholds and random state.

    Raises:
        CheckpointError: the file is missing, or not as it was written.
    """
    import torch

    path = folder / "state.pt"
    with _naming_way_out(folder):
        data = _read_file(folder, path.name)
        with _naming_damage(path):
            # `weights_only`, as a pickle could run code; this takes tensors and plain values alone.
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _rewrite_about(folder: Path, about: dict[str, Any]) -> None:
    """Replace the `about.json` of a checkpoint atomically."""
    sums = {name: digest for name, digest in about.pop("sha256").items() if name != ABOUT}
    with naming_storage_faults(folder):
        write_atomic(folder / ABOUT, json.dumps(_with_sums(about, sums), indent=1))


def _with_sums(about: dict[str, Any], sums: dict[str, str]) -> dict[str, Any]:
    """`about` with `sha256`: the checksum of each file, and for `about.json` that of everything else in `about`."""
    # as JSON gives it back, with lists in the place of tuples, for example
    as_read = json.loads(json.dumps({**about, "sha256": sums}))
    return {**as_read, "sha256": {**sums, ABOUT: _own_sum(as_read)}}


def _own_sum(about: dict[str, Any]) -> str:
    others = {name: value for name, value in about["sha256"].items() if name != ABOUT}
    # Sorted: the sum must not depend on the order in which names were put in.
    text = json.dumps({**about, "sha256": others}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_about(folder: Path) -> dict[str, Any]:
    path = folder / ABOUT
    with _naming_damage(path):
        about: dict[str, Any] = json.loads(read_plain(path))
        step, sums = about["step"], about["sha256"]
        if type(step) is not int or not isinstance(sums, dict):
            raise ValueError("it does not name the step and the checksums")
        # Resolved, as `last` and `best` are links to the folder that is named after the step.
        named = STEP.fullmatch(folder.resolve().name)
        if named and int(named[1]) != step:
            raise ValueError(f"it is about step {step}")
        if sums.get(ABOUT) != _own_sum(about):
            raise ValueError("its content does not match its own checksum")
    return about


def _read_file(folder: Path, name: str) -> bytes:
    """Content of a file of a checkpoint, compared with its checksum."""
    path = folder / name
    expected = _read_about(folder)["sha256"].get(name)
    with _naming_damage(path):
        # Read once, so that the bytes that are used are those that were compared, even if the file changes meanwhile.
        data = read_plain(path)
        _check_sum(hashlib.sha256(data).hexdigest(), expected)
    return data


def _check_sum(actual: str, expected: str | None) -> None:
    if actual != expected:
        raise ValueError(f"its checksum is not the one in {ABOUT}")


def oldest_first(checkpoints: Path) -> list[tuple[int, Path]]:
    """(step, folder) of all checkpoints, damaged ones too, steps rising."""
    folders = [folder for folder in checkpoints.glob("step-*") if folder.is_dir()]
    named = [(STEP.fullmatch(folder.name), folder) for folder in folders]
    return sorted((int(match[1]), folder) for match, folder in named if match)


def _try_about(folder: Path) -> dict[str, Any] | None:
    try:
        return _read_about(folder)
    except CheckpointError:
        return None


def _link(pointer: Path, folder: Path) -> None:
    if pointer.is_dir() and not pointer.is_symlink():
        shutil.rmtree(pointer)  # a tool that copied the run has turned the link into a folder
    scratch = pointer.with_name(f".{pointer.name}-{uuid4().hex[:8]}")
    try:
        scratch.symlink_to(folder.name)
    except OSError as error:
        if error.errno in NO_LINKS:  # no harm: links are only for people
            return
        raise
    # A link cannot be changed, but a rename replaces it, with no moment without a link.
    scratch.replace(pointer)


@contextmanager
def of_this_version(folder: Path) -> Iterator[None]:
    """Refuse a sound checkpoint whose content cannot be used, as another version has written it.

    Raises:
        CheckpointError: names what does not fit.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        # those of a device, as when its memory is short, say nothing about the checkpoint
        if isinstance(error, RuntimeError) and type(error) is not RuntimeError:
            raise
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise CheckpointError(
            f"{folder} is of another version of boxseg: {cause}; use that version, or train again"
        ) from error


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent}: no checkpoint here, or one that has no {path.stem} ({path.name} is missing)"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # whatever the readers meet in a damaged file
        raise CheckpointError(f"{path} is damaged: {error}") from error


@contextmanager
def _naming_way_out(folder: Path) -> Iterator[None]:
    """Add to the message about a damaged checkpoint which other one can be used instead."""
    try:
        yield
    except CheckpointError as fault:
        here = folder.resolve()
        way_out = "put a copy back, or name another checkpoint"
        for _, other in oldest_first(here.parent)[::-1]:
            if other.resolve() != here and find_checkpoint_damage(other) is None:
                way_out = f"{other} is sound; name that one"
                break
        raise CheckpointError(f"{fault}; {way_out}") from fault

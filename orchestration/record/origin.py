"""Where a run comes from: code with its changes, packages, hardware, data."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import psutil

import boxseg
from boxseg.data.toy import ensure_toy, toy_sources
from boxseg.errors import ConfigError, DataError
from boxseg.files.prints import take_prints
from boxseg.files.writing import write_atomic
from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import RunSpec, SweepSpec
from orchestration.record.records import read_sound
from orchestration.record.run_folder import RunFolder, RunStatus, own_process
from orchestration.secret_text import hide, hide_in_patch
from orchestration.store.data import fetch_annotations
from orchestration.store.places import address_of, named

IMAGES = "images.json"
"""Name in the folder of a run or sweep."""
MAX_CHANGES_BYTES = 1_000_000
"""Longer changes are not kept, only their length."""
SHOWN_NAMES = 3
"""How many changed images a message names."""


def provenance(spec: RunSpec) -> dict[str, str]:
    """Tags that say where a run comes from: command, code, machine, profile, method and seed."""
    method = {"profile": spec.profile, "method": spec.method, "seed": str(spec.train.seed)}
    return {"command": own_command(), "host": socket.gethostname()} | method | git_state()


def prepare_data(spec: RunSpec) -> dict[str, str]:
    """Draw the generated data set if it is used and missing; returns the tags `data` and `data_fingerprint`.

    Of data in a store only the annotations are fetched here; images are fetched by the machines that train.
    """
    fetch_annotations(spec)
    if "toy" in (spec.data.train, spec.data.val):
        ensure_toy(spec.storage.absolute() / ".data", spec.data.toy)
    return _fingerprint(spec)


def look_at_data(spec: RunSpec) -> dict[str, str]:
    """The tags of `prepare_data`, without drawing anything; empty if a file is missing."""
    try:
        return _fingerprint(spec)
    except OSError:
        return {}


def _fingerprint(spec: RunSpec) -> dict[str, str]:
    drawn = toy_sources(spec.storage.absolute() / ".data", spec.data.toy)
    sources = zip((spec.data.train, spec.data.val), drawn, strict=True)
    files = [(toy if source == "toy" else source).annotations for source, toy in sources]
    digest = hashlib.sha256()
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return {"data": named(files[0]), "data_fingerprint": digest.hexdigest()[:16]}


def open_folder(folder: RunFolder, spec: RunSpec, tags: dict[str, str]) -> None:
    """Make or reopen the folder of a run or sweep, and record there where it comes from."""
    status = RunStatus(
        folder.path.name, spec.name, steps=spec.train.steps, tags=tags, **own_process()
    )
    if isinstance(spec, SweepSpec):
        status = replace(status, kind="sweep", steps=spec.sweep.num_trials)
    folder.open(status, dump_resolved(spec))
    write_changes(folder)
    write_prints(folder, spec)


def own_command() -> str:
    """The command that this process runs, as it would be typed, with secrets hidden."""
    program = Path(sys.argv[0])
    if program.parent.name == "cli" and program.name == "__main__.py":
        program = Path("boxseg")  # python -m orchestration.cli
    return hide(shlex.join([program.name, *sys.argv[1:]]))


def git_state() -> dict[str, str]:
    """Commit of the checkout that boxseg runs from, and whether it has changes; nothing outside a checkout."""
    try:
        # fails where only a folder further up is a checkout
        _git("ls-files", "--error-unmatch", "boxseg/__init__.py")
        # Without untracked files, as in `git diff HEAD`.
        changes = _git("status", "--porcelain", "--untracked-files=no").strip()
        commit = _git("rev-parse", "HEAD").strip()
        return {"git_commit": commit, "git_dirty": "true" if changes else "false"}
    except (OSError, subprocess.SubprocessError):
        return {}


def write_changes(folder: RunFolder) -> None:
    """Keep the differences of the checkout from its commit as `changes.diff`; remove that file if there are none.

    Secrets in it are hidden; these lines do not apply as a patch.
    """
    path = folder.path / "changes.diff"
    if folder.stored().tags.get("git_dirty") != "true":
        path.unlink(missing_ok=True)
        return
    try:
        # Without `--binary`, git would only name changed binary files.
        text = _git("diff", "HEAD", "--binary")
    except subprocess.SubprocessError as error:
        text = f"# not kept: {error}\n"
    if len(text) > MAX_CHANGES_BYTES:
        text = f"# not kept: the changes have {len(text)} bytes, more than {MAX_CHANGES_BYTES}\n"
    write_atomic(path, hide_in_patch(text))


def _git(*arguments: str) -> str:
    """What git says about the checkout of boxseg."""
    command = ["git", "-C", str(Path(boxseg.__file__).parents[1]), *arguments]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
        # Names and contents of files need not be UTF-8.
        errors="replace",
    )
    return ended.stdout


def write_environment(folder: RunFolder, *, device: str) -> None:
    """Keep what a run is trained with, as `environment.json`: Python, packages, this machine, the GPU of `device`."""
    environment: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "packages": _packages(),
    }
    if device.startswith("cuda"):
        import torch

        environment |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    write_atomic(folder.path / "environment.json", json.dumps(environment, indent=1))


@functools.cache
def _packages() -> dict[str, str]:
    """Name -> version of all that is installed, sorted by name."""
    # each look at the metadata reads its whole file
    metadata = [package.metadata for package in distributions()]
    # what is left of a removed package may have no name
    named = [package for package in metadata if package["Name"]]
    return dict(sorted((package["Name"], package["Version"]) for package in named))


def cpu_name() -> str:
    """What the system calls this machine's processor."""
    # `platform.processor` tells no more than the architecture on Linux, if anything.
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def check_repeatable(original: RunFolder, spec: RunSpec, tags: dict[str, str]) -> None:
    """Refuse to repeat a run if the result cannot be the same.

    Args:
        original: The run to repeat.
        spec: Settings of the repetition.
        tags: Of the repetition; `data_fingerprint` among them.

    Raises:
        ConfigError: it is a sweep.
        DataError: annotation files or images are not those that the run was trained and evaluated with.
    """
    status = original.status()
    config = shlex.quote(str(original.config_path))
    if status.kind == "sweep":
        command = f"boxseg sweep {config}"
        raise ConfigError(f"{status.id} is a sweep; repeat it with `{command}`")
    new = f"train on the new ones with `boxseg train {config}`"
    check_same_data(original, spec, tags, otherwise=new)


def check_same_data(
    original: RunFolder, spec: RunSpec, tags: dict[str, str], *, otherwise: str
) -> None:
    """Refuse to repeat or go on with a run or sweep on other data.

    Args:
        original: The run or sweep.
        spec: Present settings, which name the images.
        tags: Present tags; without `data_fingerprint`, annotation files are not compared.
        otherwise: What can be done with the new files, for the message.

    Raises:
        DataError: the annotation files or images are not those that the run was trained and evaluated with.
    """
    status = original.stored()
    before, now = status.tags.get("data_fingerprint"), tags.get("data_fingerprint")
    if before is not None and now is not None and before != now:
        raise DataError(
            f"{status.tags['data']}, or the file to validate on: the annotations of {status.id} had the fingerprint "
            f"{before}, they have {now} now; put the old files back, or {otherwise}"
        )
    prints = _read_prints(original)
    for name, source in spec.data.files.items():
        folder, first = source.images, prints.get(name, {})
        now_there = take_prints(folder, list(first))
        # missing images are reported elsewhere; a driver need not even see the images that the nodes have
        changed = [name for name, text in now_there.items() if first[name] != text]
        if changed:
            more = " …" if len(changed) > SHOWN_NAMES else ""
            raise DataError(
                f"{folder}: {len(changed)} of {len(first)} images of {status.id} have changed since it began "
                f"({', '.join(changed[:SHOWN_NAMES])}{more}); put the old files back, or {otherwise}"
            )


def write_prints(folder: RunFolder, spec: RunSpec) -> None:
    """Keep fingerprints of a run's or sweep's images in `images.json`, unless this file exists.

    Images that boxseg draws itself are left out, and so are those in a store, whose objects have versions.
    """
    path = folder.path / IMAGES
    if path.exists():
        return
    prints: dict[str, dict[str, str]] = {"train": {}, "val": {}}
    for name, source in spec.data.files.items():
        # faults of the annotation file are reported elsewhere
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            if address_of(source.images.absolute()) is None:
                images = json.loads(source.annotations.read_bytes())["images"]
                names = [entry["file_name"] for entry in images]
                prints[name] = take_prints(source.images, names)
    write_atomic(path, json.dumps(prints))


def _read_prints(folder: RunFolder) -> dict[str, dict[str, str]]:
    """Fingerprints of the images to train and to validate on; empty if none were kept."""
    kind, way_out = dict[str, dict[str, str]], "images are not compared"
    return read_sound(folder.path / IMAGES, kind, way_out=way_out) or {}

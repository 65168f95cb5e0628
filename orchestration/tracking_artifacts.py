"""Files of a run folder that MLflow gets: settings at once, pictures as they come, results and weights at the end."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from orchestration.files import digest
from orchestration.learning_curves import draw_learning_curves
from orchestration.run_folder import RunFolder
from orchestration.tracking_model import better_network, log_model, register_model

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_CHECKPOINT_BYTES = 500 * 1024**2
"""Larger weights are named by path instead of being copied."""
SETTINGS = ("config.yaml", "environment.json", "changes.diff")
RESULTS = (*SETTINGS, "status.json", "journal.jsonl", "table.md", "traceback.txt")
RESULT_FOLDERS = ("evaluation", "report")

logger = logging.getLogger("boxseg.tracking")


def copy_settings(client: MlflowClient, folder: RunFolder, state: dict[str, Any]) -> None:
    """Upload what a run starts from."""
    _copy_files(client, folder, state, (folder.path / name for name in SETTINGS))


def copy_samples(client: MlflowClient, folder: RunFolder, state: dict[str, Any]) -> None:
    """Upload the pictures that are new since `state` was kept."""
    _copy_files(client, folder, state, sorted(folder.path.glob("samples/[!.]*.png")))


def copy_results(client: MlflowClient, folder: RunFolder, state: dict[str, Any]) -> None:
    """Upload what a run ends with, its weights apart."""
    if folder.stored().kind == "run":
        try_learning_curves(folder)
    _copy_files(client, folder, state, (folder.path / name for name in RESULTS))
    for name in RESULT_FOLDERS:
        _copy_files(client, folder, state, sorted(folder.path.glob(f"{name}/**/[!.]*")))


def try_learning_curves(folder: RunFolder) -> None:
    """Draw the run's learning curves; a fault is told and otherwise changes nothing."""
    try:
        draw_learning_curves(folder)
    except Exception as error:
        logger.warning("no learning curves of %s: %s: %s", folder.path, type(error).__name__, error)


def copy_checkpoint(client: MlflowClient, folder: RunFolder, checkpoint: Path, state: dict[str, Any]) -> None:
    """Upload description and weights of a checkpoint, of its two networks those with the better mask AP."""
    weights = better_network(checkpoint)
    files = [checkpoint / "about.json"]
    if weights is not None and weights.stat().st_size <= MAX_CHECKPOINT_BYTES:
        files.append(weights)
    _copy_files(client, folder, state, files, "checkpoints/best")


def copy_model(client: MlflowClient, folder: RunFolder, checkpoint: Path, run_id: str) -> None:
    """Log and register a checkpoint as the run's settings ask for; what MLflow has already stays."""
    settings = yaml.safe_load(folder.config_path.read_text()).get("tracking", {})
    weights = better_network(checkpoint)
    if not settings.get("log_model") or weights is None or weights.stat().st_size > MAX_CHECKPOINT_BYTES:
        return
    model_uri = log_model(client, run_id, checkpoint, weights)
    if settings.get("register_as") is not None:
        register_model(client, run_id, model_uri, settings["register_as"])


def _copy_files(
    client: MlflowClient, folder: RunFolder, state: dict[str, Any], paths: Iterable[Path], place: str | None = None
) -> None:
    """Upload files that exist and are not in MLflow as they are now; `state`, kept after each, knows those that are.

    `place` is the artifact folder; null: the one that they have in the run's folder.
    """
    have = state.setdefault("files", {})
    for path in paths:
        where = path.parent.relative_to(folder.path).as_posix() if place is None else place
        name = f"{where}/{path.name}"
        if path.is_file() and have.get(name) != (content := digest(path)):
            client.log_artifact(state["run_id"], str(path), None if where == "." else where)
            have[name] = content
            folder.write_tracking(state)

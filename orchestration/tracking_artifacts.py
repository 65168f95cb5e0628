"""Files of a run folder that MLflow gets: settings at once, pictures as they come, results and weights at the end."""

from __future__ import annotations

import logging
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


def copy_settings(client: MlflowClient, folder: RunFolder, run_id: str) -> None:
    """Upload what a run starts from."""
    _copy_files(client, folder, run_id, SETTINGS)


def copy_samples(client: MlflowClient, folder: RunFolder, state: dict[str, Any]) -> None:
    """Upload the pictures that are new since `state` was kept, and keep it."""
    have = state.setdefault("samples", [])
    for path in sorted(folder.path.glob("samples/[!.]*.png")):
        if path.name not in have:
            client.log_artifact(state["run_id"], str(path), "samples")
            have.append(path.name)
            folder.write_tracking(state)


def copy_results(client: MlflowClient, folder: RunFolder, run_id: str) -> None:
    """Upload what a run ends with, its weights apart."""
    if folder.stored().kind == "run":
        try_learning_curves(folder)
    _copy_files(client, folder, run_id, RESULTS)
    for name in RESULT_FOLDERS:
        for path in sorted(folder.path.glob(f"{name}/**/[!.]*")):
            if path.is_file():
                client.log_artifact(run_id, str(path), str(path.parent.relative_to(folder.path)))


def try_learning_curves(folder: RunFolder) -> None:
    """Draw the run's learning curves; a fault is told and otherwise changes nothing."""
    try:
        draw_learning_curves(folder)
    except Exception as error:
        logger.warning("no learning curves of %s: %s: %s", folder.path, type(error).__name__, error)


def copy_checkpoint(client: MlflowClient, checkpoint: Path, run_id: str) -> None:
    """Upload description and weights of a checkpoint, of its two networks those with the better mask AP."""
    weights = better_network(checkpoint)
    files = [checkpoint / "about.json"]
    if weights is not None and weights.stat().st_size <= MAX_CHECKPOINT_BYTES:
        files.append(weights)
    for path in files:
        client.log_artifact(run_id, str(path), "checkpoints/best")


def copy_model(client: MlflowClient, folder: RunFolder, checkpoint: Path, state: dict[str, Any]) -> None:
    """Log and register a checkpoint as the run's settings ask for; done once, as `state` remembers."""
    settings = yaml.safe_load(folder.config_path.read_text()).get("tracking", {})
    weights = better_network(checkpoint)
    if not settings.get("log_model") or weights is None or weights.stat().st_size > MAX_CHECKPOINT_BYTES:
        return
    content = digest(checkpoint / "about.json")
    if state.get("model_of") != content:
        state |= {"model": log_model(client, state["run_id"], checkpoint, weights), "model_of": content}
        state.pop("registered", None)
        folder.write_tracking(state)
    name = settings.get("register_as")
    if name is not None and state.get("registered") != name:
        register_model(client, state["model"], name)
        state["registered"] = name
        folder.write_tracking(state)


def _copy_files(client: MlflowClient, folder: RunFolder, run_id: str, names: tuple[str, ...]) -> None:
    for name in names:
        if (folder.path / name).exists():
            client.log_artifact(run_id, str(folder.path / name))

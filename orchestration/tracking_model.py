"""The best checkpoint as an MLflow model that `mlflow models predict` and `mlflow models serve` run without Ray."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import boxseg

if TYPE_CHECKING:
    from mlflow import MlflowClient

REQUIREMENTS = ("torch", "torchvision", "numpy", "scipy", "pillow", "pycocotools", "pydantic", "safetensors", "timm")
"""What boxseg's method needs to predict, pinned to the versions that are installed here."""
ALIAS = "best"


def log_model(client: MlflowClient, run_id: str, checkpoint: Path, weights: Path) -> str:
    """Log the network of a checkpoint as a model of a run, in the run's experiment.

    Args:
        client: Of the store that MLflow's own functions use, too.
        run_id: MLflow's id of the run.
        checkpoint: The checkpoint's folder.
        weights: The file of that network in it.

    Returns:
        The model's URI, as in `models:/m-…`.
    """
    import mlflow
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkpoint"
        folder.mkdir()
        for path in (checkpoint / "about.json", weights):
            shutil.copy(path, folder)
        code = Path(scratch) / "boxseg"
        shutil.copytree(Path(boxseg.__file__).parent, code, ignore=shutil.ignore_patterns("__pycache__"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of hints that MLflow cannot use, and of an example it would like
            # Made here, as Model.log makes it in MLflow's default experiment, whose files lie in the current folder.
            run = client.get_run(run_id)
            model = client.create_logged_model(run.info.experiment_id, "model", run_id, params=run.data.params)
            info = Model.log(
                artifact_path=None,
                name="model",
                model_id=model.model_id,
                flavor=mlflow.pyfunc,
                run_id=run_id,
                python_model=str(Path(__file__).with_name("tracking_served.py")),
                artifacts={"checkpoint": str(folder)},
                code_paths=[str(code)],
                signature=ModelSignature(inputs=Schema([ColSpec("string", "image")])),
                pip_requirements=[f"mlflow=={mlflow.__version__}", *map(_pin, REQUIREMENTS)],
            )
    return str(info.model_uri)


def register_model(client: MlflowClient, model_uri: str, name: str) -> str:
    """Make a version of a registered model, which gets the alias `best`; gives its number."""
    import mlflow

    version = mlflow.register_model(model_uri, name).version
    client.set_registered_model_alias(name, ALIAS, version)
    return str(version)


def better_network(checkpoint: Path) -> Path | None:
    """Weights of the network with the better mask AP; None where there are none."""
    scores = json.loads((checkpoint / "about.json").read_text()).get("metrics") or {}
    networks = sorted(checkpoint.glob("*.safetensors"), reverse=True)  # the teacher first, so that it wins a draw
    return max(networks, key=lambda path: scores.get(f"val/{path.stem}_mask_ap", -1.0), default=None)


def _pin(name: str) -> str:
    return f"{name}=={importlib.metadata.version(name).partition('+')[0]}"

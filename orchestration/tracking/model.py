"""The best checkpoint as an MLflow model that `mlflow models predict` and `mlflow models serve` run without Ray."""

from __future__ import annotations

import importlib.metadata
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import boxseg
from boxseg.config.criterion import least_score
from boxseg.engine.checkpoint import find_checkpoint_damage, load_about
from boxseg.errors import CheckpointError
from orchestration.record.files import digest
from orchestration.record.scratch import scratch_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

REQUIREMENTS = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "pillow",
    "pycocotools",
    "pydantic",
    "safetensors",
    "timm",
)
"""What boxseg's method needs to predict, pinned to the versions that are installed here."""
ALIAS = "best"
CONTENT_TAG = "boxseg.checkpoint"
"""Tag of a logged model: which checkpoint it was made of."""


def log_model(client: MlflowClient, run_id: str, checkpoint: Path, weights: Path) -> str:
    """Log the network of a checkpoint as a model of a run, unless it is there; one that was cut short is logged again.

    `weights` is the file of the network in the checkpoint's folder. Gives the model's URI, as in `models:/m-…`.
    """
    import mlflow
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    content = digest(checkpoint / "about.json")
    min_score = least_score(load_about(checkpoint).get("metrics", {}))
    run = client.get_run(run_id)
    known = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    about = next((model for model in known if model.tags.get(CONTENT_TAG) == content), None)
    if about is None:
        about = client.create_logged_model(
            run.info.experiment_id, "model", source_run_id=run_id, tags={CONTENT_TAG: content}
        )
    # This is set last, so a model without it was cut short.
    if about.status == "READY":
        return str(about.model_uri)
    with scratch_folder("model") as scratch:
        folder = scratch / "checkpoint"
        folder.mkdir()
        for path in (checkpoint / "about.json", weights):
            shutil.copy(path, folder)
        # The method is stored with the model, so that a server needs no boxseg.
        code = scratch / "boxseg"
        shutil.copytree(
            Path(boxseg.__file__).parent, code, ignore=shutil.ignore_patterns("__pycache__")
        )
        with warnings.catch_warnings():
            # MLflow warns of type hints that it cannot use, and of the missing example
            warnings.simplefilter("ignore")
            mlflow.pyfunc.save_model(
                scratch / "model",
                mlflow_model=Model(
                    about.artifact_location,
                    run_id,
                    model_uuid=about.model_id,
                    model_id=about.model_id,
                ),
                python_model=str(Path(__file__).with_name("served.py")),
                artifacts={"checkpoint": str(folder)},
                code_paths=[str(code)],
                signature=ModelSignature(
                    inputs=Schema([ColSpec("string", "image")]),
                    params=ParamSchema([ParamSpec("min_score", "double", min_score)]),
                ),
                # Named here: MLflow would start another process to find them out, which takes several seconds.
                pip_requirements=[f"mlflow=={mlflow.__version__}", *map(_pin, REQUIREMENTS)],
            )
        client.log_model_artifacts(about.model_id, str(scratch / "model"))
    outputs = run.outputs.model_outputs if run.outputs else ()
    if about.model_id not in [output.model_id for output in outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(about.model_id, step=0)])
    client.finalize_logged_model(about.model_id, "READY")
    return str(about.model_uri)


def register_model(client: MlflowClient, run_id: str, model_uri: str, name: str) -> str:
    """Make the model a version of a registered one, unless it is, with the alias `best`; gives the number."""
    import mlflow

    versions = client.search_model_versions(f"run_id = '{run_id}'")
    for known in versions:
        if (known.name, known.source) == (name, model_uri):
            version = str(known.version)
            break
    else:
        version = str(mlflow.register_model(model_uri, name).version)
    client.set_registered_model_alias(name, ALIAS, version)
    return version


def better_network(checkpoint: Path) -> Path | None:
    """Weights of the network that was better at the checkpoint's evaluation; None without such a file.

    Raises:
        CheckpointError: they are damaged.
    """
    path = checkpoint / f"{load_about(checkpoint).get('network')}.safetensors"
    if not path.exists():
        return None
    if (fault := find_checkpoint_damage(checkpoint, only=path.name)) is not None:
        raise CheckpointError(fault)
    return path


def _pin(name: str) -> str:
    # Without a local part such as `+cpu`, which PyPI does not have.
    return f"{name}=={importlib.metadata.version(name).partition('+')[0]}"

"""The logged model predicts without Ray and without this checkout: the masks of `boxseg predict`."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from pycocotools import mask as mask_utils

from boxseg.predict import Predictor
from orchestration.config import RunSpec, dump_resolved
from orchestration.run_folder import RunFolder, RunStatus, own_process
from orchestration.tracking import Tracker, tracking_uri

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tracked(trained_run, tmp_path_factory) -> tuple[mlflow.MlflowClient, str]:
    """A finished run in MLflow whose best checkpoint is a real one; client and the run's id."""
    storage = tmp_path_factory.mktemp("storage")
    spec = RunSpec.model_validate({"storage": storage, "tracking": {"register_as": "toy"}})
    folder = RunFolder(storage / "served" / "one")
    folder.create(RunStatus("one", "served", **own_process()), dump_resolved(spec))
    folder.finish("finished")
    (folder.path / "checkpoints").mkdir()
    (folder.path / "checkpoints/best").symlink_to(trained_run.checkpoint)
    tracker = Tracker(storage, "served", logs=folder.logs)
    tracker.add(folder)
    tracker.start()
    assert tracker.close(timeout_s=250)
    return mlflow.MlflowClient(tracking_uri(storage)), folder.read_tracking()["run_id"]


def test_the_model_is_registered_with_an_alias(tracked):
    client, run_id = tracked
    version = client.get_model_version_by_alias("toy", "best")
    assert (str(version.version), version.run_id) == ("1", run_id)


def test_it_predicts_the_same_masks_where_there_is_neither_ray_nor_orchestration(tracked, trained_run, tmp_path):
    client, _ = tracked
    place = mlflow.artifacts.download_artifacts(
        client.get_model_version_by_alias("toy", "best").source,
        dst_path=str(tmp_path),
        tracking_uri=client.tracking_uri,
    )
    requirements = (Path(place) / "requirements.txt").read_text()
    assert "torch==" in requirements
    assert "ray" not in requirements
    for name in ("ray", "orchestration"):
        (tmp_path / "blocked").mkdir(exist_ok=True)
        (tmp_path / "blocked" / f"{name}.py").write_text(f"raise ImportError('{name} is not here')")
    images = sorted(trained_run.val.images.iterdir())[:2]
    rows = [str(images[0]), base64.b64encode(images[1].read_bytes()).decode()]
    (tmp_path / "in.json").write_text(
        json.dumps({"dataframe_split": {"columns": ["image"], "data": [[r] for r in rows]}})
    )
    command = [sys.executable, "-m", "mlflow", "models", "predict", "-m", place, "-i", "in.json", "-o", "out.json"]
    subprocess.run(
        [*command, "--content-type", "json", "--env-manager", "local"],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "blocked")},
        timeout=280,
    )
    predictions = json.loads((tmp_path / "out.json").read_text())
    found = predictions["predictions"] if isinstance(predictions, dict) else predictions
    predictor = Predictor(trained_run.checkpoint)
    for row, expected in zip(found, predictor(images), strict=True):
        assert len(expected.masks) > 0
        assert row["labels"] == [predictor.class_names[label] for label in expected.labels.tolist()]
        assert row["scores"] == pytest.approx(expected.scores.tolist())
        for rle, mask in zip(row["masks"], expected.masks.numpy(), strict=True):
            assert (mask_utils.decode(rle).astype(bool) == mask).all()

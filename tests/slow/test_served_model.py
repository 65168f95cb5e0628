"""The logged model predicts where neither Ray nor this project is installed: the masks of `boxseg predict`."""

import base64
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import mlflow
import pytest

from orchestration.cli.app import run
from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import RunSpec
from orchestration.record.run_folder import RunFolder, RunStatus, own_process
from orchestration.tracking.store import tracking_uri
from orchestration.tracking.tracker import Tracker

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


def make_venv(place: Path) -> Path:
    """Python of a fresh environment with the packages that are installed here, but for Ray and this project."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    (packages,) = place.glob("lib/*/site-packages")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if (
            not path.name.startswith(("ray", "boxseg", "orchestration", "__editable__"))
            and path.suffix != ".pth"
        ):
            (packages / path.name).symlink_to(path)
    return place / "bin/python"


def test_it_predicts_the_masks_of_boxseg_predict_in_an_environment_without_ray(
    tracked, trained_run, tmp_path, capsys
):
    client, _ = tracked
    version = client.get_model_version_by_alias("toy", "best")
    place, uri = tmp_path / "model", client.tracking_uri
    place.mkdir()
    mlflow.artifacts.download_artifacts(version.source, dst_path=str(place), tracking_uri=uri)
    requirements = (place / "requirements.txt").read_text()
    assert "torch==" in requirements
    assert "ray" not in requirements
    images = sorted(trained_run.val.images.iterdir())[:2]
    rows = [[str(images[0])], [base64.b64encode(images[1].read_bytes()).decode()]]
    table = {"dataframe_split": {"columns": ["image"], "data": rows}}
    (tmp_path / "in.json").write_text(json.dumps(table | {"params": {"min_score": 0.0}}))
    (tmp_path / "usual.json").write_text(json.dumps(table))

    python = make_venv(tmp_path / "venv")
    look = "from importlib.util import find_spec; print([find_spec(n) for n in ('ray', 'orchestration', 'boxseg')])"
    seen = subprocess.run(
        [python, "-I", "-c", look], check=True, cwd=tmp_path, capture_output=True, text=True
    )
    assert seen.stdout.strip() == "[None, None, None]"
    answers = []
    for name in ("usual.json", "in.json"):
        command = [
            python,
            "-I",
            "-m",
            "mlflow",
            "models",
            "predict",
            "-m",
            place,
            "-i",
            name,
            "-o",
            "out.json",
        ]
        subprocess.run(
            [*command, "--content-type", "json", "--env-manager", "local"],
            check=True,
            cwd=tmp_path,
        )
        answers.append(json.loads((tmp_path / "out.json").read_text())["predictions"])
    usual, served = answers
    for few, all_found in zip(usual, served, strict=True):
        assert few["scores"] == [score for score in all_found["scores"] if score >= 0.3]

    command = [
        "predict",
        str(trained_run.checkpoint),
        *map(str, images),
        "--min-score",
        "0",
        "--no-overlays",
    ]
    assert run([*command, "--output", str(tmp_path / "out"), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert len(content["annotations"]) > 0
    names = {each["id"]: each["name"] for each in content["categories"]}
    for found, image in zip(served, content["images"], strict=True):
        expected = [each for each in content["annotations"] if each["image_id"] == image["id"]]
        assert found["masks"] == [each["segmentation"] for each in expected]
        # four digits
        assert found["scores"] == pytest.approx([each["score"] for each in expected], abs=6e-5)
        assert found["labels"] == [names[each["category_id"]] for each in expected]

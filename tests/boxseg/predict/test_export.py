"""Exported networks do what the network does, at other sizes too; the program of docs/deploy.md runs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from boxseg.build import build_network
from boxseg.errors import BoxSegError, ConfigError, StorageError
from boxseg.files.writing import write_atomic
from boxseg.predict import Predictor
from boxseg.predict.export import TOLERANCE, WRITERS, _difference, export_network, has_onnx
from orchestration.cli.app import run

PAGE = Path(__file__).parents[3] / "docs/deploy.md"


@pytest.fixture
def predictor(trained_run):
    return Predictor(trained_run.checkpoint)


def test_torchscript_takes_other_sizes_than_it_was_made_with(predictor, tmp_path):
    about = export_network(predictor, "torchscript", tmp_path / "model.pt")
    assert about["difference"] <= TOLERANCE
    boxes, scores, labels, masks = torch.jit.load(tmp_path / "model.pt")(
        torch.rand(1, 3, 96, 224) * 255
    )
    assert (boxes.shape, scores.shape, labels.dtype) == ((100, 4), (100,), torch.int64)
    assert masks.shape == (100, 24, 56)


def test_small_images_have_fewer_detections_than_there_are_places(predictor, tmp_path):
    export_network(predictor, "torchscript", tmp_path / "model.pt")
    boxes, scores, _, _ = torch.jit.load(tmp_path / "model.pt")(torch.rand(1, 3, 32, 32) * 255)
    locations = 16 + 4 + 1 + 1 + 1
    assert len(boxes) == 100
    assert int((scores > 0).sum()) == min(100, locations * len(predictor.class_names))


def test_files_of_one_name_have_a_description_each(predictor, tmp_path):
    export_network(predictor, "safetensors", tmp_path / "model.safetensors")
    predictor.class_names = [f"other {name}" for name in predictor.class_names]
    export_network(predictor, "torchscript", tmp_path / "model.pt")
    for name, form in (("model.safetensors", "safetensors"), ("model.pt", "torchscript")):
        about = json.loads((tmp_path / f"{name}.json").read_text())
        assert about["format"] == form
        assert about["classes"][0].startswith("other ") == (form == "torchscript")


def test_an_earlier_description_does_not_stay_beside_another_network(
    predictor, tmp_path, monkeypatch
):
    path, description = tmp_path / "model.safetensors", tmp_path / "model.safetensors.json"
    path.write_bytes(b"earlier")
    description.write_text("of the earlier one")

    def write_only_the_network(target, content):
        if target == description:
            raise StorageError("the disk is full")
        write_atomic(target, content)

    monkeypatch.setattr("boxseg.predict.export.write_atomic", write_only_the_network)
    with pytest.raises(StorageError):
        export_network(predictor, "safetensors", path)
    assert path.read_bytes() != b"earlier"
    assert not description.exists()


def test_the_description_mentions_tiles(predictor, tmp_path):
    train = predictor.config.train.model_copy(update={"eval_tile": 64})
    predictor.config = predictor.config.model_copy(update={"train": train})
    assert export_network(predictor, "safetensors", tmp_path / "model.safetensors")["tile"] == 64


def test_bare_weights_are_those_of_the_network(predictor, tmp_path):
    export_network(predictor, "safetensors", tmp_path / "model.safetensors")
    assert (
        load_file(tmp_path / "model.safetensors").keys() == predictor.network.state_dict().keys()
    )
    assert (
        json.loads((tmp_path / "model.safetensors.json").read_text())["classes"]
        == predictor.class_names
    )


def test_another_network_is_refused_by_its_name(predictor, tmp_path):
    predictor.network = torch.nn.Linear(1, 1)
    with pytest.raises(ConfigError, match="holds a Linear, and exports are of CondInst"):
        export_network(predictor, "onnx", tmp_path / "model.onnx")


def test_a_vit_that_resizes_positions_is_for_torchscript_and_not_for_onnx(predictor, tmp_path):
    def use(backbone):
        model = predictor.config.model.model_copy(update={"backbone": backbone})
        predictor.config = predictor.config.model_copy(update={"model": model})
        predictor.network = build_network(predictor.config, num_classes=6, weights="none").eval()

    use("timm/vit_tiny_patch16_dinov3_qkvb")
    assert has_onnx(predictor.network)
    use("timm/test_vit")
    with pytest.raises(
        ConfigError,
        match=r"ONNX cannot express how timm/test_vit resizes .*torchscript",
    ):
        export_network(predictor, "onnx", tmp_path / "model.onnx")
    assert (
        export_network(predictor, "torchscript", tmp_path / "model.pt")["difference"] <= TOLERANCE
    )
    assert len(torch.jit.load(tmp_path / "model.pt")(torch.rand(1, 3, 96, 32) * 255)) == 4


def test_a_file_that_would_differ_is_not_written(predictor, tmp_path, monkeypatch):
    monkeypatch.setitem(WRITERS, "onnx", lambda model: (b"wrong", {"difference": float("nan")}))
    with pytest.raises(BoxSegError, match="differs"):
        export_network(predictor, "onnx", tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_onnx_equals_torch_and_the_program_of_the_page_runs(
    trained_run, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("onnxruntime", reason="ONNX is an extra")
    monkeypatch.chdir(tmp_path)
    assert run(["export", str(trained_run.checkpoint), "--format", "onnx", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["difference"] <= TOLERANCE
    Image.new("RGB", (100, 70), "teal").save("street.jpg")
    (program,) = re.findall(
        r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    exec(program.replace("> 0.3", "> 0.0"), {})
    lines = capsys.readouterr().out.splitlines()
    predictor = Predictor(trained_run.checkpoint)
    assert all(line.split()[0] in predictor.class_names for line in lines)
    (expected,) = predictor(["street.jpg"])
    best = max(float(line.split()[1]) for line in lines)
    assert best == pytest.approx(float(expected.scores[0]), abs=0.02)


def outputs(*, scores, boxes=None):
    """Outputs of a network, with a different box and mask for each score."""
    numbers = np.arange(len(scores), dtype=np.float32) if boxes is None else np.array(boxes)
    masks = np.broadcast_to(numbers[:, None, None] / len(scores), (len(scores), 2, 2))
    labels = np.zeros(len(scores), dtype=np.int64)
    return [np.stack([numbers] * 4, axis=1), np.array(scores, np.float32), labels, masks]


@pytest.mark.parametrize(
    ("boxes", "is_same"),
    [
        ([0, 1, 2, 3, 4], True),
        ([0, 2, 1, 3, 4], True),  # the two of one score change places
        ([0, 1, 2, 3, 9], True),  # the last one may be another of its score, which was cut off
        ([1, 0, 2, 3, 4], False),
        ([0, 1, 1, 3, 4], False),
        ([0, 1, 2, 9, 4], False),
        ([0, 1, 2, np.nan, 4], False),
    ],
)
def test_detections_of_one_score_may_come_in_another_order(boxes, is_same):
    scores = [0.9, 0.5, 0.5, 0.4, 0.3]
    difference = _difference(
        outputs(scores=scores), outputs(scores=scores, boxes=boxes), longer_side=10
    )
    assert (difference <= TOLERANCE) == is_same

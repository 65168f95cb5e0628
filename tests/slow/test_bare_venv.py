"""An exported model in a virtual environment that has ONNX Runtime and NumPy, and nothing of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from boxseg.predict import Predictor
from boxseg.predict.export import Deployed, export_network

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
PICTURES = 20
PROGRAM = """
import importlib.util, json, numpy, onnxruntime
missing = [name for name in ("torch", "boxseg", "PIL", "ray") if importlib.util.find_spec(name) is None]
session, worst = onnxruntime.InferenceSession("model.onnx"), [0.0] * 4
for number in range(PICTURES):
    kept = numpy.load(f"{number}.npz")
    found_all = session.run(None, {"image": kept["image"]})
    for place, (name, found) in enumerate(zip(("boxes", "scores", "labels", "masks"), found_all)):
        worst[place] = max(worst[place], float(numpy.abs(found.astype(float) - kept[name]).max()))
print(json.dumps({"missing": missing, "worst": worst}))
""".replace("PICTURES", str(PICTURES))


@pytest.mark.slow
def test_onnx_gives_the_same_without_torch(trained_run: Any, tmp_path: Path):
    pytest.importorskip("onnxruntime", reason="ONNX is an extra")
    predictor = Predictor(trained_run.checkpoint)
    export_network(predictor, "onnx", tmp_path / "model.onnx")
    model = Deployed(predictor.network.cpu().eval())
    random = np.random.default_rng(0)
    for number in range(PICTURES):
        height, width = 32 * random.integers(2, 6, 2)
        image = random.uniform(0, 255, (1, 3, height, width)).astype(np.float32)
        with torch.no_grad():
            wanted = dict(
                zip(
                    ("boxes", "scores", "labels", "masks"),
                    model(torch.from_numpy(image)),
                    strict=True,
                )
            )
        np.savez(
            tmp_path / f"{number}.npz",
            image=image,
            **{name: value.numpy() for name, value in wanted.items()},
        )

    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv/bin/python")
    install = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "-c",
        str(CONSTRAINTS),
        "onnxruntime",
        "numpy",
    ]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"no package index within reach: {installed.stderr.strip().splitlines()[-1:]}")
    done = subprocess.run(
        [python, "-I", "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["missing"] == ["torch", "boxseg", "PIL", "ray"]
    boxes, *others = told["worst"]
    assert boxes <= 1e-3 * 160  # boxes are pixels of images up to 160 px
    assert max(others) <= 1e-3

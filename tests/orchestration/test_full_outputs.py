"""Commands whose output folder is on a full or read-only disk: they name the file and the way out, exit code 5."""

import json
import subprocess
from pathlib import Path

import pytest
from real_disks import MEGABYTE, mounted_tmpfs, why_no_mounts

from orchestration.cli.app import run
from orchestration.errors import ExitCode

pytestmark = pytest.mark.skipif(why_no_mounts() is not None, reason=str(why_no_mounts()))

COMMANDS = {
    "export torchscript": "export RUN --format torchscript --output OUT/model.pt",
    "export safetensors": "export RUN --format safetensors --output OUT/model.safetensors",
    "export onnx": "export RUN --format onnx --output OUT/model.onnx",
    "predict": "predict RUN IMAGES --min-score 0 --output OUT",
    "label": "label DATA --images IMAGES --source box --output OUT",
    "eval": "eval RUN --data DATA --images IMAGES --output OUT",
    "data toy": "data toy OUT --train-images 2 --val-images 1 --size 64",
    "data import": "data import DATA --from coco --images IMAGES --output OUT",
    "data split": "data split DATA --images IMAGES --output OUT",
    "data check --fix": "data check DATA --images IMAGES --fix OUT",
    "data export": "data export DATA --images IMAGES --to yolo --output OUT",
}


def fill(disk) -> None:
    disk.fill()


def make_read_only(disk) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk.path)], check=True)


@pytest.mark.parametrize("strike", [fill, make_read_only], ids=["full", "read-only"])
@pytest.mark.parametrize("name", COMMANDS)
def test_an_output_that_cannot_be_written_is_named_with_the_way_out(
    name, strike, trained_run, tmp_path, capfd
):
    if name == "export onnx":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra: onnx)")
    with mounted_tmpfs(tmp_path / "disk", bytes_=MEGABYTE) as disk:
        strike(disk)
        # into a folder that is there, so that nothing but the file is at stake
        is_file = name.startswith("export")
        out = disk.path if is_file else disk.path / "out"
        words = {
            "RUN": trained_run.checkpoint,
            "DATA": trained_run.val.annotations,
            "IMAGES": trained_run.val.images,
        }
        command = [
            str(words.get(word, word)).replace("OUT", str(out)) for word in COMMANDS[name].split()
        ]
        code = run(command)
        said = capfd.readouterr().err.splitlines()[-1]
        assert code == ExitCode.RESOURCES, said
        assert str(disk.path) in said
        assert "then run the command again" in said
        assert not [path for path in out.rglob("model.*") if path.stat().st_size], "half written"


def test_no_image_is_left_out_because_the_disk_is_full(trained_run, tmp_path, capfd):
    content = json.loads(trained_run.val.annotations.read_text())
    for image in content["images"]:
        image["file_name"] = f"{trained_run.val.images.name}/{image['file_name']}"
    annotations = tmp_path / "nested.json"
    annotations.write_text(json.dumps(content))
    # one each for itself, out and images
    with mounted_tmpfs(tmp_path / "disk", bytes_=MEGABYTE, inodes=3) as disk:
        out = disk.path / "out"
        images = str(Path(trained_run.val.images).parent)
        assert (
            run(["data", "check", str(annotations), "--images", images, "--fix", str(out)])
            == ExitCode.RESOURCES
        )
    assert f"{out}/images" in capfd.readouterr().err.splitlines()[-1]

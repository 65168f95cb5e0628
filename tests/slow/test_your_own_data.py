"""The commands of docs/your-own-data.md, run one after the other on generated pictures."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from boxseg.config.method import ToyConfig
from boxseg.data.toy import ensure_toy
from boxseg.label.review import stamp_of
from orchestration.cli.app import run

PAGE = Path(__file__).parents[2] / "docs/your-own-data.md"
TINY = [
    "resources.runner=inline", "train.steps=4", "train.image_size=64", "model.weights=none",
    "model.backbone=timm/test_resnet", "model.channels=16", "qam.color_weight=0", "boxinst.warmup=1",
]  # fmt: skip


def write_photos(folder: Path) -> None:
    """The generated set as a YOLO folder with boxes only."""
    sources = ensure_toy(folder / "drawn", ToyConfig(train_images=6, val_images=3, size=64))
    for split, source in zip(("train", "val"), sources, strict=True):
        content = json.loads(source.annotations.read_text())
        names = [category["name"] for category in content["categories"]]
        for image in content["images"]:
            path = (
                folder
                / "photos/images"
                / split
                / Path(image["file_name"]).with_suffix(".jpg").name
            )
            labels = folder / "photos/labels" / split / path.with_suffix(".txt").name
            for each in (path, labels):
                each.parent.mkdir(parents=True, exist_ok=True)
            Image.open(source.images / image["file_name"]).save(path)
            boxes = [each for each in content["annotations"] if each["image_id"] == image["id"]]
            lines = []
            for each in boxes:
                x, y, width, height = (side / 64 for side in each["bbox"])
                lines.append(
                    f"{each['category_id'] - 1} {x + width / 2} {y + height / 2} {width} {height}\n"
                )
            labels.write_text("".join(lines))
        (folder / "photos/data.yaml").write_text(
            f"train: images/train\nval: images/val\nnames: {json.dumps(names)}\n"
        )


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.slow
def test_the_commands_of_the_page_run_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path)
    Path("mine.yaml").write_text(blocks("yaml")[0])
    for line in "".join(blocks("console")).splitlines():
        command, *arguments = shlex.split(line)
        assert command == "boxseg"
        if arguments[0] == "train":
            arguments += [word for setting in TINY for word in ("--set", setting)]
        if "--apply" in arguments:
            labels = json.loads(Path("labels/labels.coco.json").read_text())["annotations"]
            decided = {labels[0]["id"]: "reject", labels[1]["id"]: "accept"}
            decisions = {"labels": stamp_of(Path("labels")), "decisions": decided}
            Path("decisions.json").write_text(json.dumps(decisions))
        # four steps teach no good mask, and a set without one is refused
        if "export" in arguments:
            reviewed = json.loads(Path("labels/labels.reviewed.json").read_text())
            for each in reviewed["annotations"]:
                x, y, width, height = each["bbox"]
                each["segmentation"] = [[x, y, x + width, y, x + width / 2, y + height]]
                each.update(quality=1.0, doubts=[], checks={})
            Path("labels/labels.reviewed.json").write_text(json.dumps(reviewed))
        runs = sorted(path.name for path in Path("runs/mine").glob("*-*"))
        arguments = [
            word.removesuffix("RUN") + runs[0] if word.endswith("RUN") else word
            for word in arguments
        ]
        code = run(arguments)
        assert code == 0, f"{line}: {capsys.readouterr().err}"
    assert Path("labels/review/index.html").exists()
    assert Path("labels/labels.reviewed.json").exists()
    assert Path("found/predictions.coco.json").exists()

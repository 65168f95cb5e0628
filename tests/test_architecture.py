"""Who may import whom, read from the sources; and what the command line does not load."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What the rooms of boxseg may use of one another, from the bottom up. Every room may use `errors`, `structures`,
# `mask_parts` and `files`; networks, losses, teacher and copy-paste know nothing of one another, as networks arrive as
# arguments.
FREE = {"errors", "structures", "mask_parts", "files", "config"}
ROOMS = {
    "config": set(),
    "files": set(),
    "ops": set(),
    "coco": set(),
    "formats": {"coco"},
    "data": {"coco", "ops", "drawing"},
    "model": {"ops"},
    "losses": {"ops"},
    "teacher": {"ops"},
    "copy_paste": {"ops"},
    "engine": {"data", "model", "losses", "teacher", "copy_paste", "ops", "evaluation"},
    "evaluation": {"engine", "coco", "data", "model", "teacher", "ops", "predict", "drawing"},
    "predict": {"build", "engine", "evaluation", "data", "model", "ops", "drawing"},
    "label": {
        "build",
        "predict",
        "evaluation",
        "engine",
        "coco",
        "formats",
        "data",
        "teacher",
        "ops",
    },
}
TORCH_FREE = (
    "boxseg.config.method",
    "boxseg.config.criterion",
    "boxseg.label.expected",
    "boxseg.config.backbones",
    "boxseg.coco.checks",
    "boxseg.coco.classes",
    "boxseg.data.fingerprint",
    "boxseg.data.mask_files",
    "boxseg.data.stats",
    "boxseg.formats.convert",
    "boxseg.formats.find",
    "boxseg.formats.good_masks",
    "boxseg.files.images",
    "boxseg.data.misfits",
    "boxseg.mask_parts",
    "boxseg.files.reading",
    "boxseg.engine.checkpoint",
    "orchestration.config.spec",
    "orchestration.planning.preflight",
    "orchestration.planning.recipe",
    "orchestration.planning.label_input",
    "orchestration.execute.label_run",
    "orchestration.planning.plan",
    "orchestration.planning.estimate",
    "orchestration.planning.run_doubts",
    "orchestration.record.run_folder",
    "orchestration.cli.app",
)


def sources(package: str) -> Iterator[tuple[str, set[str]]]:
    """(path below the root, modules it imports anywhere) of every source file."""
    for path in sorted((ROOT / package).rglob("*.py")):
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        yield str(path.relative_to(ROOT)), found


def within(imported: set[str], package: str) -> set[str]:
    return {name for name in imported if name == package or name.startswith(f"{package}.")}


def test_the_vision_package_knows_nothing_of_orchestration():
    for path, imported in sources("boxseg"):
        for package in ("ray", "mlflow", "typer", "orchestration"):
            assert not within(imported, package), f"{path} imports {package}"


def test_ray_mlflow_and_typer_are_imported_only_where_allowed():
    for path, imported in sources("orchestration"):
        room = path.split("/")[1]
        assert not within(imported, "ray") or room in ("execute", "connect", "jobs"), (
            f"{path} imports ray"
        )
        assert not within(imported, "mlflow") or room == "tracking", f"{path} imports mlflow"
        assert not within(imported, "obstore") or room == "store", f"{path} imports obstore"
        assert not within(imported, "typer") or room == "cli", f"{path} imports typer"
        assert not within(imported, "orchestration.cli") or room == "cli", (
            f"{path} imports the command line"
        )


@pytest.mark.parametrize("room", ROOMS)
def test_packages_import_only_those_below_them(room: str):
    allowed = FREE | ROOMS[room] | {room}
    for path, imported in sources(f"boxseg/{room}"):
        used = {name.split(".")[1] for name in within(imported, "boxseg") if "." in name}
        assert used <= allowed, f"{path} imports boxseg.{', boxseg.'.join(used - allowed)}"


def test_every_package_has_an_import_rule():
    rooms = {path.name for path in (ROOT / "boxseg").iterdir() if (path / "__init__.py").is_file()}
    assert rooms == set(ROOMS)


def test_no_package_has_too_many_files():
    for package in ("boxseg", "orchestration"):
        for folder in (ROOT / package).rglob("*/"):
            modules = [path for path in folder.glob("*.py") if not path.name.startswith("__")]
            assert len(modules) <= 14, f"{folder.relative_to(ROOT)} has {len(modules)} modules"


def test_the_vision_package_reads_yaml_only_for_data_sets():
    for path, imported in sources("boxseg"):
        # the classes of a YOLO data set are in a YAML file
        reads_data = path == "boxseg/files/reading.py"
        assert not within(imported, "yaml") or reads_data, f"{path} imports yaml"


@pytest.mark.parametrize("module", TORCH_FREE)
def test_settings_and_command_line_load_neither_torch_nor_ray_nor_mlflow(module: str):
    program = (
        f"import sys, {module}; print(sorted({{'torch', 'ray', 'mlflow'}} & set(sys.modules)))"
    )
    assert run_python("-c", program).stdout.strip() == "[]"


WRONG = """
label V --images nowhere --source box
label V --images . --source box
label V --images I --run none
label V --images I --source magic
label V --images I --source file:none.json
label V --images I --source file:broken.json
label V --images I --run R --fuse-with broken.json
label V --images I --apply none.json
label V --images I --source box --device abacus
predict R none.jpg
predict none I
predict R I --device abacus
eval none --data V --images I
eval none.json --data V --images I
eval broken.json --data V --images I
eval R --data O --images I
export none --format onnx
data check I
data export none.json --output x
report none
train none.yaml
recipe none.json
"""


def test_wrong_arguments_never_load_torch(trained_run, tmp_path: Path):
    content = trained_run.val.annotations.read_text().replace('"name": "', '"name": "other ')
    (tmp_path / "other.json").write_text(content)
    (tmp_path / "broken.json").write_text('[{"image_id": "one"}]')
    run = trained_run
    paths = {"V": run.val.annotations, "I": run.val.images, "R": run.checkpoint, "O": "other.json"}
    commands = [
        [str(paths.get(word, word)) for word in line.split()]
        for line in WRONG.strip().splitlines()
    ]
    program = f"""
import sys
from orchestration.cli.app import run
for command in {commands}:
    code = run(command)
    if code not in (2, 3) or "torch" in sys.modules:
        sys.exit(f"{{command[:2]}} ended with {{code}}")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr


def test_help_is_quick():
    before = os.times()
    shown = run_python("-m", "orchestration.cli", "--help")
    after = os.times()
    used = (
        after.children_user - before.children_user + after.children_system - before.children_system
    )
    assert used < 3  # CPU seconds, which other load hardly changes; 0.2 measured
    assert "sweep" in shown.stdout


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=ROOT,
    )


def test_no_test_loads_ray_before_it_runs():
    """Ray takes its settings from the environment when it is loaded, and all tests are read in one process."""
    loads = re.compile(r"^(import|from) (ray|orchestration\.connect\.scaling)\b", re.MULTILINE)
    for path in (ROOT / "tests").rglob("test_*.py"):
        assert not loads.search(path.read_text(encoding="utf-8")), (
            f"{path} loads Ray when it is read"
        )

"""Who may import whom, read from the sources; and what the command line does not load."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RAY_FILES = {
    "train_run",
    "worker",
    "tune",
    "search_space",
    "checkpoints",
    "jobs",
    "ray_session",
    "ray_start",
    "cluster",
}
PARTS = ("model", "losses", "teacher", "copy_paste")
TORCH_FREE = (
    "boxseg.config",
    "boxseg.criterion",
    "boxseg.expected",
    "boxseg.model.names",
    "boxseg.data.checks",
    "boxseg.data.classes",
    "boxseg.data.fingerprint",
    "boxseg.data.good_masks",
    "boxseg.data.image_files",
    "boxseg.data.misfits",
    "boxseg.data.reading",
    "boxseg.engine.checkpoint",
    "orchestration.config",
    "orchestration.preflight",
    "orchestration.recipe",
    "orchestration.label_input",
    "orchestration.label_run",
    "orchestration.plan",
    "orchestration.estimate",
    "orchestration.run_doubts",
    "orchestration.run_folder",
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


def test_ray_mlflow_and_typer_stay_in_their_files():
    for path, imported in sources("orchestration"):
        name = Path(path).stem
        in_cli = path.startswith("orchestration/cli/")
        assert not within(imported, "ray") or (name in RAY_FILES and not in_cli), f"{path} imports ray"
        assert not within(imported, "mlflow") or (name.startswith("tracking") and not in_cli), f"{path} imports mlflow"
        assert not within(imported, "typer") or in_cli, f"{path} imports typer"
        assert not within(imported, "orchestration.cli") or in_cli, f"{path} imports the command line"


@pytest.mark.parametrize("part", PARTS)
def test_the_parts_of_the_method_do_not_import_one_another(part: str):
    for path, imported in sources(f"boxseg/{part}"):
        for other in set(PARTS) - {part}:
            assert not within(imported, f"boxseg.{other}"), f"{path} imports boxseg.{other}"


@pytest.mark.parametrize("part", ["ops", "data", *PARTS])
def test_imports_point_downwards(part: str):
    for path, imported in sources(f"boxseg/{part}"):
        for above in ("engine", "build", "predict"):
            assert not within(imported, f"boxseg.{above}"), f"{path} imports boxseg.{above}"


def test_only_the_door_knows_yaml():
    for path, imported in sources("boxseg"):
        reads_data = path == "boxseg/data/reading.py"  # the classes of a YOLO data set are in a YAML file
        assert not within(imported, "yaml") or reads_data, f"{path} imports yaml"


@pytest.mark.parametrize("module", TORCH_FREE)
def test_settings_and_command_line_load_neither_torch_nor_ray_nor_mlflow(module: str):
    program = f"import sys, {module}; print(sorted({{'torch', 'ray', 'mlflow'}} & set(sys.modules)))"
    assert run_python("-c", program).stdout.strip() == "[]"


WRONG = """
label V --images nowhere --source box
label V --images . --source box
label V --images I --run none
label V --images I --source magic
label V --images I --source file:none.json
label V --images I --compare box,magic
label V --images I --apply none.json
label V --images I --source box --device abacus
predict R none.jpg
predict none I
predict R I --device abacus
eval none --data V --images I
eval R --data V --images I --against none
eval R --data V --images I --against none.json
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
    run = trained_run
    paths = {"V": run.val.annotations, "I": run.val.images, "R": run.checkpoint, "O": "other.json"}
    commands = [[str(paths.get(word, word)) for word in line.split()] for line in WRONG.strip().splitlines()]
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
    used = after.children_user - before.children_user + after.children_system - before.children_system
    assert used < 3  # CPU seconds, which other load hardly changes; 0.2 measured
    assert "sweep" in shown.stdout


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )

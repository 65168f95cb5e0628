"""A closed terminal signals all of its processes at once; trials save their state all the same."""

from __future__ import annotations

import os
import pty
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from orchestration.errors import ExitCode
from orchestration.record.find_runs import list_runs
from orchestration.record.run_folder import RunStatus

pytestmark = [pytest.mark.slow, pytest.mark.ray]

EXPERIMENT = """
name: hung-up
data: {toy: {train_images: 4, val_images: 2, size: 64}}
model: {backbone: timm/test_resnet, weights: none, channels: 16, tower_convs: 1}
cond: {branch_channels: 16, branch_convs: 1}
train: {steps: 100000, batch_size: 2, image_size: 64, report_every: 1}
sweep: {trials: 1, space: {qam.iou_thr: {uniform: [0.3, 0.6]}}}
"""


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_the_state_is_saved(command: str, tmp_path: Path):
    (tmp_path / "experiment.yaml").write_text(EXPERIMENT)
    process, terminal = pty.fork()
    if process == 0:
        # As in a terminal, should nohup have started the tests.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.chdir(tmp_path)
        words = [sys.executable, "-m", "orchestration.cli", command, "experiment.yaml"]
        os.execvp(sys.executable, words)
    threading.Thread(target=read_all, args=(terminal,), daemon=True).start()
    while not any(run.step > 3 for run in runs_in(tmp_path)):
        time.sleep(0.5)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == ExitCode.INTERRUPTED
    found = runs_in(tmp_path)
    assert {run.status for run in found} == {"interrupted"}
    assert any((Path(run.folder) / "checkpoints" / "last").exists() for run in found)


def read_all(terminal: int) -> None:
    """Read what is printed until the terminal goes."""
    try:
        while os.read(terminal, 4096):
            pass
    except OSError:
        return


def runs_in(folder: Path) -> list[RunStatus]:
    return [run for run in list_runs(folder / "runs") if run.kind == "run"]

"""A process that reports as a training run does and has its own tracker."""

from pathlib import Path

from orchestration.config.resolved import dump_resolved
from orchestration.config.spec import RunSpec
from orchestration.record.run_folder import RunFolder, RunStatus, own_process
from orchestration.tracking.tracker import Tracker

METRICS = tuple("abcde")
REPORTS = 300


def write_run(storage: Path, uri: str, number: int) -> None:
    """Report 300 times five metrics as run `run-NUMBER`.

    Raises:
        RuntimeError: MLflow did not take all of it.
    """
    folder = RunFolder(storage / "many" / f"run-{number}")
    folder.create(RunStatus(folder.path.name, "many", **own_process()), dump_resolved(RunSpec()))
    tracker = Tracker(storage, "many", uri=uri, logs=folder.logs)
    tracker.add(folder)
    tracker.start()
    for step in range(1, REPORTS + 1):
        folder.report(step, {f"train/loss_{name}": step + number for name in METRICS})
    folder.finish("finished")
    if not tracker.close(timeout_s=240):
        raise RuntimeError(f"{folder.path}: not wholly in MLflow")

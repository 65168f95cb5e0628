"""Drills with the real loop: killed, short of disk, moved, without power; all end as an undisturbed run does."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import drills
import forked
import psutil
import pytest
from copies import COPIES
from drills import Moment
from drivers import trial_step
from real_disks import MEGABYTE, RealDisk, mounted_ext4, mounted_tmpfs, why_no_mounts

from orchestration.config.spec import load_sweep
from orchestration.errors import ExitCode
from orchestration.record.journal import newest_sweep
from orchestration.record.run_folder import RunFolder
from orchestration.record.table import read_table

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(1200)]
needs_mounts = pytest.mark.skipif(why_no_mounts() is not None, reason=str(why_no_mounts()))

SEED = 7
KILLS = 9
LENGTH_S = 10.0
"""Random kills come within so long of a command's start [s]."""
SOON_S = 30.0
"""A command that cannot write any more has to end within this [s]."""
DISK_BYTES = 256 * MEGABYTE
"""A bit more than a run asks for before it starts."""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drills.make_experiment(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def calm(experiment: Path, make_storage: Callable[[Path], Path]) -> Path:
    """The folder of the run that nothing happens to."""
    story = drills.run_with_kills(experiment, place(make_storage(experiment.parent / "calm")))
    assert story.codes == [ExitCode.DONE]
    return story.folder


@pytest.fixture(scope="module")
def make_storage(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Makes a storage folder whose MLflow store has its tables; to make them takes longer than a run."""
    import mlflow

    empty = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{empty}").search_experiments()

    def make(path: Path) -> Path:
        path.mkdir(exist_ok=True)
        shutil.copy(empty, path)
        return path

    return make


def test_killed_runs_end_as_if_undisturbed(experiment, calm, make_storage, tmp_path):
    storage = make_storage(tmp_path / "rough")
    chance = random.Random(SEED)
    plans = [[Moment(phase, 0.0)] for phase in drills.PHASES]
    killed: list[str] = []
    while len(killed) < KILLS:
        moments = plans.pop() if plans else drills.draw_moments(chance, 3, length_s=LENGTH_S)
        story = drills.run_with_kills(experiment, place(storage), moments)
        killed += story.kills
        told = f"seed {SEED}, {moments}, killed in {story.kills}, {story.folder}"
        assert set(story.codes) == {ExitCode.DONE}, told
        assert not drills.differences(story.folder, calm), told
    assert {"last evaluation", "writing", "end"} <= set(killed)
    assert not drills.tracking_faults(storage)


@dataclass(frozen=True)
class Fault:
    """What happens to a run's disk, and how it is taken back."""

    strike: Callable[[RealDisk], object]
    mend: Callable[[RealDisk], object]
    way_out: str
    """What the message has to say."""
    storage: str = "storage"
    """Where runs are on the disk."""
    inodes: int | None = None


FAULTS = {
    "full": Fault(lambda disk: disk.fill(), RealDisk.make_room, "make room"),
    "4 kB left": Fault(lambda disk: disk.fill(left=4096), RealDisk.make_room, "make room"),
    "no inodes": Fault(RealDisk.use_up_inodes, RealDisk.make_room, "make room", inodes=2000),
    "read-only": Fault(RealDisk.make_read_only, RealDisk.make_writable, "mount it for writing"),
    "unmounted": Fault(RealDisk.unmount, RealDisk.mount, "mount or restore it", storage="."),
    "moved": Fault(
        lambda disk: (disk.path / "storage").rename(disk.path / "elsewhere"),
        lambda disk: (disk.path / "elsewhere").rename(disk.path / "storage"),
        "mount or restore it",
    ),
}


ON_ITS_WAY, LAST = 3, drills.STEPS
"""Updates after which a disk is lost; the last one is still to be evaluated then."""


@needs_mounts
@pytest.mark.parametrize(
    ("step", "stopped", "name"),
    [
        *((ON_ITS_WAY, False, name) for name in FAULTS),
        *((ON_ITS_WAY, True, name) for name in ("full", "moved")),
        *((LAST, False, name) for name in ("4 kB left", "read-only", "unmounted")),
    ],
)
def test_a_run_without_its_disk_ends_soon_and_resumes_when_it_is_back(
    step, stopped, name, experiment, calm, make_storage, tmp_path
):
    fault = FAULTS[name]
    with mounted_ext4(tmp_path / "disk", bytes_=DISK_BYTES, inodes=fault.inodes) as disk:
        storage = make_storage(disk.path / fault.storage)
        command = start_run(experiment, storage, tmp_path / "output.txt")
        run = wait_for_step(command, storage, step)
        command.signal(signal.SIGSTOP)  # to fill a disk may take longer than the rest of a run
        fault.strike(disk)
        command.signal(signal.SIGCONT)
        if stopped:
            command.signal(signal.SIGTERM)
        code = command.wait(SOON_S)
        said = command.text()
        assert code == ExitCode.RESOURCES, said
        # Not always the last line: what still works in the process may have something to say after it.
        told = next(line for line in said.splitlines() if line.startswith("error: "))
        assert str(storage) in told
        assert fault.way_out in told
        for word in ("going on from the last checkpoint", "unexpected", "Traceback"):
            assert word not in said, said
        if name == "unmounted":
            assert not list(disk.path.iterdir()), "made anew on another disk"
        if name == "moved":
            assert not storage.exists(), "made anew"
        fault.mend(disk)
        resumed = start_run(
            experiment, storage, tmp_path / "output.txt", "--resume", run.path.name
        )
        assert resumed.wait(drills.LIMIT_S) == ExitCode.DONE, resumed.text()
        assert not drills.differences(run.path, calm)
        assert not drills.tracking_faults(storage)


@needs_mounts
@pytest.mark.parametrize("names_kept", [True, False], ids=["names kept", "nothing kept"])
def test_a_run_resumes_after_a_power_cut(names_kept, experiment, calm, make_storage, tmp_path):
    with mounted_ext4(tmp_path / "disk", bytes_=DISK_BYTES) as disk:
        storage = make_storage(disk.path / "storage")
        command = start_run(experiment, storage, tmp_path / "output.txt")
        run = wait_for_step(command, storage, 5)
        command.kill()
        disk.cut_power(names_kept=names_kept)
        resumed = start_run(
            experiment, storage, tmp_path / "output.txt", "--resume", run.path.name
        )
        assert resumed.wait(drills.LIMIT_S) == ExitCode.DONE, resumed.text()
        assert not drills.differences(run.path, calm)


@needs_mounts
def test_a_tiny_disk_is_refused_at_once(experiment, tmp_path):
    with mounted_tmpfs(tmp_path / "disk", bytes_=8 * MEGABYTE) as disk:
        command = start_run(experiment, disk.path, tmp_path / "output.txt")
        assert command.wait(SOON_S) == ExitCode.RESOURCES
        assert (
            f"storage: the disk of {disk.path} has 8 MB free; a run needs 200 MB or more"
            in command.text()
        )
        assert not list(disk.path.iterdir())


@pytest.fixture(scope="module")
def interrupted(experiment: Path, make_storage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed on its way."""
    storage = make_storage(tmp_path_factory.mktemp("interrupted") / "storage")
    command = start_run(experiment, storage, storage.with_suffix(".txt"))
    run = wait_for_step(command, storage, 5)
    command.kill()
    return run.path


@pytest.mark.parametrize("way", COPIES)
def test_a_copied_run_resumes_where_it_was(
    way, interrupted, experiment, calm, make_storage, tmp_path
):
    storage = make_storage(tmp_path / "storage")
    place = storage / drills.NAME / interrupted.name
    place.parent.mkdir()
    COPIES[way](interrupted, place)
    before = len(RunFolder(place).reports_since(0)[0])
    resumed = start_run(experiment, storage, tmp_path / "output.txt", "--resume", interrupted.name)
    assert resumed.wait(drills.LIMIT_S) == ExitCode.DONE, resumed.text()
    steps = [report.step for report in RunFolder(place).reports_since(0)[0][before:]]
    assert min(steps) > 4, "it started over"
    assert not drills.differences(place, calm)
    assert not drills.tracking_faults(storage)


def place(storage: Path) -> drills.Place:
    return drills.Place(str(storage), storage, storage / "output.txt")


def start_run(experiment: Path, storage: Path, output: Path, *more: str) -> forked.Command:
    return forked.start(["train", experiment, f"--set=storage={storage}", *more], output)


def wait_for_step(command: forked.Command, storage: Path, step: int) -> RunFolder:
    """Wait until the only run under a storage has done so many updates."""
    while not command.ended:
        for path in storage.glob(f"{drills.NAME}/*/status.json"):
            if RunFolder(path.parent).stored().step >= step:
                return RunFolder(path.parent)
        time.sleep(drills.POLL_S)
    raise AssertionError(f"it ended before step {step}:\n{command.text()}")


SWEEP = {
    "search": "grid",
    "trial_scheduler": "none",
    "concurrency": 1,
    "metric": "val/box_ap",
    "space": {"solver.lr": {"choice": [0.003, 0.01, 0.03]}},
}
SWEEP_KILLS = 2
LOOK_S = 0.1
"""Time between two looks at a sweep, as a look reads all of its trials' files [s]."""


@pytest.fixture(scope="module")
def sweep_experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drills.make_experiment(tmp_path_factory.mktemp("sweep"), sweep=SWEEP)


@pytest.fixture(scope="module")
def calm_sweep(sweep_experiment: Path, make_storage: Callable[[Path], Path]) -> Path:
    """The folder of the sweep that nothing happens to."""
    storage = make_storage(sweep_experiment.parent / "calm")
    command = start_sweep(sweep_experiment, storage)
    assert command.wait(drills.SWEEP_LIMIT_S) == ExitCode.DONE, command.text()
    return newest_sweep(storage, drills.NAME).path


@pytest.mark.ray
def test_a_killed_sweep_ends_as_if_undisturbed(
    sweep_experiment, calm_sweep, make_storage, tmp_path
):
    storage = make_storage(tmp_path / "rough")
    chance = random.Random(SEED)
    moments = sorted(
        (chance.randrange(3), chance.randint(0, drills.STEPS)) for _ in range(SWEEP_KILLS)
    )
    command = start_sweep(sweep_experiment, storage)
    for turn, (number, step) in enumerate(moments):
        while trial_step(storage, number) < step and not command.ended:
            time.sleep(LOOK_S)
        time.sleep(chance.uniform(0, 0.5))
        trials = trial_processes(command)
        if trials and turn % 2:
            trials[0].kill()
        else:
            command.kill_alone()
            command = start_sweep(sweep_experiment, storage)
    assert command.wait(drills.SWEEP_LIMIT_S) == ExitCode.DONE, (
        f"seed {SEED}, {moments}: {command.text()}"
    )
    check_sweep(storage, calm_sweep, sweep_experiment)


@needs_mounts
@pytest.mark.ray
def test_a_sweep_without_its_disk_ends_soon_and_resumes_when_it_is_back(
    sweep_experiment, calm_sweep, make_storage, tmp_path
):
    with mounted_ext4(tmp_path / "disk", bytes_=DISK_BYTES) as disk:
        storage = make_storage(disk.path)
        for number, name in enumerate(("full", "unmounted")):
            fault = FAULTS[name]
            command = start_sweep(sweep_experiment, storage, tmp_path / "output.txt")
            while trial_step(storage, number) < 3 and not command.ended:
                time.sleep(LOOK_S)
            fault.strike(disk)
            assert command.wait(SOON_S) == ExitCode.RESOURCES, command.text()
            assert fault.way_out in command.text().splitlines()[-1]
            fault.mend(disk)
        command = start_sweep(sweep_experiment, storage, tmp_path / "output.txt")
        assert command.wait(drills.SWEEP_LIMIT_S) == ExitCode.DONE, command.text()
        check_sweep(storage, calm_sweep, sweep_experiment)


def check_sweep(storage: Path, calm: Path, experiment: Path) -> None:
    """One sweep is there, with the table and the trials of an undisturbed one, and MLflow says the same."""
    (folder,) = (path.parent for path in storage.glob(f"{drills.NAME}/*/status.json"))
    tables = [read_table(each, load_sweep(experiment, [])).ranked() for each in (folder, calm)]
    rows = [
        [(row.id[-2:], row.status, row.values, row.value, row.step) for row in table]
        for table in tables
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 3
    for trial, other in zip(*(sorted(each.glob("*-0?")) for each in (folder, calm)), strict=True):
        assert not drills.differences(trial, other)
    assert not drills.tracking_faults(storage)


def start_sweep(experiment: Path, storage: Path, output: Path | None = None) -> forked.Command:
    """Start it, or resume it where the storage knows it."""
    known = newest_sweep(storage, drills.NAME) is not None
    arguments = ["sweep", experiment, f"--set=storage={storage}", *(["--resume"] if known else [])]
    return forked.start(arguments, output or storage / "output.txt")


def trial_processes(command: forked.Command) -> list[psutil.Process]:
    """Processes that train for a sweep, by the name that Ray gives them."""
    found = []
    with contextlib.suppress(psutil.Error):
        for each in psutil.Process(command.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if each.cmdline()[:1] and each.cmdline()[0].startswith("ray::ImplicitFunc"):
                    found.append(each)
    return found

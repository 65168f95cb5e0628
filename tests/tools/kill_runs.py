"""Kills runs of the real loop many times, goes on with them, and compares each end with that of an undisturbed run.

`python tests/tools/kill_runs.py --kills 200` prints a table of the kills by phase; `--store` keeps the runs in an
object store and the metrics on an MLflow server, and lets a third of the kills take the machine with its disk as well,
so that another one goes on. `--sweeps` kills drivers of sweeps and processes of their trials instead, on a cluster
whose node has the store alone in common with them. It stops at the first wrong end or hang and keeps that folder.

Every kill and every end is a line of `--record`. Started again with the same record, it goes on with what is left; the
same `--seed` draws the same moments.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import drills
import forked
import psutil
from drills import Place
from faulty_proxy import free_port
from local_cluster import LocalCluster, local_cluster
from object_store import BUCKET, ObjectStore, object_store, using

from boxseg.engine.checkpoint import find_checkpoint
from boxseg.errors import ConfigError
from orchestration.config.spec import load_sweep
from orchestration.record.journal import is_concluded
from orchestration.record.run_folder import RunFolder
from orchestration.record.table import read_table
from orchestration.store import mirror
from orchestration.store.client import place_of
from orchestration.store.places import storage_folder
from orchestration.tracking.repair import repair
from orchestration.tracking.server import mlflow_server

LENGTH_S = 6.0
"""Random kills come within so long of a command's start [s]."""
MOST_KILLS = 6
"""Of one run."""
LOST = 1 / 3
"""Share of the kills in which the machine is lost as well, where the runs are in a store."""
NODE, START_S, STARTS = "one", 200.0, 5
"""On which two trials of a sweep train at a time; how long Ray may take to start there on a busy machine [s], and how
often that is tried."""
BUSY = {"RAY_gcs_rpc_server_reconnect_timeout_s": "120", "RAY_health_check_period_ms": "10000"}
"""So that Ray takes nobody for dead who has to wait for other work of this machine."""
TRIALS = 3
SWEEP = {
    "search": "grid",
    "trial_scheduler": "none",
    "metric": "val/box_ap",
    "space": {"solver.lr": {"choice": [0.003, 0.01, 0.03]}},
}
SWEEP_S = 20.0
"""A sweep takes about so long from when a trial trains [s]."""
SWEEP_LIMIT_S = 900.0
"""A command of a sweep that takes longer hangs; it may wait 70 s for the driver before."""
TRIAL_KILLS = 2
"""Most kills of trials' processes in a sweep: Ray starts none for the fourth time."""
SWEEP_PHASES = (
    "a sweep's start",
    "a trial",
    "between trials",
    "a sweep's end",
    "a trial's process",
)
"""Where the driver is when it is killed, and what is killed instead of it."""


def main() -> int:
    """Parse the arguments, kill, print; 1 if a run ended wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", action="store_true")
    parser.add_argument("--sweeps", action="store_true", help="in a store, on a cluster")
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that servers end with us
    folder = Path(tempfile.mkdtemp(prefix="kills-"))  # names of Ray's sockets are limited
    record = Record(options.record or folder / "record.jsonl")
    if options.sweeps:
        with store_bench(folder) as bench, cluster_of(bench, folder / "c") as cluster:
            faults = kill_sweeps(bench, cluster, record, options.kills, seed=options.seed)
    else:
        with (store_bench if options.store else disk_bench)(folder) as bench:
            faults = kill_runs(bench, record, options.kills, seed=options.seed)
    print(record.table())
    if faults:
        print("\n".join([*faults, f"kept in {folder}"]))
        return 1
    print("no wrong end, no hang, MLflow has every run once and as its folder says")
    shutil.rmtree(folder)
    return 0


@dataclass
class Bench:
    """Where runs are killed, and where they are looked at once they have ended."""

    place: Place
    seen: Path
    """The storage as who looks at the runs has it, not on the machine of the runs."""
    environment: contextlib.AbstractContextManager[None] = field(
        default_factory=contextlib.nullcontext
    )
    """Of the one who looks."""
    settings: dict[str, Any] = field(default_factory=dict)
    lost: float = 0.0
    """Share of the kills in which the machine is lost."""
    tracking_uri: str | None = None
    """Null: a file in the storage."""


class Record:
    """What was done so far: a line of JSON for each kill and each run that ended."""

    def __init__(self, path: Path) -> None:
        """Go on with those that are there."""
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self._lines: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def add(self, **line: Any) -> None:
        """Write it down at once."""
        self._lines.append(line)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    @property
    def kills(self) -> int:
        """How many there were."""
        return len(self._of("killed_in"))

    @property
    def runs(self) -> int:
        """How many have ended, well or not."""
        return len(self._of("run"))

    def table(self) -> str:
        """Of the kills by phase, and what came of the runs, as Markdown."""
        kills, runs = self._of("killed_in"), self._of("run")
        phases = Counter(line["killed_in"] for line in kills)
        lost = Counter(line["killed_in"] for line in kills if line["is_lost"])
        rows = [
            f"| {each} | {phases[each]} | {lost[each]} |"
            for each in (*drills.PHASES, *SWEEP_PHASES)
            if phases[each]
        ]
        return "\n".join(
            [
                "| killed in | times | of them with the machine |",
                "|---|---|---|",
                *rows,
                f"| together | {phases.total()} | {lost.total()} |",
                "",
                f"{len(runs)} runs, {sum(bool(line['wrong']) for line in runs)} of them wrong or lost",
            ]
        )

    def _of(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self._lines if name in line]


def kill_runs(bench: Bench, record: Record, wanted: int, *, seed: int) -> list[str]:
    """Kill until the record has so many, and give all that is wrong with the first run that ends wrong."""
    experiment = drills.make_experiment(bench.place.output.parent, **bench.settings)
    calm = run_once(experiment, bench)
    while record.kills < wanted:
        # each run's own, so that another process goes on as this one would have
        chance = random.Random(f"{seed} {record.runs}")
        count = chance.randint(1, MOST_KILLS)
        moments = drills.draw_moments(chance, count, length_s=LENGTH_S, lost=bench.lost)
        try:
            story = drills.run_with_kills(
                experiment,
                bench.place,
                moments,
                on_kill=lambda phase, moment: record.add(killed_in=phase, is_lost=moment.is_lost),
            )
            name, longest_s = story.folder.name, story.longest_s
            wrong = ends_wrong(bench, name, calm)
            if set(story.codes) != {0}:
                wrong.append(f"ended with {story.codes}")
        except (TimeoutError, FileNotFoundError) as error:
            name, longest_s, wrong = "unknown", 0.0, [str(error)]
        record.add(run=name, wrong=wrong, longest_s=longest_s)
        print(f"{record.kills} kills of {record.runs} runs", file=sys.stderr, flush=True)
        if wrong:
            return [f"seed {seed}, run {record.runs - 1}, {moments}: {name}", *wrong]
    with bench.environment:
        return drills.tracking_faults(bench.seen, bench.tracking_uri)


def run_once(experiment: Path, bench: Bench) -> Path:
    """The folder of an undisturbed run."""
    story = drills.run_with_kills(experiment, bench.place)
    assert story.codes == [0], bench.place.output.read_text()
    with bench.environment:
        return fetch_run(bench.seen / drills.NAME / story.folder.name)


def ends_wrong(bench: Bench, name: str, calm: Path) -> list[str]:
    """Differences of a run from the undisturbed one; its weights are removed, as hundreds of them take gigabytes."""
    with bench.environment:
        folder = fetch_run(bench.seen / drills.NAME / name)
        wrong = drills.differences(folder, calm)
        if not wrong:
            remove_weights(folder)
    return wrong


def fetch_run(folder: Path) -> Path:
    """Have a run with the checkpoints that count, as anybody who reads it in a store; gives its folder.

    Raises:
        FileNotFoundError: it is not there.
    """
    if mirror.address_of(folder) is None:
        return folder
    pull(folder)
    fetch_checkpoints(folder)
    return folder


def pull(folder: Path) -> None:
    """Have the records of a run or sweep of a store.

    Raises:
        FileNotFoundError: it is not there.
    """
    with mirror.in_hand(folder) as tree:
        tree.pull()
    if not (folder / "status.json").exists():
        raise FileNotFoundError(f"{folder.name} is not in the store")


def fetch_checkpoints(run: Path) -> None:
    """Have the checkpoints that `last` and `best` mean, and these links."""
    for pointer in (run / "checkpoints" / "last", run / "checkpoints" / "best"):
        checkpoint = mirror.fetch_checkpoint(find_checkpoint(pointer))
        if checkpoint != pointer:
            pointer.symlink_to(checkpoint.name)


def remove_weights(folder: Path) -> None:
    """Remove the large files of a run that has ended, here and in its store."""
    if mirror.address_of(folder) is not None:
        store, prefix = place_of(folder)
        keys = [entry.key for entry in store.entries(prefix.rstrip("/"))]
        store.delete([key for key in keys if mirror.is_weights(key.removeprefix(prefix))])
    for path in (*folder.glob("**/checkpoints/*/*"), *folder.glob("best/*")):
        if path.name != "about.json":
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class SweepMoment:
    """When to kill a sweep's driver, or the process of a trial."""

    ended: int
    """Once so many of its trials have ended; of none, once a trial trains."""
    delay_s: float
    of_trial: bool
    is_lost: bool

    def has_come(self, trials: Sequence[RunFolder]) -> bool:
        """Whether that many have ended."""
        statuses = [trial.stored() for trial in trials]
        if self.ended:
            return sum(status.is_final for status in statuses) >= self.ended
        return any(status.step for status in statuses)


def draw_sweep_moments(chance: random.Random) -> list[SweepMoment]:
    """Half of them anywhere, half close to the end of a trial or of the sweep; the later ones later."""
    moments, of_trials = [], 0
    for _ in range(chance.randint(1, MOST_KILLS)):
        ended, longest_s = chance.randint(1, TRIALS), chance.choice((0.0, 0.3, 2.0))
        if chance.random() < 0.5:
            ended, longest_s = 0, SWEEP_S
        of_trial = of_trials < TRIAL_KILLS and ended < TRIALS and chance.random() < 0.4
        of_trials += of_trial
        is_lost = not of_trial and chance.random() < LOST
        moments.append(SweepMoment(ended, chance.uniform(0, longest_s), of_trial, is_lost))
    return sorted(moments, key=lambda moment: moment.ended)


def kill_sweeps(
    bench: Bench, cluster: LocalCluster, record: Record, wanted: int, *, seed: int
) -> list[str]:
    """`kill_runs` of sweeps on a cluster."""
    resources = {"address": cluster.address, "runner": "inline"}
    settings = {**bench.settings, "sweep": SWEEP, "resources": resources}
    experiment = drills.make_experiment(bench.place.output.parent, **settings)
    calm = bench.seen / drills.NAME / sweep_with_kills(experiment, bench, cluster)
    with bench.environment:
        fetch_sweep(calm)
    while record.kills < wanted:
        moments = draw_sweep_moments(random.Random(f"{seed} {record.runs}"))
        try:
            name = sweep_with_kills(
                experiment,
                bench,
                cluster,
                moments,
                on_kill=lambda phase, lost: record.add(killed_in=phase, is_lost=lost),
            )
            wrong = sweep_ends_wrong(bench, name, calm, experiment)
        except (TimeoutError, FileNotFoundError, AssertionError) as error:
            name, wrong = "unknown", [f"{type(error).__name__}: {error}"]
        record.add(run=name, wrong=wrong)
        print(f"{record.kills} kills of {record.runs} sweeps", file=sys.stderr, flush=True)
        if wrong:
            return [f"seed {seed}, sweep {record.runs - 1}, {moments}: {name}", *wrong]
    with bench.environment:
        # what was killed after its end is copied by the next command
        list(repair(bench.seen))
        return drills.tracking_faults(bench.seen, bench.tracking_uri)


def sweep_with_kills(
    experiment: Path,
    bench: Bench,
    cluster: LocalCluster,
    moments: Sequence[SweepMoment] = (),
    *,
    on_kill: Callable[[str, bool], object] = lambda *_: None,
) -> str:
    """Kill at some moments, go on with `--resume` where the driver was killed, to the end; gives the sweep's name.

    Raises:
        TimeoutError: a command hung.
        AssertionError: one ended with another exit code than 0.
    """
    place = bench.place
    known = bench.place.runs()
    sweep: RunFolder | None = None
    command: forked.Command | None = None
    for moment in (*moments, None):
        if command is None:
            resume = ["--resume"] if sweep else []
            arguments = ["sweep", experiment, f"--set=storage={place.storage}", *resume]
            environment = {**cluster.environment, **BUSY, **place.environment}
            command = forked.start(arguments, place.output, environment)
        if moment is None:
            break
        while not command.ended:
            sweep = sweep or drills.find_new(place, known)
            if sweep is not None and moment.has_come(trials_of(sweep)):
                command.process.join(moment.delay_s)
                break
            time.sleep(drills.POLL_S)
        if command.ended:
            break
        processes = trial_processes(cluster)
        if moment.of_trial and processes:
            on_kill(SWEEP_PHASES[-1], False)
            processes[0].kill()
            continue
        on_kill(phase_of(sweep), moment.is_lost)
        command.kill()
        command = None
        if moment.is_lost:
            place.replace_machine()
            name = sweep.path.name if sweep else ""
            sweep = RunFolder(place.folder / drills.NAME / name) if place.has(name) else None
        if sweep is not None and has_concluded(bench, sweep.path.name):
            return sweep.path.name
    assert command is not None
    code = command.wait(SWEEP_LIMIT_S)
    sweep = sweep or drills.find_new(place, known)
    assert sweep is not None
    # one that was killed after its end is refused, and what the store lacked goes there
    is_over = code == 2 and has_concluded(bench, sweep.path.name)
    assert code == 0 or is_over, f"exit code {code}: {command.text()[-3000:]}"
    return sweep.path.name


def has_concluded(bench: Bench, name: str) -> bool:
    """Whether the store has a sweep's end, so that nothing is left to go on with."""
    with bench.environment, contextlib.suppress(FileNotFoundError, ConfigError):
        folder = bench.seen / drills.NAME / name
        pull(folder)
        return is_concluded(RunFolder(folder))
    return False


def trials_of(sweep: RunFolder) -> list[RunFolder]:
    """Those that have begun."""
    return [RunFolder(path.parent) for path in sorted(sweep.path.glob("*-0?/status.json"))]


def phase_of(sweep: RunFolder | None) -> str:
    """Where a driver is."""
    statuses = [] if sweep is None else [trial.stored() for trial in trials_of(sweep)]
    ended = sum(status.is_final for status in statuses)
    if ended == TRIALS:
        return "a sweep's end"
    if any(status.status == "running" for status in statuses):
        return "a trial"
    return "between trials" if ended else "a sweep's start"


def trial_processes(cluster: LocalCluster) -> list[psutil.Process]:
    """Processes that train on a cluster, by the name that Ray gives them."""
    found = []
    for each in cluster.processes(NODE):
        with contextlib.suppress(psutil.Error):
            if each.cmdline()[:1] and each.cmdline()[0].startswith("ray::ImplicitFunc"):
                found.append(each)
    return found


def fetch_sweep(folder: Path) -> None:
    """`fetch_run` of all trials of a sweep, and its best checkpoint."""
    pull(folder)
    for trial in trials_of(RunFolder(folder)):
        fetch_checkpoints(trial.path)
    mirror.fetch_checkpoint(folder / "best")


def sweep_ends_wrong(bench: Bench, name: str, calm: Path, experiment: Path) -> list[str]:
    """Differences of a sweep from the undisturbed one, as another machine sees them; its weights are removed."""
    with bench.environment:
        folder = bench.seen / drills.NAME / name
        fetch_sweep(folder)
        spec = load_sweep(experiment, [])
        tables = [read_table(each, spec).ranked() for each in (folder, calm)]
        rows = [
            [(row.id[-2:], row.status, row.values, row.value, row.step) for row in table]
            for table in tables
        ]
        wrong = [] if rows[0] == rows[1] else [f"the table is {rows[0]}, not {rows[1]}"]
        for trial, other in zip(*(map(trials_of, map(RunFolder, (folder, calm)))), strict=True):
            told = drills.differences(trial.path, other.path)
            # a kill between a trial's end and the removal of old checkpoints leaves those
            kept = {each.name for each in other.path.glob("checkpoints/step-*")}
            if kept.issubset(each.name for each in trial.path.glob("checkpoints/step-*")):
                told = [each for each in told if not each.startswith("folders of checkpoints")]
            wrong += [f"{trial.path.name}: {each}" for each in told]
        if not drills.same_weights(folder / "best", calm / "best"):
            wrong.append("weights of the sweep's best")
        if not (folder / "report" / "index.html").exists():
            wrong.append("no report")
        if not wrong:
            remove_weights(folder)
    return wrong


@contextlib.contextmanager
def cluster_of(bench: Bench, folder: Path) -> Iterator[LocalCluster]:
    """A head and a node that have the store alone in common with drivers."""
    assert isinstance(bench.place, StorePlace)
    variables = bench.place.store.environment | BUSY
    for attempt in range(STARTS):
        with contextlib.ExitStack() as stack:
            place = folder / str(attempt)
            place.mkdir(parents=True)
            try:
                cluster = stack.enter_context(local_cluster(place, mirrors=True, more=variables))
                cluster.add_node(NODE, cpus=2, seconds=START_S)
            except AssertionError as error:
                print(f"Ray did not start: {error}", file=sys.stderr, flush=True)
                continue
            yield cluster
            return
    raise TimeoutError(f"Ray did not start {STARTS} times")


@contextlib.contextmanager
def disk_bench(folder: Path) -> Iterator[Bench]:
    """Runs on this machine's disk."""
    storage = folder / "storage"
    storage.mkdir()
    yield Bench(Place(str(storage), storage, folder / "output.txt"), storage)


@contextlib.contextmanager
def store_bench(folder: Path) -> Iterator[Bench]:
    """Runs in an object store, and their metrics on a server."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    database = f"sqlite:///{folder / 'mlflow.db'}"
    artifacts = folder / "artifacts"
    with (
        object_store() as store,
        mlflow_server(database, port=port, artifacts=artifacts, log=folder / "mlflow.log"),
    ):
        place = StorePlace(store, folder)
        reader = folder / "reader"
        with using(store, reader):
            seen = storage_folder(place.storage)
        # pictures and models would take more time than all else
        train = drills.SETTINGS["train"] | {"panels": 0}
        settings = {"tracking": {"uri": uri, "log_model": False}, "train": train}
        yield Bench(place, seen, Reader(store, reader), settings, LOST, uri)


@dataclass
class Reader(contextlib.AbstractContextManager[None]):
    """Lets this process be the machine that looks at runs while a block runs, one block after the other."""

    store: ObjectStore
    cache: Path

    def __enter__(self) -> None:
        """Forget what was seen before."""
        mirror._looked.clear()
        self._within = using(self.store, self.cache)
        self._within.__enter__()

    def __exit__(self, *error: Any) -> None:
        """Be the usual machine again."""
        self._within.__exit__(*error)


class StorePlace(Place):
    """A storage in an object store, with machines that have nothing in common but that."""

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        """Begin with the first machine; their disks are in `folder`."""
        self.store, self._disks, self._number = store, folder, 0
        super().__init__(f"s3://{BUCKET}/runs", folder, folder / "output.txt")
        self._begin()

    def replace_machine(self) -> None:
        """Lose all that this one has, and begin with another one."""
        shutil.rmtree(self._disk)
        self._number += 1
        self._begin()

    def runs(self) -> set[str]:
        """Those that the machine knows, and all that it may hear of."""
        with using(self.store, self._disk):
            objects, prefix = place_of(self.folder / drills.NAME)
            return super().runs() | set(objects.folders(prefix.rstrip("/")))

    def has(self, run: str) -> bool:
        """Whether the store knows the run."""
        with using(self.store, self._disk):
            objects, prefix = place_of(self.folder / drills.NAME / run)
            return any(
                entry.key == f"{prefix}status.json" for entry in objects.entries(prefix[:-1])
            )

    def _begin(self) -> None:
        self._disk.mkdir()
        self.environment = self.store.environment | {"BOXSEG_CACHE": str(self._disk)}
        with using(self.store, self._disk):
            self.folder = storage_folder(self.storage)

    @property
    def _disk(self) -> Path:
        return self._disks / f"machine-{self._number}"


if __name__ == "__main__":
    sys.exit(main())

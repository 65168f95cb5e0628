"""Kills runs of the real loop many times, goes on with them, and compares each end with that of an undisturbed run.

`python tests/tools/kill_runs.py --kills 200` prints a table of the kills by phase; `--store` keeps the runs in an
object store and the metrics on an MLflow server, and lets a third of the kills take the machine with its disk as well,
so that another one goes on. It stops at the first wrong end or hang and keeps that folder.

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
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import drills
from drills import Place
from faulty_proxy import free_port
from object_store import BUCKET, ObjectStore, object_store, using

from boxseg.engine.checkpoint import find_checkpoint
from orchestration.store import mirror
from orchestration.store.client import place_of
from orchestration.store.places import storage_folder
from orchestration.tracking.server import mlflow_server

LENGTH_S = 6.0
"""Random kills come within so long of a command's start [s]."""
MOST_KILLS = 6
"""Of one run."""
LOST = 1 / 3
"""Share of the kills in which the machine is lost as well, where the runs are in a store."""


def main() -> int:
    """Parse the arguments, kill, print; 1 if a run ended wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", action="store_true")
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that servers end with us
    folder = Path(tempfile.mkdtemp(prefix="boxseg-kills-"))
    record = Record(options.record or folder / "record.jsonl")
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
        rows = [f"| {each} | {phases[each]} | {lost[each]} |" for each in drills.PHASES]
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
    """The folder of a run that nobody disturbs."""
    story = drills.run_with_kills(experiment, bench.place)
    assert story.codes == [0], bench.place.output.read_text()
    with bench.environment:
        return fetch_run(bench.seen / drills.NAME / story.folder.name)


def ends_wrong(bench: Bench, name: str, calm: Path) -> list[str]:
    """In what a run differs from the undisturbed one; its weights are removed, as hundreds of them take gigabytes."""
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
    with mirror.in_hand(folder) as tree:
        tree.pull()
    if not (folder / "status.json").exists():
        raise FileNotFoundError(f"{folder.name} is not in the store")
    for pointer in (folder / "checkpoints" / "last", folder / "checkpoints" / "best"):
        checkpoint = mirror.fetch_checkpoint(find_checkpoint(pointer))
        if checkpoint != pointer:
            pointer.symlink_to(checkpoint.name)
    return folder


def remove_weights(folder: Path) -> None:
    """Remove the large files of a run that has ended, here and in its store."""
    if mirror.address_of(folder) is not None:
        store, prefix = place_of(folder)
        keys = [entry.key for entry in store.entries(prefix.rstrip("/"))]
        store.delete([key for key in keys if mirror.is_weights(key.removeprefix(prefix))])
    for path in folder.glob("checkpoints/*/*"):
        if path.name != "about.json":
            path.unlink(missing_ok=True)


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
        self._store, self._disks, self._number = store, folder, 0
        super().__init__(f"s3://{BUCKET}/runs", folder, folder / "output.txt")
        self._begin()

    def replace_machine(self) -> None:
        """Lose all that this one has, and begin with another one."""
        shutil.rmtree(self._disk)
        self._number += 1
        self._begin()

    def has(self, run: str) -> bool:
        """Whether the store knows the run."""
        with using(self._store, self._disk):
            objects, prefix = place_of(self.folder / drills.NAME / run)
            return any(
                entry.key == f"{prefix}status.json" for entry in objects.entries(prefix[:-1])
            )

    def _begin(self) -> None:
        self._disk.mkdir()
        self.environment = self._store.environment | {"BOXSEG_CACHE": str(self._disk)}
        with using(self._store, self._disk):
            self.folder = storage_folder(self.storage)

    @property
    def _disk(self) -> Path:
        return self._disks / f"machine-{self._number}"


if __name__ == "__main__":
    sys.exit(main())

"""A sweep in an object store: its driver is killed, another machine continues, and a third one reads everything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from drivers import drive, make_values, story, trial_step, undisturbed
from local_cluster import family, kill_together, wait_for
from object_store import KEY, SECRET, ObjectStore, object_store, using

from orchestration.record.journal import newest_sweep
from orchestration.record.run_folder import RunFolder
from orchestration.store import mirror
from orchestration.store.places import storage_folder

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(400)]

STORAGE = "s3://bucket/runs"
SWEEP = {
    "search": "grid",
    "trial_scheduler": "none",
    "concurrency": 1,
    "space": {"qam.iou_thr": {"choice": [0.3, 0.5]}},
}


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as found:
        yield found


def machine(store: ObjectStore, folder: Path) -> Mapping[str, str]:
    """Environment of one; nothing but the store is the same elsewhere."""
    folder.mkdir(exist_ok=True)
    return {**os.environ, **store.environment, "BOXSEG_CACHE": str(folder)}


def boxseg(environment: Mapping[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "orchestration.cli", *arguments, "--storage", STORAGE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_sweep_whose_machine_is_lost_continues_on_another_with_the_same_numbers(store, tmp_path):
    values = make_values(tmp_path / "calm", sweep=SWEEP) | {"storage": STORAGE}
    first, second = machine(store, tmp_path / "first"), machine(store, tmp_path / "second")
    driver = drive(values, environment=first)
    with using(store, tmp_path / "first"):
        folder = storage_folder(STORAGE)
        wait_for(lambda: trial_step(folder, 1) >= 15, what="step 15", driver=driver)
        begun = newest_sweep(folder, "chaos").path.name

    def checkpoints() -> list[int]:
        """Steps of the second trial's checkpoints that are whole in the store."""
        with using(store, tmp_path / "looker"):
            objects = mirror.place_of(storage_folder(STORAGE))[0]
            keys = [each.key for each in objects.entries("")]
        found = [re.search(r"-01/checkpoints/step-(\d+)/about.json$", key) for key in keys]
        return sorted(int(each[1]) for each in found if each)

    wait_for(checkpoints, what="the checkpoint", driver=driver)
    processes = family(driver.pid)
    kill_together(processes)
    driver.wait()
    psutil.wait_procs(processes)  # what trains would send one more
    sent = checkpoints()[-1]
    log = tmp_path / "second.log"
    again = drive(values, environment=second, log=log, start="resume", step_s=0)
    assert again.wait() == 0, log.read_text()
    assert "for a sign of process" in log.read_text(), (
        "it was not known that the first one is dead"
    )

    mirror._looked.clear()
    with using(store, tmp_path / "second"):
        folder = newest_sweep(storage_folder(STORAGE), "chaos").path
        assert folder.name == begun
        assert story(folder) == undisturbed(0.3, 0.5)
        starts = (folder / f"{folder.name}-01/starts").read_text().splitlines()
        assert starts[-1].split()[1] == str(sent), "it went on from its checkpoint"
        ends = [
            line["trial"] for line in RunFolder(folder).journal() if line["event"] == "trial_end"
        ]
        assert len(ends) == len(set(ends)) == 2, "nothing was run twice"

    third = machine(store, tmp_path / "third")
    listed = json.loads(boxseg(third, "runs", "ls", "--json"))
    assert sorted(each["status"] for each in listed) == ["finished"] * 3
    page = boxseg(third, "report", "chaos").strip()
    assert "0.5000" in Path(page).read_text()
    shown = json.loads(boxseg(third, "runs", "show", "best:chaos", "--json"))
    assert shown["values"] == {"qam.iou_thr": 0.5}

    with using(store, tmp_path / "third"):
        objects = mirror.place_of(storage_folder(STORAGE))[0]
        texts = {each.key: objects.read(each.key)[0] for each in objects.entries("")}
    texts |= {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(texts) > 50
    for name, content in texts.items():
        assert KEY.encode() not in content, name
        assert SECRET.encode() not in content, name

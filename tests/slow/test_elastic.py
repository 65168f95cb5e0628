"""Workers of a run leave with notice, those of a trial without; both grow again, and no curve has a gap."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from drivers import drive, make_values, story
from fake_training import HURRY
from local_cluster import LocalCluster, wait_for

from orchestration.record.find_runs import list_runs
from orchestration.record.journal import newest_sweep
from orchestration.record.run_folder import RunFolder

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(600)]

SCRIPT = f"""
import json, os, sys
sys.path.insert(0, {str(Path(__file__).parents[1] / "tools")!r})
from fake_training import make_training
import orchestration.execute.fit
import orchestration.execute.run
from orchestration.config.spec import RunSpec

def make_noted():
    inner = make_training(step_s=0.2)
    def train(config, *, folder, reporter, **others):
        import ray
        import torch
        import torch.distributed as dist
        together = dist.is_initialized()
        if not together or dist.get_rank() == 0:
            (folder / "sizes").open("a").write(f"{{dist.get_world_size() if together else 1}} ")
            (folder / "first").write_text(f"{{ray.get_runtime_context().get_node_id()}} {{os.getpid()}}")
        class Lockstep:
            rank, on_eval, on_best = reporter.rank, reporter.on_eval, reporter.on_best
            stop = torch.zeros(1)
            def on_update(self, step, metrics): pass
            def on_step(self, report):
                reporter.on_step(report)
                self.stop = torch.tensor([float(reporter.should_stop())])
                if together:
                    dist.all_reduce(self.stop)
            def should_stop(self):
                return bool(self.stop)
        return inner(config, folder=folder, reporter=Lockstep(), **others)
    return train

orchestration.execute.fit.RESIZE_S = 5.0
spec = RunSpec.model_validate(json.loads(sys.argv[1]))
orchestration.execute.run.train_run(spec, train_fn=make_noted())
"""


def test_a_run_continues_with_the_workers_that_find_a_place(cluster: LocalCluster):
    values = make_values(
        cluster.storage,
        train={"steps": 100_000, "batch_size": 4, "report_every": 5, "eval_every": 1e-4},
        resources={"address": cluster.address, "workers": 2, "min_workers": 1},
    )
    del values["sweep"]
    command = [sys.executable, "-c", SCRIPT, json.dumps(values)]
    log = cluster.folder / "driver.log"
    environment = cluster.environment | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"}
    driver = subprocess.Popen(command, env=environment, stderr=log.open("wb"))

    def sizes() -> list[str]:
        found = list(cluster.storage.glob("chaos/*/sizes"))
        return found[0].read_text().split() if found else []

    def step() -> int:
        return list_runs(cluster.storage)[0].step

    wait_for(lambda: sizes() == ["2"] and step() >= 20, what="two workers", driver=driver)
    [folder] = [Path(run.folder) for run in list_runs(cluster.storage)]
    node, process = (folder / "first").read_text().split()
    [name] = [
        name
        for name in ("one", "two")
        if int(process) in [each.pid for each in cluster.processes(name)]
    ]
    cluster.announce_end(node)
    wait_for(lambda: RunFolder(folder).stored().retries, what="the saved state", driver=driver)
    cluster.kill(name)
    wait_for(lambda: sizes() == ["2", "1"], what="the one that stays", driver=driver)
    before = step()
    wait_for(lambda: step() >= before + 20, what="its steps", driver=driver)
    cluster.add_node("three")
    wait_for(lambda: sizes() == ["2", "1", "2"], what="two workers again", driver=driver)
    before = step()
    wait_for(lambda: step() >= before + 10, what="their steps", driver=driver)
    driver.terminate()
    assert driver.wait(timeout=100) == 0, log.read_text()
    run = RunFolder(folder).stored()
    assert run.status == "interrupted"
    assert RunFolder(folder).history("train/loss") == [
        (step, 1 / step) for step in range(5, run.step + 1, 5)
    ]
    assert [line.split(":")[1] for line in run.retries] == [" other machines go on from there"]
    saved = int(run.retries[0].split(":")[0].removeprefix("preempted after step "))
    starts = [int(line.split()[1]) for line in (folder / "starts").read_text().splitlines()]
    assert starts[:3] == [0, 0, saved], "nothing is done twice after a notice"


def test_a_trial_shrinks_and_grows_again_and_leaves_the_other_alone(cluster: LocalCluster):
    storage = cluster.storage / "trials"
    cluster.kill_nodes()
    cluster.add_node("stays", cpus=3)
    cluster.add_node("goes")
    values = make_values(
        storage,
        train={"steps": 1200, "batch_size": 4, "report_every": 5, "eval_every": 0.02},
        sweep={
            "search": "grid",
            "trial_scheduler": "none",
            "space": {"qam.iou_thr": {"choice": [0.3, 0.4]}},
        },
        resources={"address": cluster.address, "workers": 2, "min_workers": 1},
    )
    log = cluster.folder / "trials.log"
    driver = drive(values, environment=cluster.environment, log=log, step_s=0.25)

    def workers() -> list[list[int]]:
        trials = [run for run in list_runs(storage) if run.parent is not None]
        # those at work, whose first evaluation tells that all workers are there
        return sorted(run.workers for run in trials if run.best)

    wait_for(lambda: workers() == [[2], [2]], what="two trials", driver=driver)
    cluster.kill("goes")
    wait_for(lambda: workers() == [[2], [2, 1]], what="one worker less", driver=driver)
    cluster.add_node("comes")
    wait_for(lambda: workers() == [[2], [2, 1, 2]], what="its return", driver=driver)
    folder = newest_sweep(storage, "chaos").path
    (folder / HURRY).touch()
    assert driver.wait(timeout=200) == 0, log.read_text()
    told = story(folder)
    assert [end for _, _, end, _ in told] == ["finished"] * 2
    for (_, trial_values, _, (losses, scores)), best in zip(told, (0.3, 0.4), strict=True):
        assert losses == [(step, 1 / step) for step in range(5, 1201, 5)], trial_values
        assert scores[-1] == (1200, best)
    assert "with 2, 1, 2 workers" in (folder / "table.md").read_text()

"""Kills nodes, heads and drivers of a cluster of hosts many times, and compares each end with an undisturbed run's.

`python tests/tools/kill_hosts.py --kills 20 --record FILE` needs what `make cluster-test` needs. Every kill and every
end is a line of the record; started again with the same one, it goes on with what is left.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
from pathlib import Path

from host_cluster import HostCluster, host_cluster
from host_runs import homes_of, outcome, step_of, tiny_sweep, wait_for_job
from kill_runs import Record
from local_cluster import wait_for

STEPS, PERIOD = 60, 10
MOST_KILLS = 3
"""Of one run."""
VICTIMS = ("node", "node", "driver", "head")
"""What is killed, drawn with equal chances."""
KILL_DRIVER = """
import os, pathlib, signal
for each in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    words = each.read_bytes().split(b"\\0")
    if b"orchestration.cli" in words and b"sweep" in words:
        os.kill(int(each.parent.name), signal.SIGKILL)
"""


def main() -> int:
    """Parse the arguments, kill, print; 1 if a run ended wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, required=True)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that hosts end with us
    record = Record(options.record)
    wrong: list[str] = []
    with host_cluster(Path(tempfile.mkdtemp(prefix="boxseg-hosts-"))) as cluster:
        calm = run_with_kills(cluster, "calm", [], record)
        while record.kills < options.kills and not wrong:
            chance = random.Random(f"{options.seed} {record.runs}")
            count = chance.randint(1, MOST_KILLS)
            steps = sorted(chance.sample(range(1, STEPS), count))
            kills = [(step, chance.choice(VICTIMS)) for step in steps]
            name = f"run-{record.runs}"
            found = run_with_kills(cluster, name, kills, record)
            wrong = [] if found == calm else [f"{kills}: {found}, not {calm}"]
            record.add(run=name, wrong=wrong)
            print(f"{record.kills} kills of {record.runs} runs", file=sys.stderr, flush=True)
    print("\n".join([record.table(), *wrong]))
    return int(bool(wrong))


def run_with_kills(
    cluster: HostCluster, name: str, kills: list[tuple[int, str]], record: Record
) -> object:
    """Run a sweep of one trial, with something killed at each of some steps; gives what came out."""
    sweep = tiny_sweep(0.01, steps=STEPS, period=PERIOD)
    sweep["resources"] = {"runner": "inline"}
    job = cluster.submit(name, sweep)
    for step, victim in kills:
        wait_for(
            lambda at=step: step_of(cluster, name) >= at,  # type: ignore[misc]
            what=f"step {step}",
            seconds=600,
        )
        record.add(killed_in=victim, is_lost=victim != "driver")
        if victim == "node":
            home = homes_of(cluster, name)[-1]
            cluster.nodes[home].kill()
            cluster.add_nodes(home)
            continue
        if victim == "head":
            cluster.replace_ray()
        else:
            cluster.head.run(["python", "-c", KILL_DRIVER])
        job = cluster.submit(name, sweep, "--resume")
    wait_for_job(cluster, job, seconds=600)
    return outcome(cluster, name)


if __name__ == "__main__":
    sys.exit(main())

"""Kills runs of the real loop many times, goes on with them, and compares each end with that of an undisturbed run.

`python tests/tools/kill_runs.py --kills 200` prints a table of the kills by phase. It stops at the first wrong end or
hang and keeps that folder; the same `--seed` draws the same moments.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import drills

LENGTH_S = 6.0
"""Random kills come within so long of a command's start [s]."""
MOST_KILLS = 6
"""Of one run."""


def main() -> int:
    """Parse the arguments, kill, print; 1 if a run ended wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="boxseg-kills-"))
    faults = kill_runs(folder, options.kills, seed=options.seed)
    print(
        "\n".join(faults)
        or "no wrong end, no hang, MLflow has every run once and as its folder says"
    )
    if faults:
        print(f"kept in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def kill_runs(folder: Path, wanted: int, *, seed: int) -> list[str]:
    """Kill so often, print what was done, and give all that is wrong with the first run that ends wrong."""
    experiment, storage = drills.make_experiment(folder), folder / "storage"
    storage.mkdir()
    calm = drills.run_with_kills(experiment, storage)
    chance = random.Random(seed)
    kills: Counter[str] = Counter()
    runs, longest_s, began = 0, calm.longest_s, time.monotonic()
    while kills.total() < wanted:
        moments = drills.draw_moments(chance, chance.randint(1, MOST_KILLS), length_s=LENGTH_S)
        try:
            story = drills.run_with_kills(experiment, storage, moments)
        except TimeoutError as error:
            return [f"seed {seed}, {moments}: {error}"]
        wrong = drills.differences(story.folder, calm.folder)
        if set(story.codes) != {0} or wrong:
            return [
                f"seed {seed}, {moments}: {story.folder.name} ended with {story.codes}",
                *wrong,
            ]
        shutil.rmtree(story.folder / "checkpoints")  # hundreds of them take gigabytes
        runs += 1
        kills.update(story.kills)
        longest_s = max(longest_s, story.longest_s)
        print(f"{kills.total()} kills of {runs} runs", file=sys.stderr)
    lines = [
        "| killed in | times |",
        "|---|---|",
        *(f"| {phase} | {kills[phase]} |" for phase in drills.PHASES),
    ]
    lines += [f"| together | {kills.total()}, of {runs} runs |"]
    lines += [f"| longest time of a command that ended by itself [s] | {longest_s:.0f} |"]
    lines += [f"| time of all [s] | {time.monotonic() - began:.0f} |"]
    print("\n".join(lines))
    return drills.tracking_faults(storage)


if __name__ == "__main__":
    sys.exit(main())

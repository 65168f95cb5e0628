"""How long an update takes here, found out by doing a few."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from boxseg.build import build_trainer
from boxseg.config.method import BoxSegConfig
from boxseg.engine.train import optimise

UNMEASURED = 1
"""First updates, which allocate and compile."""
MEASURED = 6
"""The fastest of these counts: other programs on the machine come and go."""
FEWEST = 2
"""Of these there are so many at least: one alone may have met a moment when others had the machine."""
LIMIT_S = 20.0
"""Beyond this no more than these few are measured."""
LATER = 1.25
"""The mean update of a run takes this factor longer: at first the teacher finds no candidates to fuse."""


def time_update(
    config: BoxSegConfig, *, data_root: Path, device: str = "cpu", threads: int = 1
) -> float:
    """Seconds that an update of a run should take, reading included; nothing is written.

    Args:
        config: All settings; the networks begin as those of a run do.
        data_root: Where the generated data set lives, if it is used.
        device: As torch names it.
        threads: CPU threads of torch in this process, from now on.

    Raises:
        DataError: a data set cannot be used.
    """
    torch.set_num_threads(threads)
    trainer = build_trainer(config, data_root=data_root, device=device)
    began = started = time.perf_counter()
    seconds = []
    for step, batch in enumerate(trainer.loader.batches(0, UNMEASURED + MEASURED)):
        float(optimise(trainer, batch, step)["train/loss"])  # waits for the device
        now = time.perf_counter()
        seconds.append(now - started)
        started = now
        if now - began > LIMIT_S and len(seconds) >= UNMEASURED + FEWEST:
            break
    return LATER * min(seconds[UNMEASURED:])

"""Measures how long an update takes on this machine, by doing a few."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from boxseg.build import build_trainer
from boxseg.config.method import BoxSegConfig
from boxseg.engine.train import optimise

UNMEASURED = 1
"""The first updates do not count, as they allocate memory and compile."""
MEASURED = 6
"""Updates that are measured; the fastest counts, because other programs may slow some of them down."""
FEWEST = 2
"""Updates that are measured even where they take long: a single one may have been slowed down."""
LIMIT_S = 20.0
"""After this time, measuring ends with the fewest updates [s]."""
LATER = 1.25
"""The mean update of a whole run takes longer by this factor: at first the teacher finds no candidates to fuse."""


def time_update(
    config: BoxSegConfig, *, data_root: Path, device: str = "cpu", threads: int = 1
) -> float:
    """Seconds that an update of a run should take, reading images included; nothing is written.

    Args:
        config: All settings of the run.
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

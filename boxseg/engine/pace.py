"""Measures how long an update takes on this machine, by doing a few."""

from __future__ import annotations

import time

from boxseg.engine.state import Trainer
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


def time_update(trainer: Trainer) -> float:
    """Seconds that an update of a whole run should take, reading images included; nothing is written.

    Args:
        trainer: Fresh from `boxseg.build`; it has learnt a little afterwards.

    Raises:
        DataError: an image cannot be read.
    """
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

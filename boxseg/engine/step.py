"""One training step, from a batch to its losses: teacher, QAM, copy-paste, student. The page to open first."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from boxseg.copy_paste.paste import paste_peers
from boxseg.engine.distributed import mean_over_ranks, rank
from boxseg.engine.state import Trainer
from boxseg.losses.total import compute_losses
from boxseg.structures import Batch, PseudoMasks
from boxseg.teacher.candidates import find_candidates
from boxseg.teacher.drawn import prefer_drawn
from boxseg.teacher.ema import ema_momentum, update_teacher
from boxseg.teacher.qam import fuse_candidates
from boxseg.teacher.quality import qam_metrics

PASTE_STREAM = 2
"""Keeps the random numbers of copy-paste apart from those of the loader."""


@dataclass(frozen=True)
class StepOutput:
    """What a step gives the loop."""

    loss: Tensor
    """Float scalar with gradient."""
    metrics: dict[str, Tensor]
    """Scalars on the device, by metric name."""


def run_step(trainer: Trainer, batch: Batch, step: int, *, part: int = 0) -> StepOutput:
    """Losses of one batch (on the trainer's device) at `step`; updates the teacher's BatchNorm statistics and the bank.

    `part` numbers the parts of a batch that does not fit in memory at once, so that each draws its own random numbers.

    Source: `docs/method.md#one-step`.
    """
    pseudo_masks: list[PseudoMasks] | None = None
    metrics: dict[str, Tensor] = {}
    if trainer.teacher is not None:
        pseudo_masks = label_batch(trainer, batch)
        metrics |= qam_metrics(pseudo_masks)
    if batch.drawn is not None:
        pseudo_masks = prefer_drawn(batch.drawn, pseudo_masks)
        # from here on, drawn masks are pseudo masks like any other, also for copy-paste
        batch = replace(batch, drawn=None)
    if trainer.bank is not None and pseudo_masks is not None:
        batch, pseudo_masks, paste_metrics = paste_peers(
            batch,
            pseudo_masks,
            trainer.bank,
            step=step,
            settings=trainer.config.pc,
            soft_thr=trainer.soft_thr,
            generator=paste_generator(trainer.config.train.seed, step, part),
        )
        metrics |= paste_metrics
    with trainer.autocast():
        predictions = trainer.forward(batch.strong, batch.valid)
        losses = compute_losses(
            trainer.student,
            predictions,
            batch,
            pseudo_masks,
            step=step,
            boxinst=trainer.config.boxinst,
            loss=trainer.config.loss,
            mean_over_ranks=mean_over_ranks,
        )
    metrics["train/loss"] = losses.total.detach()
    metrics |= {f"train/loss_{name}": term.detach() for name, term in losses.terms.items()}
    return StepOutput(losses.total, metrics)


def label_batch(trainer: Trainer, batch: Batch) -> list[PseudoMasks]:
    """The teacher's pseudo masks for the boxes of the weak images."""
    assert trainer.teacher is not None
    config = trainer.config
    with trainer.autocast():
        candidates = find_candidates(trainer.teacher, batch, config, around_boxes=True)
    # Out of autocast: scores and fusion are float32, whatever the networks compute in.
    return fuse_candidates(config, candidates, batch)


def update_ema(trainer: Trainer, step: int) -> None:
    """Move the teacher towards the student before the forward pass of `step`."""
    ema = trainer.config.ema
    if trainer.teacher is not None and step % ema.interval == 0:
        momentum = ema_momentum(step, momentum=ema.momentum, max_lag=ema.max_lag)
        update_teacher(trainer.teacher, trainer.student, momentum)


def paste_generator(seed: int, step: int, part: int = 0) -> torch.Generator:
    """Random numbers of copy-paste for one step of this process, or one part of its batch."""
    # Part 0 draws what a batch in one part would.
    numbers = [seed, PASTE_STREAM, step, rank(), *([part] if part else [])]
    # `SeedSequence` mixes them, so that neighbouring steps and ranks draw unrelated numbers.
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)  # 63 bits: torch takes signed numbers

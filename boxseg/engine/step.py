"""One training step, from a batch to its losses: teacher, QAM, copy-paste, student. The page to open first."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from boxseg.config.method import BoxSegConfig
from boxseg.copy_paste.bank import Bank
from boxseg.copy_paste.paste import paste_peers
from boxseg.data.dataset import CocoBoxes
from boxseg.data.loader import TrainLoader
from boxseg.engine.distributed import mean_over_ranks, rank
from boxseg.losses.total import compute_losses
from boxseg.ops.neighbours import rgb_to_lab
from boxseg.structures import MASK_STRIDE, Batch, Candidates, MaskNetwork, PseudoMasks
from boxseg.teacher.candidates import find_candidates
from boxseg.teacher.drawn import prefer_drawn
from boxseg.teacher.ema import ema_momentum, update_teacher
from boxseg.teacher.qam import make_pseudo_masks
from boxseg.teacher.quality import qam_metrics

PASTE_STREAM = 2
"""Keeps the numbers of copy-paste apart from those of the loader."""


@dataclass
class Trainer:
    """The state of a run and what its steps need; made by `boxseg.build.build_trainer`.

    The state is student, teacher, optimizer and bank, all in the checkpoint. The step number is an
    argument, and the loop's random numbers are a function of seed, step and rank.
    """

    config: BoxSegConfig
    """All settings, warm-ups in steps."""
    student: MaskNetwork
    forward: nn.Module
    """The student, wrapped for data-parallel training where there are several processes."""
    teacher: MaskNetwork | None
    optimizer: Optimizer
    bank: Bank | None
    loader: TrainLoader
    train_data: CocoBoxes
    val_data: CocoBoxes
    eval_size: int
    """Short side at evaluation [px]."""
    device: torch.device

    @property
    def steps(self) -> int:
        """Optimizer updates of the whole run."""
        return self.config.train.steps

    @property
    def soft_thr(self) -> float:
        """Threshold of `PseudoMasks.soft`."""
        by_vote = self.config.qam.fusion == "vote" and not self.config.teacher.with_nms
        return self.config.qam.vote_thr if by_vote else self.config.qam.mask_thr

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 where `train.precision` asks for it, or leaves it open on a GPU that has it."""
        precision = self.config.train.precision
        wanted = precision == "bf16"
        if precision == "auto" and self.device.type == "cuda":
            wanted = torch.cuda.is_bf16_supported()
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=wanted)

    def networks(self) -> dict[str, MaskNetwork]:
        """`student`, and `teacher` where there is one."""
        return {"student": self.student} | ({} if self.teacher is None else {"teacher": self.teacher})

    def evaluated_networks(self) -> dict[str, MaskNetwork]:
        """The networks that `train.evaluate` names; the student where there is no teacher."""
        networks, wanted = self.networks(), self.config.train.evaluate
        return networks if wanted == "both" or wanted not in networks else {wanted: networks[wanted]}

    def rank_state(self) -> dict[str, Any]:
        """State of this process alone, which others do not have: its bank and torch's global random generators."""
        state: dict[str, Any] = {"rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        if self.bank is not None:
            state["bank"] = self.bank.state_dict()
        return state

    def shared_state(self) -> dict[str, Any]:
        """State besides the networks that all processes share."""
        return {"optimizer": self.optimizer.state_dict()}

    def load(self, networks: dict[str, dict[str, Tensor]], shared: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
        """Take over saved state; a process that had no counterpart starts with an empty bank."""
        for name, network in self.networks().items():
            network.load_state_dict(networks[name])
        self.optimizer.load_state_dict(shared["optimizer"])
        if rank() < len(ranks):
            own = ranks[rank()]
            torch.set_rng_state(own["rng"])
            if self.device.type == "cuda" and "cuda_rng" in own:
                torch.cuda.set_rng_state(own["cuda_rng"], self.device)
            if self.bank is not None:
                self.bank.load_state_dict(own["bank"])


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
        batch = replace(batch, drawn=None)  # from here on they are pseudo masks like any other, also for copy-paste
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
        candidates = find_candidates(
            trainer.teacher, batch, teacher=config.teacher, qam=config.qam, fcos=config.fcos, around_boxes=True
        )
    return fuse_candidates(config, candidates, batch)


def fuse_candidates(config: BoxSegConfig, candidates: list[Candidates], batch: Batch) -> list[PseudoMasks]:
    """QAM for every image of a batch."""
    qam, with_nms = config.qam, config.teacher.with_nms
    colors: Tensor | list[None] = [None] * len(batch)
    if qam.color_weight:
        colors = rgb_to_lab(F.avg_pool2d(batch.weak.float(), MASK_STRIDE))  # (B, 3, H/4, W/4)
    return [
        make_pseudo_masks(of_image, boxes, settings=qam, with_nms=with_nms, lab=lab)
        for of_image, boxes, lab in zip(candidates, batch.boxes, colors, strict=True)
    ]


def update_ema(trainer: Trainer, step: int) -> None:
    """Move the teacher towards the student before the forward pass of `step`."""
    ema = trainer.config.ema
    if trainer.teacher is not None and step % ema.interval == 0:
        momentum = ema_momentum(step, momentum=ema.momentum, max_lag=ema.max_lag)
        update_teacher(trainer.teacher, trainer.student, momentum)


def paste_generator(seed: int, step: int, part: int = 0) -> torch.Generator:
    """Random numbers of copy-paste for one step of this process, or one part of its batch."""
    numbers = [seed, PASTE_STREAM, step, rank(), *([part] if part else [])]
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)  # 63 bits: torch takes signed numbers

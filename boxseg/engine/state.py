"""The state of a run: networks, optimizer and bank, with the data and settings that its steps need."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from boxseg.config.method import BoxSegConfig
from boxseg.copy_paste.bank import Bank
from boxseg.data.dataset import CocoBoxes
from boxseg.data.loader import TrainLoader
from boxseg.engine.distributed import rank
from boxseg.structures import MaskNetwork


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
    device: torch.device

    @property
    def steps(self) -> int:
        """Optimizer updates of the whole run."""
        return self.config.train.steps

    @property
    def soft_thr(self) -> float:
        """Threshold of `PseudoMasks.soft`."""
        qam = self.config.qam
        # With one detection per box, `soft` is its probability map, not a share of votes.
        return qam.mask_thr if self.config.teacher.with_nms else qam.fused_thr

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 if `train.precision` asks for it, or if it is `auto` and the GPU supports it."""
        precision = self.config.train.precision
        wanted = precision == "bf16"
        if precision == "auto" and self.device.type == "cuda":
            wanted = torch.cuda.is_bf16_supported()
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=wanted)

    def networks(self) -> dict[str, MaskNetwork]:
        """`student`, and `teacher` where there is one."""
        networks = {"student": self.student}
        return networks if self.teacher is None else networks | {"teacher": self.teacher}

    def evaluated_networks(self) -> dict[str, MaskNetwork]:
        """The networks that `train.evaluate` names; the student where there is no teacher."""
        networks, wanted = self.networks(), self.config.train.evaluate
        return {wanted: networks[wanted]} if wanted in networks else networks

    def rank_state(self) -> dict[str, Any]:
        """State of this process alone, which others do not have: its bank and torch's global random generators."""
        state: dict[str, Any] = {"rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        if self.bank is not None:
            state["bank"] = self.bank.state_dict()
        return state

    def load(
        self,
        networks: dict[str, dict[str, Tensor]],
        shared: dict[str, Any],
        ranks: list[dict[str, Any]],
    ) -> None:
        """Take over saved state; a process beyond the number that saved it starts with an empty bank."""
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

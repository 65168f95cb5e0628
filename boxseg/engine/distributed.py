"""Rank, world size and the few collective operations that training needs; all are no-ops in a single process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_distributed() -> bool:
    """Whether a process group with more than one process exists."""
    # In builds of torch without `distributed` the other two functions are missing.
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Index of this process, 0 … world_size - 1."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of training processes."""
    return dist.get_world_size() if is_distributed() else 1


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a tensor over all processes, without gradient; the argument is left unchanged."""
    if not is_distributed():
        return value.detach()
    # `all_reduce` adds up in place.
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def gather_objects(value: Any) -> list[Any]:
    """One picklable object from every process, in rank order; the full list on every process."""
    if not is_distributed():
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


@torch.no_grad()
def average_buffers(network: nn.Module) -> None:
    """Give all processes the mean of the network's floating-point buffers (BatchNorm statistics).

    Every process gathers statistics from its own images only; before an evaluation or a checkpoint they must agree.
    """
    if not is_distributed():
        return
    for buffer in network.buffers():
        # The integer ones count batches, and are equal on all ranks.
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= world_size()

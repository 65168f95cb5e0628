"""The teacher's weights: a moving average of the student's."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher's parameters towards the student's: teacher <- m * teacher + (1 - m) * student.

    Buffers are left alone: the teacher's BatchNorm statistics come from its own forward passes.

    Args:
        teacher: Changed in place.
        student: Same architecture; unchanged.
        momentum: m in [0, 1]; 0 copies the student.

    Source: `docs/method.md#teacher`.
    """
    targets: list[Tensor] = list(teacher.parameters())
    sources: list[Tensor] = [parameter.detach() for parameter in student.parameters()]
    # One call for all parameters, which are many and mostly small: teacher + (1 - m) (student - teacher).
    torch._foreach_lerp_(targets, sources, 1.0 - momentum)


def ema_momentum(step: int, *, momentum: float = 0.999, max_lag: float | None = None) -> float:
    """Momentum before the forward pass of a step; a pure function of the step.

    The running mean of all students so far until its momentum reaches `momentum`. With `max_lag` the averaging
    window 1 / (1 - m) is at most that share of the steps so far, so that the teacher forgets early students.

    Args:
        step: Steps done so far, from 0.
        momentum: Upper limit, in [0, 1).
        max_lag: Share of the steps so far in (0, 1]; None or 1: the running mean.

    Returns:
        m in [0, momentum]; 0 at step 0, where the teacher becomes the student.

    Source: `docs/method.md#teacher`.

    >>> [ema_momentum(step) for step in (0, 1, 3, 1_000_000)]
    [0.0, 0.5, 0.75, 0.999]
    """
    running_mean = 1.0 - 1.0 / (step + 1)
    if max_lag is not None:
        running_mean = min(running_mean, 1.0 - 1.0 / max(1.0, max_lag * (step + 1)))
    return min(momentum, running_mean)

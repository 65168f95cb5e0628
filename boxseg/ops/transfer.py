"""Sends small numbers to a device without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def tensor_on(
    device: torch.device, values: Sequence[Any], *, dtype: torch.dtype | None = None
) -> Tensor:
    """`torch.tensor(values)` on a device.

    `torch.tensor(values, device=...)` would wait until a GPU has finished all work that was queued before.
    """
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

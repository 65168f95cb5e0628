"""The IoU to expect of masks that nobody has drawn, from their qualities; needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

BOX_SPREAD = 0.11
"""Standard deviation, within a data set, of the IoU of masks around their quality."""
SET_SPREAD = 0.04
"""Standard deviation, between data sets, of the difference between mean quality and mean IoU: 0.013 on four sets of
photographs and nuclei with weights fitted to the other three (see `boxseg.label.quality`), 0.042 on sixteen kinds of
generated pictures that nothing was fitted to (`python -m benchmarks --only domains`); 0.038 over all twenty."""
NORMAL_90 = 1.645
"""Nine of ten draws of a normal distribution lie within this number of standard deviations."""


@dataclass(frozen=True)
class ExpectedIou:
    """Expected mean IoU of masks, with its 90 % interval, which is as good as the two spreads above."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f})"


def expect_mean_iou(qualities: Sequence[float]) -> ExpectedIou | None:
    """Mean IoU to expect of masks with these qualities, which are expected IoUs; None without masks."""
    if not qualities:
        return None
    mean = sum(qualities) / len(qualities)
    reach = NORMAL_90 * math.sqrt(SET_SPREAD**2 + BOX_SPREAD**2 / len(qualities))
    bounds = (mean, mean - reach, mean + reach)
    ends = (round(min(max(value, 0.0), 1.0), 4) for value in bounds)
    return ExpectedIou(*ends)

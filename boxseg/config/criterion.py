"""What makes one evaluation better than another: a metric and its direction, the same wherever something is best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Mode = Literal["max", "min"]
BEST_SCORE = "val/best_score"
"""Metric of the score from which on detections are right and complete most often."""
MIN_SCORE = 0.3
"""Least score of detections that are shown, where no evaluation knows a better one."""


def least_score(metrics: Mapping[str, float]) -> float:
    """Least score of the detections that `boxseg predict` and the served model give by default.

    Args:
        metrics: Of the checkpoint's evaluation.
    """
    return metrics.get(BEST_SCORE, MIN_SCORE)


@dataclass(frozen=True)
class Criterion:
    """A metric and the direction in which it gets better.

    A metric that is absent or not finite counts as no value, and an evaluation without a value never wins.
    """

    metric: str
    """Its name, as in `val/mask_ap`."""
    mode: Mode = "max"
    """Whether a larger or a smaller value is better."""
    fallback: str | None = None
    """Metric that decides between evaluations that both lack `metric`."""

    def value(self, metrics: Mapping[str, float]) -> float | None:
        """The value that decides; None where there is none."""
        return _finite(metrics.get(self._decides(metrics)))

    def score(self, value: float | None) -> float:
        """The value turned so that larger is better, whatever the mode; -inf without a value."""
        value = _finite(value)
        if value is None:
            return -math.inf
        return value if self.mode == "max" else -value

    def best(self, values: Iterable[float | None]) -> float | None:
        """The best of some values; None where there is none."""
        return max(map(_finite, values), key=self.score, default=None)

    def value_or_worst(self, value: float | None) -> float:
        """The value for a trial scheduler, which needs a number: without a value, one that is worse than all."""
        if value is not None:
            return value
        return -1e9 if self.mode == "max" else 1e9

    def better(self, metrics: Mapping[str, float], *, than: Mapping[str, float]) -> bool:
        """Whether one evaluation beats another, which may be empty; equal ones do not beat each other."""
        name = self._decides({**than, **metrics})
        return self.score(metrics.get(name)) > self.score(than.get(name))

    def _decides(self, metrics: Mapping[str, float]) -> str:
        return self.metric if self.fallback is None or self.metric in metrics else self.fallback


MASK_AP = Criterion("val/mask_ap", fallback="val/box_ap")
"""Of a single run: mask AP, or box AP where masks are not drawn."""


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

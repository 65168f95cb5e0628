"""The domains of a sweep: how the values of a setting are written, and which values stand for all of them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

from pydantic import Discriminator, Field, Tag, field_validator

from boxseg.config import Config


class Uniform(Config):
    """Real numbers, evenly likely."""

    uniform: tuple[float, float]

    @field_validator("uniform")
    @classmethod
    def _check_order(cls, ends: tuple[float, float]) -> tuple[float, float]:
        return _ascending(ends)


class LogUniform(Config):
    """Positive real numbers, evenly likely on a logarithmic scale."""

    loguniform: tuple[float, float]

    @field_validator("loguniform")
    @classmethod
    def _check_order(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if ends[0] <= 0:
            raise ValueError(f"starts at {ends[0]:g}; a logarithmic scale needs positive numbers")
        return _ascending(ends)


class RandInt(Config):
    """Whole numbers from the first up to, not including, the second."""

    randint: tuple[int, int]

    @field_validator("randint")
    @classmethod
    def _check_order(cls, ends: tuple[int, int]) -> tuple[int, int]:
        return _ascending(ends)


class Choice(Config):
    """One of the listed values; the only kind that `grid` accepts."""

    choice: Annotated[list[Any], Field(min_length=1)]


Ends = TypeVar("Ends", tuple[float, float], tuple[int, int])


def _ascending(ends: Ends) -> Ends:
    if ends[0] >= ends[1]:
        raise ValueError(f"runs from {ends[0]:g} to {ends[1]:g}; the second number must be larger")
    return ends


def domain_kind(value: Any) -> str | None:
    """`uniform`, `loguniform`, `randint` or `choice`, or whatever one key stands there; None for anything else."""
    if isinstance(value, Config):
        return next(iter(type(value).model_fields))
    return next(iter(value)) if isinstance(value, dict) and len(value) == 1 else None


AnyDomain = Uniform | LogUniform | RandInt | Choice
Domain = Annotated[
    Annotated[Uniform, Tag("uniform")]
    | Annotated[LogUniform, Tag("loguniform")]
    | Annotated[RandInt, Tag("randint")]
    | Annotated[Choice, Tag("choice")],
    Discriminator(
        domain_kind,
        custom_error_type="domain",
        custom_error_message="one of {uniform: [low, high]}, {loguniform: [low, high]}, {randint: [low, high]}, "
        "{choice: [a, b, …]}",
    ),
]


def probe_values(domain: AnyDomain) -> list[Any]:
    """Values that stand for the domain: all choices, both ends, and a number in between that is not whole."""
    match domain:
        case Choice(choice=values):
            return values
        case RandInt(randint=(low, high)):
            return [low, high - 1]
        case Uniform(uniform=(low, high)) | LogUniform(loguniform=(low, high)):
            return [low, high, low + (high - low) / math.pi]


def corners(space: dict[str, AnyDomain], limit: int = 128) -> Iterator[dict[str, Any]]:
    """Combinations of probe values: all of them, or a fixed sample of `limit`."""
    probes = [probe_values(domain) for domain in space.values()]
    if math.prod(len(values) for values in probes) <= limit:
        combinations: Any = itertools.product(*probes)
    else:
        draw = random.Random(0)
        combinations = ([draw.choice(values) for values in probes] for _ in range(limit))
    return (dict(zip(space, values, strict=True)) for values in combinations)

"""The domains of a sweep: how the values of a setting are written, and which values stand for all of them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator

from boxseg.config.method import Config

Number = TypeVar("Number", int, float)


def _ascending(ends: tuple[Number, Number]) -> tuple[Number, Number]:
    if ends[0] >= ends[1]:
        raise ValueError(f"runs from {ends[0]:g} to {ends[1]:g}; the second number must be larger")
    return ends


Ends = Annotated[tuple[Number, Number], AfterValidator(_ascending)]


class Uniform(Config):
    """Real numbers, evenly likely."""

    uniform: Ends[float]


class LogUniform(Config):
    """Positive real numbers, evenly likely on a logarithmic scale."""

    loguniform: Ends[float]

    @field_validator("loguniform")
    @classmethod
    def _check_positive(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if ends[0] <= 0:
            raise ValueError(f"starts at {ends[0]:g}; a logarithmic scale needs positive numbers")
        return ends


class RandInt(Config):
    """Whole numbers from the first up to, not including, the second."""

    randint: Ends[int]


class Choice(Config):
    """One of the listed values; the only kind that `grid` accepts."""

    choice: Annotated[list[Any], Field(min_length=1, max_length=1000)]


def domain_kind(value: Any) -> str | None:
    """`uniform`, `loguniform`, `randint` or `choice`, or whatever one key stands there; None for anything else."""
    if isinstance(value, Config):
        return next(iter(type(value).model_fields))
    if isinstance(value, dict) and len(value) == 1:
        return next(iter(value))
    return None


AnyDomain = Uniform | LogUniform | RandInt | Choice
Domain = Annotated[
    Annotated[Uniform, Tag("uniform")]
    | Annotated[LogUniform, Tag("loguniform")]
    | Annotated[RandInt, Tag("randint")]
    | Annotated[Choice, Tag("choice")],
    Discriminator(
        domain_kind,
        custom_error_type="domain",
        custom_error_message="one of {uniform: [low, high]}, {loguniform: [low, high]}, "
        "{randint: [low, high]}, {choice: [a, b, …]}",
    ),
]


def samples(space: dict[str, AnyDomain], limit: int = 128) -> Iterator[dict[str, Any]]:
    """Trials that stand for the space: all combinations of its corners, or each corner once and a fixed sample."""
    ends = [corners(domain) for domain in space.values()]
    if math.prod(len(values) for values in ends) <= limit:
        for combination in itertools.product(*ends):
            yield dict(zip(space, combination, strict=True))
        return
    longest = max(len(values) for values in ends)
    for number in range(longest):  # each corner at least once
        values = [corner[number % len(corner)] for corner in ends]
        yield dict(zip(space, values, strict=True))
    draw = random.Random(0)
    for _ in range(limit):
        yield dict(zip(space, [draw.choice(corner) for corner in ends], strict=True))


def holds(domain: AnyDomain, value: Any) -> bool:
    """Whether a value can have been drawn from a domain."""
    match domain:
        case Choice(choice=values):
            return value in values
        case RandInt(randint=(low, high)):
            return isinstance(value, int) and low <= value < high
        case Uniform(uniform=(low, high)) | LogUniform(loguniform=(low, high)):
            return isinstance(value, int | float) and low <= value <= high


def corners(domain: AnyDomain) -> list[Any]:
    """All choices; else both ends, and of real numbers one in between that is not whole."""
    match domain:
        case Choice(choice=values):
            return values
        case RandInt(randint=(low, high)):
            return [low, high - 1]
        case Uniform(uniform=(low, high)) | LogUniform(loguniform=(low, high)):
            return [low, high, low + (high - low) / math.pi]

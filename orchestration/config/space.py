"""The domains of a sweep: how the values of a setting are written, and which values stand for all of them."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Discriminator, Field, Tag

from boxseg.config.method import Config

Number = TypeVar("Number", int, float)
MAX_STEPS = 10_000
"""A range of more steps is as good as one without."""


def _ascending(ends: tuple[Number, Number]) -> tuple[Number, Number]:
    if ends[0] >= ends[1]:
        raise ValueError(f"runs from {ends[0]:g} to {ends[1]:g}; the second number must be larger")
    return ends


def _positive(ends: tuple[Number, Number]) -> tuple[Number, Number]:
    if ends[0] <= 0:
        raise ValueError(f"starts at {ends[0]:g}; a logarithmic scale needs positive numbers")
    return ends


def _in_steps(range_: tuple[Number, Number, Number]) -> tuple[Number, Number, Number]:
    low, high, step = range_
    _ascending((low, high))
    if not 0 < step <= high - low:
        raise ValueError(
            f"goes from {low:g} to {high:g} in steps of {step:g}; a step must be above 0 and fit in between"
        )
    if (high - low) / step > MAX_STEPS:
        raise ValueError(
            f"has {(high - low) / step + 1:.3g} values; {MAX_STEPS} are the most, so take larger steps, or uniform or "
            "randint"
        )
    return range_


Ends = Annotated[tuple[Number, Number], AfterValidator(_ascending)]


class Uniform(Config):
    """Real numbers, evenly likely."""

    uniform: Ends[float]


class LogUniform(Config):
    """Positive real numbers, evenly likely on a logarithmic scale."""

    loguniform: Annotated[Ends[float], AfterValidator(_positive)]


class QUniform(Config):
    """Real numbers from the first up to the second, in steps of the third; the last step may not reach the end."""

    quniform: Annotated[tuple[float, float, float], AfterValidator(_in_steps)]


class RandInt(Config):
    """Whole numbers from the first up to, not including, the second."""

    randint: Ends[int]


class LogRandInt(Config):
    """Positive whole numbers up to, not including, the second, evenly likely on a logarithmic scale."""

    lograndint: Annotated[Ends[int], AfterValidator(_positive)]


class QRandInt(Config):
    """Whole numbers from the first up to the second, in steps of the third; the last step may not reach the end."""

    qrandint: Annotated[tuple[int, int, int], AfterValidator(_in_steps)]


def _each_once(values: list[Any]) -> list[Any]:
    seen = set()
    for value in values:
        # as JSON, where lists can be compared and true is not 1
        text = json.dumps(value, sort_keys=True, default=str)
        if text in seen:
            raise ValueError(f"repeats {text}; the same trial again tells nothing new")
        seen.add(text)
    return values


class Choice(Config):
    """One of the listed values; the only kind that `grid` accepts."""

    choice: Annotated[list[Any], Field(min_length=1, max_length=1000), AfterValidator(_each_once)]


def domain_kind(value: Any) -> str | None:
    """`uniform`, `choice` and so on, or whatever one key stands there; None for anything else."""
    if isinstance(value, Config):
        return next(iter(type(value).model_fields))
    if isinstance(value, dict) and len(value) == 1:
        return next(iter(value))
    return None


AnyDomain = Uniform | LogUniform | QUniform | RandInt | LogRandInt | QRandInt | Choice
# with tags, pydantic tells what is wrong with one kind, and not with all seven
Domain = Annotated[
    Annotated[Uniform, Tag("uniform")]
    | Annotated[LogUniform, Tag("loguniform")]
    | Annotated[QUniform, Tag("quniform")]
    | Annotated[RandInt, Tag("randint")]
    | Annotated[LogRandInt, Tag("lograndint")]
    | Annotated[QRandInt, Tag("qrandint")]
    | Annotated[Choice, Tag("choice")],
    Discriminator(
        domain_kind,
        custom_error_type="domain",
        custom_error_message="one of {uniform: [low, high]}, {loguniform: [low, high]}, {quniform: [low, high, step]}, "
        "{randint: [low, high]}, {lograndint: [low, high]}, {qrandint: [low, high, step]}, {choice: [a, b, …]}",
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
    # always the same, so that a file is refused each time or never
    draw = random.Random(0)
    for _ in range(limit):
        yield dict(zip(space, [draw.choice(corner) for corner in ends], strict=True))


def values_of(domain: AnyDomain) -> Sequence[Any] | None:
    """All values of a domain; None for real numbers, of which there is no end."""
    match domain:
        case Choice(choice=values):
            return values
        case RandInt(randint=(low, high)) | LogRandInt(lograndint=(low, high)):
            # no list, as there can be millions
            return range(low, high)
        case QRandInt() | QUniform():
            return stepped_values(domain)
    return None


def count_settings(space: dict[str, AnyDomain]) -> int | None:
    """How many different settings a space has; None where there is no end of them, or nothing varies."""
    lengths = []
    for domain in space.values():
        values = values_of(domain)
        if values is None:
            return None
        lengths.append(len(values))
    return math.prod(lengths) if lengths else None


def settings_of(space: dict[str, AnyDomain]) -> Iterator[dict[str, Any]]:
    """All settings of a space that `count_settings` counts, one after the other; the last name varies quickest."""
    if not space:
        yield {}
        return
    *others, last = space
    values = values_of(space[last])
    assert values is not None
    for setting in settings_of({name: space[name] for name in others}):
        for value in values:
            yield {**setting, last: value}


def holds(domain: AnyDomain, value: Any) -> bool:
    """Whether a value can have been drawn from a domain."""
    match domain:
        case Choice(choice=values):
            return any(is_same(value, other) for other in values)
        case RandInt(randint=(low, high)) | LogRandInt(lograndint=(low, high)):
            return isinstance(value, int) and not isinstance(value, bool) and low <= value < high
        case QRandInt() | QUniform():
            return any(is_same(value, other) for other in stepped_values(domain))
        case Uniform(uniform=(low, high)) | LogUniform(loguniform=(low, high)):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            return is_number and low <= value <= high


def is_setting_of(space: dict[str, AnyDomain], values: dict[str, Any]) -> bool:
    """Whether a space can give these values of its settings."""
    if values.keys() != space.keys():
        return False
    return all(holds(domain, values[name]) for name, domain in space.items())


def drawn_value(domain: AnyDomain, value: Any) -> Any:
    """A value that a domain holds as it would be drawn from there: of 9.0 and 9 the one that is listed."""
    match domain:
        case Choice(choice=values):
            return next(other for other in values if is_same(value, other))
        case QRandInt() | QUniform():
            return next(other for other in stepped_values(domain) if is_same(value, other))
        case Uniform() | LogUniform():
            return float(value)
    return value


def drawn_setting(space: dict[str, AnyDomain], values: dict[str, Any]) -> dict[str, Any]:
    """Values that a space can give, as they would be drawn from there."""
    return {name: drawn_value(domain, values[name]) for name, domain in space.items()}


def is_same(one: Any, other: Any) -> bool:
    """Whether two values are one setting; to Python `true` is 1 as well."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def corners(domain: AnyDomain) -> list[Any]:
    """All choices; else both ends, and of real numbers one in between that is not whole."""
    match domain:
        case Choice(choice=values):
            return values
        case RandInt(randint=(low, high)) | LogRandInt(lograndint=(low, high)):
            return [low, high - 1]
        case QRandInt() | QUniform():
            values = stepped_values(domain)
            return [values[0], values[1], values[-1]]
        case Uniform(uniform=(low, high)) | LogUniform(loguniform=(low, high)):
            # divided by pi, so that it is not whole, whatever the ends
            return [low, high, low + (high - low) / math.pi]


def stepped_values(domain: QUniform | QRandInt) -> list[Any]:
    """All values of a range with steps, rising."""
    if isinstance(domain, QRandInt):
        low, high, step = domain.qrandint
        return list(range(low, high + 1, step))
    # In decimals, as people write them: 0.1 + 2 * 0.1 is 0.3 and not 0.30000000000000004.
    start, end, stride = (Decimal(str(number)) for number in domain.quniform)
    return [float(start + number * stride) for number in range(int((end - start) / stride) + 1)]


def is_logarithmic(domain: AnyDomain | None) -> bool:
    """Whether values are evenly likely on a logarithmic scale."""
    return isinstance(domain, LogUniform | LogRandInt)

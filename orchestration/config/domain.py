"""The domains of a sweep's settings: how they are written, what they hold, and which values stand for all of them."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
)

from boxseg.config.method import Config

Number = TypeVar("Number", int, float)
MAX_STEPS = 10_000
"""A range of more steps is refused: it is as good as one without steps."""


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
            f"has {(high - low) / step + 1:.3g} values; at most {MAX_STEPS} are allowed, so take larger steps, or "
            "uniform or randint"
        )
    return range_


Ends = Annotated[tuple[Number, Number], AfterValidator(_ascending)]


def _listed(when: Any) -> Any:
    """Conditions with a list for each setting, as `method: qam` stands for `method: [qam]`."""
    if not isinstance(when, dict):
        return when
    return {name: value if isinstance(value, list) else [value] for name, value in when.items()}


class Conditional(Config):
    """A domain that can depend on other settings."""

    when: Annotated[
        dict[str, Annotated[list[Any], Field(min_length=1)]], BeforeValidator(_listed)
    ] = Field(default_factory=dict)
    """Setting that stands above it in the space -> values of it with which this one varies; empty: with all."""

    @model_serializer(mode="wrap")
    def _leave_out_empty(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As it was written: most domains have no conditions."""
        values: dict[str, Any] = write(self)
        return {name: value for name, value in values.items() if name != "when" or value}


class Uniform(Conditional):
    """Real numbers, evenly likely."""

    uniform: Ends[float]


class LogUniform(Conditional):
    """Positive real numbers, evenly likely on a logarithmic scale."""

    loguniform: Annotated[Ends[float], AfterValidator(_positive)]


class QUniform(Conditional):
    """Real numbers from the first up to the second, in steps of the third; the last step may not reach the end."""

    quniform: Annotated[tuple[float, float, float], AfterValidator(_in_steps)]


class RandInt(Conditional):
    """Whole numbers from the first up to, not including, the second."""

    randint: Ends[int]


class LogRandInt(Conditional):
    """Positive whole numbers up to, not including, the second, evenly likely on a logarithmic scale."""

    lograndint: Annotated[Ends[int], AfterValidator(_positive)]


class QRandInt(Conditional):
    """Whole numbers from the first up to the second, in steps of the third; the last step may not reach the end."""

    qrandint: Annotated[tuple[int, int, int], AfterValidator(_in_steps)]


def _each_once(values: list[Any]) -> list[Any]:
    seen = set()
    for value in values:
        # as JSON, where lists can be compared and true is not 1; 5.0 is 5 there too
        text = json.dumps(value, sort_keys=True, default=str)
        alike = str(json.loads(text, parse_int=float))
        if alike in seen:
            raise ValueError(f"repeats {text}; the same trial again tells nothing new")
        seen.add(alike)
    return values


class Choice(Conditional):
    """One of the listed values; with `together`, the only kind that `grid` accepts."""

    choice: Annotated[list[Any], Field(min_length=1, max_length=1000), AfterValidator(_each_once)]


def _same_names(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for group in groups:
        if not group or group.keys() != groups[0].keys():
            raise ValueError(
                f"one group has {', '.join(group) or 'nothing'}, the first has {', '.join(groups[0]) or 'nothing'}; "
                "each needs the same settings"
            )
    return groups


class Together(Conditional):
    """One of the listed groups of settings, which move together; its own name in the space is free."""

    together: Annotated[
        list[dict[str, Any]],
        Field(min_length=1, max_length=1000),
        AfterValidator(_each_once),
        AfterValidator(_same_names),
    ]


def domain_kind(value: Any) -> str | None:
    """`uniform`, `choice` and so on, or the only key that stands there; None for anything else."""
    names: list[str] = []
    if isinstance(value, Config):
        names = list(type(value).model_fields)
    elif isinstance(value, dict):
        names = list(value)
    kinds = [name for name in names if name != "when"]
    return kinds[0] if len(kinds) == 1 else None


# with tags, pydantic explains the kind that was meant, and not all eight
Domain = Annotated[
    Annotated[Uniform, Tag("uniform")]
    | Annotated[LogUniform, Tag("loguniform")]
    | Annotated[QUniform, Tag("quniform")]
    | Annotated[RandInt, Tag("randint")]
    | Annotated[LogRandInt, Tag("lograndint")]
    | Annotated[QRandInt, Tag("qrandint")]
    | Annotated[Choice, Tag("choice")]
    | Annotated[Together, Tag("together")],
    Discriminator(
        domain_kind,
        custom_error_type="domain",
        custom_error_message="one of {uniform: [low, high]}, {loguniform: [low, high]}, {quniform: [low, high, step]}, "
        "{randint: [low, high]}, {lograndint: [low, high]}, {qrandint: [low, high, step]}, {choice: [a, b, …]}, "
        "{together: [{NAME: a, OTHER: b}, …]}; beside it, when: {NAME: [a, …]}",
    ),
]


def values_of(domain: Domain) -> list[Any] | range | None:
    """All values of a domain; None for real numbers."""
    match domain:
        case Choice(choice=values) | Together(together=values):
            return values
        case RandInt(randint=(low, high)) | LogRandInt(lograndint=(low, high)):
            # no list, as there can be millions
            return range(low, high)
        case QRandInt(qrandint=(low, high, step)):
            return list(range(low, high + 1, step))
        case QUniform(quniform=numbers):
            # In decimals, as people write them: 0.1 + 2 * 0.1 is 0.3 and not 0.30000000000000004.
            start, end, stride = (Decimal(str(number)) for number in numbers)
            return [
                float(start + place * stride) for place in range(int((end - start) / stride) + 1)
            ]
    return None


def ends_of(domain: Domain) -> tuple[float, float]:
    """The least and the largest of a domain of real numbers."""
    assert isinstance(domain, Uniform | LogUniform)
    return domain.uniform if isinstance(domain, Uniform) else domain.loguniform


def holds(domain: Domain, value: Any) -> bool:
    """Whether a value can have been drawn from a domain."""
    values = values_of(domain)
    if isinstance(values, list):
        return any(is_same(value, other) for other in values)
    if isinstance(value, bool):  # to Python a whole number as well
        return False
    if values is not None:
        return isinstance(value, int) and value in values
    low, high = ends_of(domain)
    return isinstance(value, int | float) and low <= value <= high


def drawn_value(domain: Domain, value: Any) -> Any:
    """A value that a domain holds as it would be drawn from there: of 9.0 and 9 the one that is listed."""
    values = values_of(domain)
    if isinstance(values, list):
        return next(other for other in values if is_same(value, other))
    return float(value) if values is None else value


def is_same(one: Any, other: Any) -> bool:
    """Whether two values are one setting; to Python `true` is 1 as well."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same(one[name], other[name]) for name in one)
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def corners(domain: Domain) -> list[Any]:
    """All choices; of a range both ends, the second value if it has steps, else one between that is not whole."""
    values = values_of(domain)
    if values is None:
        low, high = ends_of(domain)
        # divided by pi, so that it is not whole, whatever the ends
        return [low, high, low + (high - low) / math.pi]
    if isinstance(values, range):
        return [values[0], values[-1]]
    return values if isinstance(domain, Choice | Together) else [*values[:2], values[-1]]


def is_logarithmic(domain: Domain | None) -> bool:
    """Whether values are evenly likely on a logarithmic scale."""
    return isinstance(domain, LogUniform | LogRandInt)

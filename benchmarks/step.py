"""What a training step costs: by method, beside torchvision's detectors, by stage, and how it grows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torchvision.models.detection import FCOS, MaskRCNN

from benchmarks.harness import Table, ratio, take_turns
from benchmarks.scenario import Scenario, build, step_of, torchvision_step
from boxseg.engine import step as engine_step
from boxseg.engine import train as engine_train
from boxseg.engine.state import Trainer

VARIANTS = {
    "full": "full",
    "QAM off": "pc",
    "PC off": "qam",
    "QAM and PC off": "boxteacher",
    "boxinst": "boxinst",
    "supervised twin": "supervised",
}
DETECTORS = {"torchvision FCOS": FCOS, "torchvision Mask R-CNN": MaskRCNN}
TWIN = "supervised twin"


def methods(scenario: Scenario, folder: Path, rounds: int) -> Table:
    """Every method and torchvision's detectors, taking turns on the same images."""
    actions: dict[str, Callable[[], object]] = {}
    for name, method in VARIANTS.items():
        trainer, batch = build(scenario, method, folder)
        actions[name] = step_of(trainer, batch)
    for name, kind in DETECTORS.items():
        actions[name] = torchvision_step(kind, trainer, batch)[1]
    times = take_turns(actions, rounds)
    columns = (
        "step",
        "median [CPU s]",
        "least – most",
        *(f"/ {name}" for name in (TWIN, *DETECTORS)),
    )
    rows = [
        (name, own.median, own.spread, *(ratio(own, times[other]) for other in (TWIN, *DETECTORS)))
        for name, own in times.items()
    ]
    return Table(f"A training step, {describe(scenario)}", columns, rows)


def switches(scenario: Scenario, folder: Path, rounds: int) -> Table:
    """The full step with each setting that makes it faster on some processors."""
    changes: dict[str, dict[str, object]] = {
        "train.precision: fp32": {},
        "train.channels_last: true": {"channels_last": True},
        "train.precision: bf16": {"precision": "bf16"},
        "both": {"channels_last": True, "precision": "bf16"},
    }
    actions = {
        name: step_of(*build(scenario, "full", folder, train=change))
        for name, change in changes.items()
    }
    times = take_turns(actions, rounds)
    rows = [
        (name, own.median, own.spread, ratio(own, times["train.precision: fp32"]))
        for name, own in times.items()
    ]
    return Table(
        f"Switches, {describe(scenario)}",
        ("switch", "median [CPU s]", "least – most", "/ fp32"),
        rows,
    )


def growth(base: Scenario, folder: Path, rounds: int) -> Table:
    """The full method and its twin as one of boxes, size and batch changes."""
    small = base.small
    changes: list[dict[str, Any]] = [{"boxes": count} for count in (1, 10, 100)]
    changes += [{"size": size} for size in ((64, 128) if small else (128, 256, 384, 512))]
    changes += [{"batch_size": count} for count in (1, 2, 4)]
    rows = []
    for change in changes:
        scenario = replace(base, **change)
        times = take_turns(
            {name: step_of(*build(scenario, VARIANTS[name], folder)) for name in ("full", TWIN)},
            rounds,
        )
        ((changed, value),) = change.items()
        full = times["full"]
        rows.append(
            (f"{changed} {value}", full.median, times[TWIN].median, ratio(full, times[TWIN]))
        )
    columns = ("changed", "full [CPU s]", "twin [CPU s]", "full / twin")
    return Table(f"Growth; where nothing else is said {describe(base)}", columns, rows)


def stages(scenario: Scenario, folder: Path, rounds: int) -> Table:
    """Where the CPU seconds of a full step go."""
    trainer, batch = build(scenario, "full", folder)
    step = step_of(trainer, batch)
    step()
    spent: list[dict[str, float]] = []
    for _ in range(rounds):
        with stopwatch(trainer) as seconds:
            started = time.process_time()
            step()
            seconds["step"] = time.process_time() - started
        spent.append(seconds)
    total = median(seconds.pop("step") for seconds in spent)
    rows = [
        (name, value, f"{value / total:.1%}")
        for name in spent[0]
        for value in [median(s[name] for s in spent)]
    ]
    rows.append(("rest (update, losses' sum, checks)", total - sum(row[1] for row in rows), ""))
    return Table(f"Stages of a full step, {describe(scenario)}", ("stage", "CPU s", "share"), rows)


def describe(scenario: Scenario) -> str:
    """The scenario in words."""
    network = "small network" if scenario.small else "ResNet-50"
    return f"{network}, {scenario.size}², batch {scenario.batch_size}, {scenario.boxes} boxes × 20 candidates"


@contextmanager
def stopwatch(
    trainer: Trainer,
    *,
    mark: Callable[[], Any] = time.process_time,
    between: Callable[[Any, Any], float] = lambda begin, end: end - begin,
) -> Iterator[dict[str, float]]:
    """What the named parts of the steps inside take, once these have ended, by default in CPU seconds.

    A part that runs within another is not counted twice.

    Args:
        trainer: With a teacher.
        mark: Called before and after each part.
        between: Time between two marks; called at the end.
    """
    assert trainer.teacher is not None
    spent: dict[str, float] = {}
    spans: list[list[Any]] = []  # name, the span around it, first and last mark
    running: list[int] = []

    def watch(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        spent.setdefault(name, 0.0)

        def watched(*args: Any, **kwargs: Any) -> Any:
            span = [name, running[-1] if running else None, mark(), None]
            running.append(len(spans))
            spans.append(span)
            try:
                return function(*args, **kwargs)
            finally:
                running.pop()
                span[3] = mark()

        return watched

    parts: list[tuple[Any, str, str]] = [
        (trainer.teacher, "forward", "teacher: forward"),
        (engine_step, "find_candidates", "QAM: ranking, candidate masks"),
        (engine_step, "fuse_candidates", "QAM: fusion, colours, quality"),
        (engine_step, "paste_peers", "PC"),
        (trainer, "forward", "student: forward"),
        (trainer.student, "detection_losses", "losses: targets, detection"),
        (trainer.student, "mask_logits", "losses: mask head"),
        (engine_step, "compute_losses", "losses: masks, colours"),
        (torch.Tensor, "backward", "backward"),
        (trainer.optimizer, "step", "optimizer"),
        (engine_train, "update_ema", "EMA"),
    ]
    with ExitStack() as stack:
        for owner, attribute, name in parts:
            stack.enter_context(
                patch.object(owner, attribute, watch(name, getattr(owner, attribute)))
            )
        yield spent
    for name, around, begin, end in spans:
        took = between(begin, end)
        spent[name] += took
        if around is not None:
            spent[spans[around][0]] -= took

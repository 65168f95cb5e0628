"""Settings for a data set and a machine, each with its reason, by the rules of docs/recipes.md; needs no torch."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from boxseg.config.method import MAX_ENLARGEMENT, CocoSource
from boxseg.data.fingerprint import Fingerprint
from boxseg.data.misfits import PLAIN_CONTRAST, WINDOW_PX, color_threshold
from boxseg.errors import ConfigError
from orchestration.config.resolved import commented_yaml, leaves
from orchestration.config.source import KeyPath, Source, assign, override
from orchestration.config.spec import RunSpec, build_run
from orchestration.planning.machine import MOST_CORES, Machine
from orchestration.words import show_bytes, show_duration

OBJECT_PX = (64.0, 192.0)
CLOSER = 1.5
CLOSER_PX = 128
"""If the longer side of the median object has at least this [px], windows become larger by `CLOSER` towards the end:
smaller objects would only be blown up."""
CLOSER_FROM = 0.75
CLOSER_COST = 1 + (1 - CLOSER_FROM) * (CLOSER**2 - 1)
"""Time of the mean update then, relative to the first ones, as it depends on the number of pixels."""
BATCH_SIZE = 4
EVAL_OBJECT_PX = 64
CLOSER_EVAL_OBJECT_PX = 128
"""Size of the median object in evaluations of whole images; the second if windows become larger towards the end."""
EVAL_SIDES = (128, 2048)
"""Least and most of the short side in evaluations."""
EVAL_TILE = 640
"""Side of the tiles in evaluations of larger images."""
EVAL_IMAGES = 16
"""Enough to tell from which score on objects are right; `predict` shows those."""
WHOLE_SIZE = 800
"""Default of train.image_size, which has no effect with windows; train.max_size must not be below it."""
USUAL_STEPS = 1200
"""Number of updates if no time is given."""
LEAST_STEPS = 100
LEAST_TRAINING = 0.5
"""Least share of the time for training, however many boxes there are to label."""
AT_THE_END = 1_000_000_000
"""More updates than any recipe has: the run is evaluated after the last one alone, however many are asked for."""
SAVE_EVERY_S = 90
"""About the most training time that a kill may cost."""
FEWEST_MINUTES, MOST_MINUTES = 1, 1_000_000
LEAST_MEMORY = 3 * 10**9
"""With less, the batch is trained in two parts: 1.5 GB were measured for whole batches."""

START_S = 20.0
"""Loading, the last evaluation, writing labels and review page [s]."""
CORE_STEP_S = 0.45
"""Time of an update of a recipe on one core of 2026 [s]; see docs/recipes.md."""
CORE_BOX_S = 0.17
"""Time to label and draw a box on one such core [s]: 0.13 for nuclei, 0.17 for animals, 0.25 for pedestrians."""

ASKED = "Asked for with --set."


def name_after(data: Path) -> str:
    """Name of the experiment for a data file or folder."""
    # only what `RunSpec.name` allows
    return re.sub(r"[^\w.-]+", "-", data.absolute().stem).strip("-.") or "boxes"


@dataclass(frozen=True)
class ChosenValue:
    """One setting of a recipe."""

    name: str
    """As in `train.window`."""
    value: Any
    reason: str
    """One sentence; empty if it is that of the choice before."""


Row = tuple[str, Any, str]
"""Name, value and reason of a chosen setting."""


@dataclass(frozen=True)
class Times:
    """Time that a recipe should take on a machine [s]."""

    step_s: float
    train_s: float
    label_s: float
    basis: str
    """What the numbers are based on."""

    @property
    def total_s(self) -> float:
        """Time of the whole command."""
        return START_S + self.train_s + self.label_s


@dataclass(frozen=True)
class Recipe:
    """Settings for one data set and machine, as a sparse experiment file."""

    title: list[str]
    """Lines that say what it is for."""
    choices: list[ChosenValue]
    times: Times

    @property
    def steps(self) -> int:
        """Updates of the run."""
        steps = next(choice.value for choice in self.choices if choice.name == "train.steps")
        # an override may be no number, and is refused later
        return steps if isinstance(steps, int) else 0

    def moved(self, before: Path, after: Path) -> Recipe:
        """The same recipe, with its files in `before` named as files in `after`."""
        choices = []
        for choice in self.choices:
            if isinstance(choice.value, str) and Path(choice.value).is_relative_to(before):
                moved = after.absolute() / Path(choice.value).relative_to(before)
                choice = replace(choice, value=str(moved))
            choices.append(choice)
        return replace(self, choices=choices)

    def settings(self) -> dict[str, Any]:
        """The choices as nested values."""
        values: dict[str, Any] = {}
        for choice in self.choices:
            values = assign(values, choice.name.split("."), choice.value)
        return values

    def spec(self) -> RunSpec:
        """The choices as settings of a run.

        Raises:
            ConfigError: an override is no setting, or settings do not fit together.
        """
        places: dict[KeyPath, str] = {}
        for choice in self.choices:
            if choice.reason == ASKED:
                places[tuple(choice.name.split("."))] = f"--set {choice.name}"
        return build_run(Source("recipe", self.settings(), places))

    def as_json(self) -> dict[str, Any]:
        """Settings, reasons and estimated seconds."""
        return {
            "settings": self.settings(),
            "reasons": {choice.name: choice.reason for choice in self.choices if choice.reason},
            "seconds": self.times.total_s,
            "basis": self.times.basis,
        }

    def text(self) -> str:
        """The experiment file, with the reason above each choice."""
        lines = [f"# {line}".rstrip() for line in self.title]
        reasons = {choice.name: choice.reason for choice in self.choices}
        return (
            "\n".join([*lines, *commented_yaml(self.settings(), above=reasons, behind={})]) + "\n"
        )


def check_minutes(minutes: float | None) -> None:
    """Refuse a time in which nothing can be learnt, and one without an end.

    Raises:
        ConfigError: names the least and the most.
    """
    if minutes is not None and not FEWEST_MINUTES <= minutes <= MOST_MINUTES:
        raise ConfigError(
            f"--minutes {minutes:g}: use {FEWEST_MINUTES} to {MOST_MINUTES}; nothing is learnt in less"
        )


def make_recipe(
    train: CocoSource,
    fingerprint: Fingerprint,
    machine: Machine,
    *,
    name: str,
    minutes: float | None = None,
    step_s: float | None = None,
    label_boxes: int = 0,
    storage: str | None = None,
    overrides: Sequence[str] = (),
) -> Recipe:
    """Choose settings by the rules of docs/recipes.md.

    Args:
        train: Images and boxes to learn from.
        fingerprint: Fingerprint of these.
        machine: Where it will run.
        name: Of the experiment.
        minutes: Time for training and labelling; None: what `USUAL_STEPS` updates take.
        step_s: Measured time of an update here [s]; None: estimate it.
        label_boxes: Number of boxes to label in that time.
        storage: Folder of runs, relative to the file; None: `runs` in the current folder.
        overrides: `key=value` texts that win over the choices.

    Raises:
        ConfigError: an override is malformed.
    """
    times = _plan_times(
        machine, fingerprint, minutes=minutes, step_s=step_s, label_boxes=label_boxes
    )
    rows: list[Row] = [
        ("name", name, ""),
        *_data_choices(train, machine),
        *MODEL,
        *_train_choices(fingerprint, machine, times, minutes),
        *_method_choices(fingerprint),
        *_resource_choices(machine),
    ]
    if storage:
        rows.append(("storage", storage, ""))
    file_name = train.annotations.name
    title = [
        f"Chosen for {file_name}; what each value rests on is told in docs/recipes.md.",
        *(f"{name}: {text}" for name, text in fingerprint.rows()),
        f"machine: {machine}",
    ]
    choices = [ChosenValue(*row) for row in rows]
    recipe = Recipe(title, _with_overrides(choices, overrides), times)
    # an override may have set the number of updates
    return replace(recipe, times=replace(times, train_s=recipe.steps * times.step_s))


def _plan_times(
    machine: Machine,
    fingerprint: Fingerprint,
    *,
    minutes: float | None,
    step_s: float | None,
    label_boxes: int,
) -> Times:
    basis = "an update was timed here"
    if step_s is None:
        basis = f"estimated from {CORE_STEP_S:g} s on one core"
        step_s = CORE_STEP_S / machine.speed
    # whatever slows updates on this machine slows labelling too
    label_s = label_boxes * CORE_BOX_S * step_s / CORE_STEP_S
    if _has_large_objects(fingerprint):
        step_s *= CLOSER_COST
    train_s = USUAL_STEPS * step_s
    if minutes is not None:
        total_s = 60 * minutes
        train_s = max(total_s - START_S - label_s, LEAST_TRAINING * total_s)
    steps = _two_digits(train_s / step_s)
    if steps < LEAST_STEPS:  # which exceeds `minutes`
        steps = LEAST_STEPS
        basis += f"; {LEAST_STEPS} updates are the least"
    return Times(step_s, steps * step_s, label_s, basis)


def _has_large_objects(fingerprint: Fingerprint) -> bool:
    return fingerprint.object_px.median >= CLOSER_PX


def _two_digits(number: float) -> int:
    # rounded down to two digits: 1,234 updates become 1,200
    digits = max(math.floor(math.log10(max(number, 1))) - 1, 0)
    return math.floor(number / 10**digits) * 10**digits


def _data_choices(train: CocoSource, machine: Machine) -> Iterator[Row]:
    reason = "The boxes are all that is learnt from."
    yield "data.train.images", str(train.images.absolute()), reason
    yield "data.train.annotations", str(train.annotations.absolute()), ""
    reason = (
        "Without masks there is nothing to measure, so no images are held out: "
        "evaluating a few of them shows that objects are found, and from which score on they are right."
    )
    yield "data.val.images", str(train.images.absolute()), reason
    yield "data.val.annotations", str(train.annotations.absolute()), ""
    yield "data.max_val_images", EVAL_IMAGES, ""
    if machine.gpus:
        # one core is left to the training process
        workers = max(1, min(8, machine.cores - 1))
        yield "data.loader_workers", workers, "The GPU is not to wait for images."


MODEL: tuple[Row, ...] = (
    ("model.backbone", "efficientnet_lite0", "Its ImageNet weights come with the installation."),
    (
        "model.frozen_stages",
        5,
        "What ImageNet taught serves all pictures; what does not learn takes less time.",
    ),
    ("model.channels", 64, "Small heads learn in the few updates that there are."),
    ("model.tower_convs", 2, ""),
    ("cond.branch_channels", 64, ""),
    ("cond.branch_convs", 2, ""),
    ("cond.max_per_image", 32, ""),
    (
        "fcos.tower_std",
        0.06,
        "AdamW's updates are small beside weights of this size: the head learns more steadily.",
    ),
    (
        "fcos.start_distance",
        4.0,
        "Boxes overlap their objects from the first update, so classes can be learnt at once.",
    ),
    (
        "fcos.mask_boxes",
        True,
        "After short training the bounds of a mask fit better than the box that was found.",
    ),
)
SOLVER: tuple[Row, ...] = (
    ("solver.optimizer", "adamw", "Learns in hundreds of updates, not in ten thousands."),
    ("solver.lr", 0.001, ""),
    (
        "solver.beta2",
        0.95,
        "The large gradients of the beginning are forgotten in 20 updates, not in 1000.",
    ),
    ("solver.weight_decay", 0.01, ""),
    ("solver.schedule", "cosine", ""),
    ("solver.warmup", 0.05, ""),
    ("boxinst.warmup", 0.3, "Colours have a say once masks are where their boxes are."),
)


def _train_choices(
    fingerprint: Fingerprint, machine: Machine, times: Times, minutes: float | None
) -> Iterator[Row]:
    """Length of training, views, and what is saved."""
    steps = round(times.train_s / times.step_s)
    yield from _length_choices(steps, times, minutes)
    yield from _batch_choices(machine)
    yield from _view_choices(fingerprint)
    yield from _saving_choices(times)
    yield "train.channels_last", True, "Faster with this backbone."
    if machine.has_bf16 and not machine.gpus:
        reason = (
            "This processor has bf16: an update takes two thirds of the time, and learns as much."
        )
        yield "train.precision", "bf16", reason


def _length_choices(steps: int, times: Times, minutes: float | None) -> Iterator[Row]:
    train_time = f"About {show_duration(times.train_s)}"
    pace = f"{times.step_s:.2g} s for an update ({times.basis})"
    given = "; no time was given"
    if minutes is not None:
        given = f", of {minutes:g} minutes with labelling"
    yield "train.steps", steps, f"{train_time} at {pace}{given}."


def _batch_choices(machine: Machine) -> Iterator[Row]:
    reason = "Windows are small, and losses are steadier over more of them."
    yield "train.batch_size", BATCH_SIZE, reason
    if machine.memory_bytes < LEAST_MEMORY:
        reason = f"In two parts, as there are {show_bytes(machine.memory_bytes)} of memory."
        yield "train.accumulate", 2, reason


def _view_choices(fingerprint: Fingerprint) -> Iterator[Row]:
    """Size of images and objects for the network, in training and in evaluations."""
    sizes = f"{fingerprint.object_px.low:.0f} to {fingerprint.object_px.high:.0f} px"
    reason = f"Windows around objects show boxes of {sizes} at one scale, unlike images."
    yield "train.window", WINDOW_PX, reason
    reason = f"So an object has {OBJECT_PX[0] / 4:.0f} mask cells or more."
    yield "train.object_size", list(OBJECT_PX), reason
    if _has_large_objects(fingerprint):
        reason = (
            "Larger towards the end, as images have the pixels: a closer look improves outlines."
        )
        yield "train.closer", CLOSER, reason
        yield "train.closer_from", CLOSER_FROM, ""
    eval_size, max_size = eval_sizes(fingerprint)
    eval_px = sorted(fingerprint.sides.sizes_at(eval_size, max_size))
    at_eval = float(eval_px[fingerprint.boxes // 2])
    reason = f"In whole images of this short side the median object has {at_eval:.0f} px."
    yield "train.eval_size", eval_size, reason
    yield "train.max_size", max_size, ""
    if max_size > 2 * EVAL_TILE:
        reason = "Larger images are evaluated in tiles, which takes little memory."
        yield "train.eval_tile", EVAL_TILE, reason


def _saving_choices(times: Times) -> Iterator[Row]:
    """When the run is evaluated and saved."""
    reason = "Evaluated at the end alone: time is better spent on training."
    yield "train.eval_every", AT_THE_END, reason
    saves = max(round(SAVE_EVERY_S / times.step_s), 1)
    yield "train.save_every", saves, "Saved now and then, so that a kill costs little."
    reason = "The mean of the student's last states, and steadier than any of them."
    yield "train.evaluate", "teacher", reason
    reason = (
        "An alarm at the end would save nothing; each label says how much of its box it fills."
    )
    yield "train.collapse_fill", None, reason
    yield "train.panels", 0, "The review page shows more."


def eval_sizes(fingerprint: Fingerprint) -> tuple[int, int]:
    """Short side at which the median object has the wanted size, and a limit of the long side that no image reaches."""
    sides = fingerprint.sides
    by_size = sorted((sides.longer_px / sides.short_px).tolist())
    relative = by_size[fingerprint.boxes // 2]  # median object over the short side of its image
    enlarged = MAX_ENLARGEMENT * fingerprint.image_px.median
    wanted = CLOSER_EVAL_OBJECT_PX if _has_large_objects(fingerprint) else EVAL_OBJECT_PX
    short = min(max(wanted / relative, EVAL_SIDES[0]), EVAL_SIDES[1], enlarged)
    eval_size = max(32 * round(short / 32), 64)
    aspect = min(float((sides.long_px / sides.short_px).max()), 4.0)
    return eval_size, max(32 * math.ceil(eval_size * aspect / 32), WHOLE_SIZE)


def _method_choices(fingerprint: Fingerprint) -> Iterator[Row]:
    yield from SOLVER
    colours = fingerprint.colours
    if colours is not None and colours.contrast < PLAIN_CONTRAST:
        contrast = f"{colours.contrast:.1f}"
        reason = f"Objects differ by {contrast} from what is around them, so less counts as alike."
        yield "boxinst.color_thr", color_threshold(colours.contrast), reason


def _resource_choices(machine: Machine) -> Iterator[Row]:
    reason = "All that this machine has, in the command's own process."
    if machine.cores > MOST_CORES:
        reason = f"More than {MOST_CORES} threads have little to do with so small a network."
    yield "resources.cpus_per_worker", machine.threads, reason
    if machine.gpus:
        yield "resources.gpus_per_worker", 1, ""
    yield "resources.runner", "inline", ""


def _with_overrides(choices: list[ChosenValue], overrides: Sequence[str]) -> list[ChosenValue]:
    """The choices with the values of overrides; overrides of other settings follow."""
    # read like `--set` of a run, so that a value means the same in both
    given = functools.reduce(override, overrides, Source("--set", {}, {})).values
    values = dict(leaves(given))
    merged = []
    for choice in choices:
        if choice.name in values:
            choice = replace(choice, value=values.pop(choice.name), reason=ASKED)
        merged.append(choice)
    return merged + [ChosenValue(name, value, ASKED) for name, value in values.items()]

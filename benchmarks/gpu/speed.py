"""What a training step takes at the sizes that people use, beside its twin and torchvision's detectors."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType

from benchmarks.gpu.place import NEEDS_GPU, Place, Steps, attempt, in_turns, milliseconds
from benchmarks.harness import Table
from benchmarks.scenario import Scenario, build, build_detector, detector_step, step_of
from benchmarks.step import DETECTORS, TWIN, describe, stopwatch
from boxseg.engine.state import Trainer
from boxseg.structures import Batch

CONVOLUTIONS: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
"""torch's own types do not name it."""
METHODS = {"full": "full", "boxinst": "boxinst", TWIN: "supervised"}
MASK_RCNN = "torchvision Mask R-CNN"
ROUNDS = 5
ROUNDS_ON_CPU = 1
COMPILE_S = 75
"""Time that has to be left to compile a step [s]."""
LAUNCHES = ("LaunchKernel", "MemcpyAsync", "MemsetAsync")
"""Parts of the names by which the profiler knows what a step asks of the GPU."""
Row = tuple[Any, ...]


def speed(place: Place) -> Iterator[Table]:
    """Tables of the comparison first, then where the time of a full step goes, then switches."""
    small = not place.has_gpu
    batches = (2,) if small else (8, 2, 16, 4)
    size, boxes = (64, 2) if small else (800, 20)
    scenario = Scenario(size, boxes, max(batches), small)
    rig, images = build_rig(place, scenario), batches[0]
    yield from compare(rig, batches)
    yield from (limit(rig, images), stages(rig, images), requests(rig, images))
    rows: list[Row] = []
    yield from switches(rig, images, SWITCHES, rows)
    if not small:
        yield from compare(build_rig(place, replace(scenario, size=640)), batches)
    yield from switches(rig, images, COMPILED, rows)


@dataclass(frozen=True)
class Rig:
    """Networks of one size of images, ready to take turns."""

    place: Place
    scenario: Scenario
    trainers: dict[str, Trainer]
    detectors: dict[str, nn.Module]
    batch: Batch
    """The largest one."""

    @property
    def rounds(self) -> int:
        """Measured repetitions."""
        return ROUNDS if self.place.has_gpu else ROUNDS_ON_CPU

    def part(self, images: int) -> Batch:
        """The first images of the batch; a divisor of its size."""
        return self.batch.split(len(self.batch) // images)[0]

    def actions(self, images: int) -> dict[str, Callable[[], object]]:
        """A step of each network, in the precision that `train.precision` asks for."""
        batch = self.part(images)
        actions = {name: step_of(trainer, batch) for name, trainer in self.trainers.items()}
        autocast = self.trainers["full"].autocast
        for name, network in self.detectors.items():
            actions[name] = detector_step(network, batch, autocast)
        return actions

    def describe(self, images: int) -> str:
        """Network and images in words."""
        return describe(replace(self.scenario, batch_size=images))


def build_rig(place: Place, scenario: Scenario) -> Rig:
    """Networks with random weights on pictures of the scenario's size."""
    trainers = {}
    for name, method in METHODS.items():
        trainers[name], batch = build(scenario, method, place.folder, place.device)
    full = trainers["full"]
    detectors = {
        name: build_detector(kind, full, size=scenario.size) for name, kind in DETECTORS.items()
    }
    if scenario.small:  # its 512 masks would take longer than all the rest
        mask_rcnn: Any = detectors[MASK_RCNN]
        mask_rcnn.roi_heads.fg_bg_sampler.batch_size_per_image = 16
    return Rig(place, scenario, trainers, detectors, batch)


def compare(rig: Rig, batches: tuple[int, ...]) -> Iterator[Table]:
    """Methods and torchvision's detectors in turns; the table grows with each size of batch."""
    rows: list[Row] = []
    columns = (
        "step", "batch", "ms", "images/s", "peak MB", f"/ {TWIN}", "/ Mask R-CNN",
    )  # fmt: skip
    network = "small network" if rig.scenario.small else "ResNet-50"
    note = (
        "Precision auto: bf16 where the GPU has it. Memory: most that a step adds to weights, optimizer and images. "
        f"{rig.scenario.boxes} boxes × 20 candidates in each image."
    )
    for images in batches:
        found = in_turns(rig.place, rig.actions(images), rig.rounds)
        rows += [_compared(name, images, found) for name in found]
        yield Table(f"Steps at {rig.scenario.size}², {network}", columns, rows, note)


def _compared(name: str, images: int, found: Mapping[str, Steps | str]) -> Row:
    own = found[name]
    if isinstance(own, str):
        return name, images, own, "", "", "", ""
    ratios = [
        own.ratio(other) if isinstance(other, Steps) else ""
        for other in (found[TWIN], found[MASK_RCNN])
    ]
    rate = 1000 * images / own.median_ms
    return name, images, own.median_ms, rate, own.peak_mb or "", *ratios


def limit(rig: Rig, images: int) -> Table:
    """The full step beside what no implementation can leave out."""
    trainer, batch = rig.trainers["full"], rig.part(images)
    actions = {
        "teacher, forward": lambda: _look(trainer, batch),
        "student, forward and backward": lambda: _learn(trainer, batch),
        "full step": step_of(trainer, batch),
    }
    found = in_turns(rig.place, actions, rig.rounds)
    rows = [
        (name, steps if isinstance(steps, str) else steps.median_ms)
        for name, steps in found.items()
    ]
    times = [value for _, value in rows if isinstance(value, float)]
    if len(times) == len(actions):
        rows.append(("full step / (teacher + student)", times[2] / (times[0] + times[1])))
    return Table(f"Gap to the limit, {rig.describe(images)}", ("what", "ms, or ratio"), rows)


@torch.no_grad()
def _look(trainer: Trainer, batch: Batch) -> None:
    assert trainer.teacher is not None
    with trainer.autocast():
        trainer.teacher(batch.weak, batch.valid)


def _learn(trainer: Trainer, batch: Batch) -> None:
    with trainer.autocast():
        seen = trainer.forward(batch.strong, batch.valid)
    outputs = (
        seen.class_logits,
        seen.distances,
        seen.centerness_logits,
        seen.controller_maps,
        seen.mask_features,
    )
    sum(each.float().mean() for each in outputs).backward()
    trainer.optimizer.zero_grad(set_to_none=True)


def stages(rig: Rig, images: int) -> Table:
    """Where the time of a full step goes, by events of the GPU."""
    trainer = rig.trainers["full"]
    step = step_of(trainer, rig.part(images))
    clock: dict[str, Any] = {"mark": time.perf_counter, "between": _ms_of_seconds}
    if rig.place.has_gpu:
        clock = {"mark": _event, "between": _ms_between}

    def once() -> dict[str, float]:
        with stopwatch(trainer, **clock) as spent:
            total = milliseconds(rig.place, step)
        return spent | {"step": total}

    found = attempt(rig.place, lambda: [once() for _ in range(rig.rounds)])
    title, columns = f"Stages of a full step, {rig.describe(images)}", ("stage", "ms", "share")
    if isinstance(found, str):
        return Table(title, columns, [("all", found, "")])
    of_stage = {name: median(each[name] for each in found) for name in found[0]}
    total = of_stage.pop("step")
    rows = [(name, value, f"{value / total:.1%}") for name, value in of_stage.items()]
    rest = total - sum(of_stage.values())
    return Table(title, columns, [*rows, ("rest", rest, f"{rest / total:.1%}")])


def _ms_of_seconds(begin: float, end: float) -> float:
    return 1000 * (end - begin)


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _ms_between(begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
    end.synchronize()
    return begin.elapsed_time(end)


def requests(rig: Rig, images: int) -> Table:
    """What a full step asks of the GPU, and where it waits."""
    step = step_of(rig.trainers["full"], rig.part(images))
    rows: list[Row] = []
    for what, measure in (("launches and copies", _launches), ("waits", _waits)):
        found: list[Row] | str = NEEDS_GPU
        if rig.place.has_gpu:
            found = attempt(rig.place, partial(measure, step))
        rows += [(what, found)] if isinstance(found, str) else found
    return Table(f"Requests of a full step, {rig.describe(images)}", ("what", "number"), rows)


def _launches(step: Callable[[], object]) -> list[Row]:
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        step()
        torch.cuda.synchronize()
    events = profile.key_averages()
    asked = sum(each.count for each in events if any(part in each.key for part in LAUNCHES))
    busy_us = sum(
        each.self_device_time_total for each in events if each.device_type == DeviceType.CUDA
    )
    return [("launches and copies", asked), ("GPU at work [ms]", busy_us / 1000)]


def _waits(step: Callable[[], object]) -> list[Row]:
    """Waits of a step, by the line that waits."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    lines = Counter(
        f"{Path(each.filename).name}:{each.lineno}"
        for each in found
        if "called a synchronizing CUDA operation" in str(each.message)
    )
    return [("waits", lines.total()), *((f"waits at {line}", n) for line, n in lines.items())]


@dataclass(frozen=True)
class Switch:
    """A way to run the same step."""

    name: str
    precision: str
    tf32: bool = False
    channels_last: bool = False
    compile_mode: str | None = None
    """Of `torch.compile`."""


SWITCHES = (
    Switch("fp32", "fp32"),
    Switch("tf32", "fp32", tf32=True),
    Switch("bf16", "bf16"),
    Switch("bf16, channels-last", "bf16", channels_last=True),
)
COMPILED = (
    Switch("torch.compile", "bf16", channels_last=True, compile_mode="default"),
    Switch("CUDA graphs", "bf16", channels_last=True, compile_mode="reduce-overhead"),
)
"""Last, as what is compiled stays so, and takes longest."""


def switches(
    rig: Rig, images: int, wanted: tuple[Switch, ...], rows: list[Row]
) -> Iterator[Table]:
    """The same steps run in other ways; `rows` are those that the table already has, and grow."""
    columns = ("switch", "step", "ms", "images/s", "peak MB", "/ fp32")
    fp32 = {step: ms for name, step, ms, *_ in rows if name == "fp32"}
    backends = torch.backends
    before = backends.cuda.matmul.fp32_precision, CONVOLUTIONS.fp32_precision
    for switch in wanted:
        found = _switched(rig, switch, images)
        for name, steps in found.items():
            if isinstance(steps, str):
                rows.append((switch.name, name, steps, "", "", ""))
                continue
            ms = steps.median_ms
            base = fp32.setdefault(name, ms) if switch is SWITCHES[0] else fp32.get(name)
            ratio = ms / base if isinstance(base, float) else ""
            rows.append((switch.name, name, ms, 1000 * images / ms, steps.peak_mb or "", ratio))
        yield Table(f"Switches, {rig.describe(images)}", columns, rows)
    _set_precision(*before)


def _switched(rig: Rig, switch: Switch, images: int) -> Mapping[str, Steps | str]:
    place, rounds = rig.place, min(rig.rounds, 3)
    if not place.has_gpu and (switch.tf32 or switch.compile_mode):
        return {"all": NEEDS_GPU}
    if switch.compile_mode is None:
        turned = attempt(place, lambda: _turn(rig, switch))
        return (
            {"all": turned} if isinstance(turned, str) else in_turns(place, turned(images), rounds)
        )
    found: dict[str, Steps | str] = {}
    for name in ("full", TWIN):
        turned = attempt(place, lambda: _turn(rig, switch), needs_s=COMPILE_S)
        if isinstance(turned, str):
            return found | {name: turned}
        found |= in_turns(place, {name: turned(images)[name]}, rounds)
    return found


def _turn(rig: Rig, switch: Switch) -> Callable[[int], dict[str, Callable[[], object]]]:
    """Change all networks; gives their steps."""
    _set_precision(*["tf32" if switch.tf32 else "ieee"] * 2)
    order = torch.channels_last if switch.channels_last else torch.contiguous_format
    torch.compiler.reset()
    for trainer in rig.trainers.values():
        train = trainer.config.train.model_copy(update={"precision": switch.precision})
        trainer.config = trainer.config.model_copy(update={"train": train})
        trainer.optimizer.state.clear()  # its momentum has the order of the weights before
        for network in trainer.networks().values():
            network.to(memory_format=order)
            if switch.compile_mode is not None:
                network.compile(mode=switch.compile_mode)
    for detector in rig.detectors.values():
        detector.to(memory_format=order)
    return rig.actions if switch.compile_mode is None else lambda images: _marked(rig, images)


def _set_precision(products: str, convolutions: str) -> None:
    """How a GPU rounds the inputs of fp32 products: `ieee` not at all, `tf32` to ten bits."""
    torch.backends.cuda.matmul.fp32_precision = products
    CONVOLUTIONS.fp32_precision = convolutions


def _marked(rig: Rig, images: int) -> dict[str, Callable[[], object]]:
    """Steps that tell CUDA graphs where a new one begins, so that old results may be overwritten."""

    def mark(step: Callable[[], object]) -> Callable[[], object]:
        def marked() -> object:
            torch.compiler.cudagraph_mark_step_begin()
            return step()

        return marked

    return {name: mark(step) for name, step in rig.actions(images).items()}

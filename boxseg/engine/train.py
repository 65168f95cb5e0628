"""The training loop: step, backward, update, report, evaluate, save."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from boxseg.config.criterion import MASK_AP, Criterion
from boxseg.config.method import as_steps
from boxseg.engine import checkpoint
from boxseg.engine.distributed import average_buffers, gather_objects, rank, world_size
from boxseg.engine.events import EvalReport, Reporter, StartReport, StepReport
from boxseg.engine.optim import lr_factor, set_lr
from boxseg.engine.start import read_trained, take_over
from boxseg.engine.state import Trainer
from boxseg.engine.step import StepOutput, run_step, update_ema
from boxseg.errors import CheckpointError, CollapseError, NonFiniteLossError
from boxseg.evaluation.validate import validate
from boxseg.structures import Batch

NON_FINITE_ADVICE = "Lower solver.lr, lengthen solver.warmup or set train.clip_norm; the last checkpoint is untouched"
TIMES = 1000
"""`EvalReport.step_s` is the median over this many last updates, so that a slow start soon counts for little."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    """Optimizer updates done."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last evaluation."""
    best: dict[str, float] = field(default_factory=dict)
    """Of the best evaluation."""
    evaluated: int = 0
    """Step of the last evaluation; 0 before the first."""
    best_step: int = 0
    """Step of the best evaluation; 0 until one has a value."""
    network: str | None = None
    """The better network of the last evaluation; None before the first."""


def train(
    trainer: Trainer, *, folder: Path, reporter: Reporter, criterion: Criterion = MASK_AP
) -> Progress:
    """Train until `trainer.steps` updates are done, or the reporter asks to stop.

    Goes on from the last sound checkpoint if there is one, and otherwise starts from the weights that
    `model.start_from` names, if any. With one process, a run that was interrupted gives the same result as one that was
    not; several processes average their BatchNorm statistics at every save, so a stop between saves shows.

    Args:
        trainer: Networks, optimizer, bank and data, fresh from `boxseg.build`.
        folder: The run's folder; gets `checkpoints/`, `samples/` and, with the last evaluation, `evaluation/`.
        reporter: Receives every report, on every rank.
        criterion: Decides between evaluations, and between the networks of one.

    Returns:
        Where it ended: at step `trainer.steps` with an evaluation and a checkpoint of that step, or earlier if the
        reporter asked to stop.

    Raises:
        CheckpointError: the weights to start from are missing, damaged, or of another network.
        NonFiniteLossError: a loss became NaN or infinite, or weights did before they were saved.
    """
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    saved = checkpoint.find_sound(checkpoints)
    if saved is None and trainer.config.model.start_from is not None:
        reporter.on_start(start_from(trainer, trainer.config.model.start_from))
    if saved is not None and rank() == 0:
        with checkpoint.of_this_version(saved):
            checkpoint.settle(saved, criterion)
    # Rank 0's progress: others may not have all files.
    progress = gather_objects(restore(trainer, saved))[0]
    reporter.on_best(progress.best_step, progress.best)
    train_config = trainer.config.train
    eval_steps = due_steps(trainer.steps, train_config.eval_every)
    save_steps = due_steps(trainer.steps, train_config.save_every or train_config.eval_every)
    meter = Meter()
    times: deque[float] = deque(maxlen=TIMES)
    report_again(progress, checkpoints, reporter)
    batches = trainer.loader.batches(progress.step, trainer.steps - progress.step)
    # From `asked` to `started`, the loop waits for data.
    asked = time.perf_counter()
    for step, batch in enumerate(batches, progress.step):
        started = time.perf_counter()
        metrics = optimise(trainer, batch, step)
        step_s = time.perf_counter() - started
        meter.add(metrics, images=len(batch) * world_size(), step_s=step_s, wait_s=started - asked)
        times.append(step_s)
        done = step + 1
        reporter.on_update(done, metrics)
        reports = done % train_config.report_every == 0 or done == trainer.steps
        if reports:
            lr = trainer.optimizer.param_groups[0]["lr"]
            reporter.on_step(
                StepReport(done, mean_metrics(gather_objects(meter.summary())) | {"train/lr": lr})
            )
            meter = Meter()
        stop = wants_stop(reporter, at_report=reports)
        # An evaluation saves a checkpoint too, so a stop after it needs no other.
        if done in eval_steps:
            progress = evaluate(
                trainer, folder, done, progress, reporter, criterion=criterion, times=times
            )
        elif stop or done in save_steps:
            progress = replace(progress, step=done)
            save(trainer, checkpoints, progress)
        if stop:
            break
        asked = time.perf_counter()
    # A stop may have saved the state of the last step without an evaluation.
    if progress.step == trainer.steps and progress.evaluated < trainer.steps:
        progress = evaluate(
            trainer, folder, progress.step, progress, reporter, criterion=criterion, times=times
        )
    return progress


def start_from(trainer: Trainer, path: Path) -> StartReport:
    """Load trained weights into all networks of a new run."""
    trained, class_names = read_trained(path), trainer.train_data.class_names
    if trainer.teacher is not None:
        take_over(trainer.teacher, trained, class_names)
    return take_over(trainer.student, trained, class_names)


def report_again(progress: Progress, checkpoints: Path, reporter: Reporter) -> None:
    """Report the last evaluation once more when a run goes on: the process may have ended before it was reported."""
    if progress.evaluated == 0:
        return
    folder = checkpoint.folder_of(checkpoints, progress.step)
    is_best = progress.best_step == progress.evaluated
    reporter.on_eval(
        EvalReport(progress.evaluated, progress.metrics, folder, is_best, is_repeated=True)
    )


def wants_stop(reporter: Reporter, *, at_report: bool) -> bool:
    """Whether to stop now; several processes agree at report steps only, since agreeing waits for all of them."""
    if world_size() == 1:
        return reporter.should_stop()
    return at_report and any(gather_objects(reporter.should_stop()))


def optimise(trainer: Trainer, batch: Batch, step: int) -> dict[str, Tensor]:
    """One update of all state from one batch; returns the step's metrics as scalars on the device.

    With `train.accumulate` the batch comes in parts whose gradients add up to that of the mean over the images.
    """
    set_lr(trainer.optimizer, lr_factor(step, trainer.steps, trainer.config.solver))
    update_ema(trainer, step)
    trainer.optimizer.zero_grad(set_to_none=True)
    parts = batch.split(trainer.config.train.accumulate)
    metrics: dict[str, Tensor] = {}
    for number, part in enumerate(parts):
        with gradient_sync(trainer.forward, now=number == len(parts) - 1):
            output = run_step(trainer, part, step, part=number)
            guard_finite(output, part.image_ids, step)
            share = len(part) / len(batch)
            (share * output.loss).backward()
        for name, value in output.metrics.items():
            metrics[name] = metrics.get(name, 0) + share * value
    if trainer.config.train.clip_norm is not None:
        # Here the gradient is the sum over parts and the mean over ranks: the norm is that of the whole batch.
        nn.utils.clip_grad_norm_(trainer.student.parameters(), trainer.config.train.clip_norm)
    trainer.optimizer.step()
    return metrics


def gradient_sync(forward: nn.Module, *, now: bool) -> AbstractContextManager[None]:
    """Context of a backward pass: with `now`, processes exchange their gradients in it, else in a later pass."""
    if now or not isinstance(forward, DistributedDataParallel):
        return nullcontext()
    return forward.no_sync()


def guard_finite(output: StepOutput, image_ids: list[int], step: int) -> None:
    """Stop before a non-finite loss reaches the weights; reading the flag waits for the device once per step."""
    if bool(torch.isfinite(output.loss.detach())):
        return
    terms = [name for name, value in output.metrics.items() if not bool(torch.isfinite(value))]
    raise NonFiniteLossError(
        f"step {step}: the loss is {float(output.loss.detach())}; terms {', '.join(terms) or 'unknown'}; "
        f"images {image_ids}. {NON_FINITE_ADVICE}"
    )


def guard_weights(student: nn.Module, done: int) -> None:
    """Keep weights that are not finite out of checkpoints: a finite loss can have a gradient that is not."""
    sound = torch.stack([weights.detach().isfinite().all() for weights in student.parameters()])
    if not bool(sound.all()):
        raise NonFiniteLossError(
            f"step {done}: weights are not finite after the update. {NON_FINITE_ADVICE}"
        )


def due_steps(steps: int, every: float) -> set[int]:
    """Step counts at which something is due that happens every `every` steps; the last step is always among them.

    Args:
        steps: Of the whole run.
        every: Number of steps; below 1, share of `steps`.
    """
    period = max(as_steps(every, steps), 1)
    return {*range(period, steps, period), steps}


def evaluate(
    trainer: Trainer,
    folder: Path,
    done: int,
    progress: Progress,
    reporter: Reporter,
    *,
    criterion: Criterion,
    times: Collection[float],
) -> Progress:
    """Evaluate, save and report; returns where the run stands.

    `times` are those of the updates so far [s].

    Raises:
        CollapseError: masks have become boxes; the evaluation is reported.
    """
    # Before the evaluation, so that the networks that are evaluated are those that are saved.
    average_statistics(trainer)
    network, metrics = validate(trainer, folder=folder, step=done, criterion=criterion)
    is_best = criterion.better(metrics, than=progress.best)
    progress = replace(progress, step=done, metrics=metrics, evaluated=done, network=network)
    if is_best:
        progress = replace(progress, best=metrics, best_step=done)
    # Only once `validate` has drawn its pictures: a killed run goes on from the checkpoint and does not evaluate again.
    saved = save(trainer, folder / "checkpoints", progress)
    step_s = statistics.median(times) if times else None
    reporter.on_eval(EvalReport(done, metrics, saved, is_best, step_s=step_s))
    # Last, so that the evaluation that shows a collapse is saved and reported too.
    guard_collapse(metrics, done, trainer.steps, trainer.config.train.collapse_fill)
    return progress


def guard_collapse(metrics: dict[str, float], done: int, steps: int, limit: float | None) -> None:
    """Stop a run whose masks have become their boxes; early masks may still be blobs, so the first half passes.

    Raises:
        CollapseError: `health/box_likeness` has reached `limit` in the second half of the run.
    """
    likeness = metrics.get("health/box_likeness", 0.0)
    if limit is not None and 2 * done > steps and likeness >= limit:
        raise CollapseError(
            f"step {done}: areas of confident masks and their boxes agree to {likeness:.3f}, train.collapse_fill is "
            f"{limit:g}: the masks have become boxes. Raise boxinst.color_thr, lower boxinst.pairwise_weight or "
            "lengthen boxinst.warmup; for objects that are rectangles set train.collapse_fill: null. "
            "The checkpoint of this step is saved"
        )


def average_statistics(trainer: Trainer) -> None:
    """Average the BatchNorm statistics over the processes, each of which gathers them from its own images."""
    if trainer.config.ema.average_buffers:
        for network in trainer.networks().values():
            average_buffers(network)


def save(trainer: Trainer, checkpoints: Path, progress: Progress) -> Path:
    """Save the state of all ranks as a checkpoint; rank 0 writes the files, the others wait.

    Raises:
        NonFiniteLossError: weights are not finite; nothing is written.
    """
    guard_weights(trainer.student, progress.step)
    average_statistics(trainer)
    # All ranks take part, also those that write nothing.
    states = gather_objects(trainer.rank_state())
    folder = checkpoint.folder_of(checkpoints, progress.step)
    if rank() == 0:
        classes = {
            "ids": trainer.train_data.category_ids,
            "names": trainer.train_data.class_names,
        }
        about = asdict(progress) | {
            "config": trainer.config.model_dump(mode="json"),
            "classes": classes,
        }
        files = checkpoint.pack(
            {name: network.state_dict() for name, network in trainer.networks().items()},
            {"shared": {"optimizer": trainer.optimizer.state_dict()}, "ranks": states},
        )
        checkpoint.save_checkpoint(checkpoints, step=progress.step, files=files, about=about)
        checkpoint.publish(checkpoints, folder)
    gather_objects(None)  # a barrier: no process goes on before the files are there
    return folder


def restore(trainer: Trainer, folder: Path | None) -> Progress:
    """Load a checkpoint into the trainer, if one is given.

    Raises:
        CheckpointError: the checkpoint is damaged, or of a longer run, another network or another version.
    """
    if folder is None:
        return Progress()
    about = checkpoint.load_about(folder)
    if about["step"] > trainer.steps:
        raise CheckpointError(
            f"{folder} is at step {about['step']}, beyond train.steps {trainer.steps}; raise train.steps"
        )
    state = checkpoint.load_state(folder)
    networks = {name: checkpoint.load_network(folder, name) for name in trainer.networks()}
    with checkpoint.of_this_version(folder):
        trainer.load(networks, state["shared"], state["ranks"])
        return Progress(**{field.name: about[field.name] for field in fields(Progress)})


def mean_metrics(of_ranks: list[dict[str, float]]) -> dict[str, float]:
    """Mean over the processes of each metric; all of them have the same names."""
    return {
        name: sum(metrics[name] for metrics in of_ranks) / len(of_ranks) for name in of_ranks[0]
    }


class Meter:
    """Means of step metrics between two reports; values stay on the device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._images = 0
        self._step_s = 0.0
        self._wait_s = 0.0

    def add(
        self, metrics: dict[str, Tensor], *, images: int, step_s: float, wait_s: float
    ) -> None:
        """Add one step; all steps have the same names."""
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach()
        self._steps += 1
        self._images += images
        self._step_s += step_s
        self._wait_s += wait_s

    def summary(self) -> dict[str, float]:
        """Means as plain numbers, with the pace."""
        # `float` waits for the device: once for each report, not at each step.
        means = {name: float(total) / self._steps for name, total in self._sums.items()}
        return means | {
            "train/images_per_s": self._images / max(self._step_s + self._wait_s, 1e-9),
            "train/step_s": self._step_s / self._steps,
            "train/data_wait_s": self._wait_s / self._steps,
        }

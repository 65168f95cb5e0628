"""The composition root: settings in, ready objects out. Modules below it know nothing of configuration files."""

from __future__ import annotations

import random
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from boxseg.coco.classes import require_same_classes
from boxseg.config.criterion import MASK_AP, Criterion
from boxseg.config.method import BoxSegConfig, CocoSource, as_steps
from boxseg.copy_paste.bank import BANKS
from boxseg.data.dataset import CocoBoxes, load_boxes
from boxseg.data.loader import TrainLoader
from boxseg.data.toy import ensure_toy
from boxseg.engine.distributed import is_distributed, rank, world_size
from boxseg.engine.events import Reporter
from boxseg.engine.optim import build_optimizer
from boxseg.engine.start import read_trained, take_over
from boxseg.engine.state import Trainer
from boxseg.engine.train import Progress, train
from boxseg.losses.detection import detection_losses
from boxseg.model.backbone import Backbone, build_backbone
from boxseg.model.condinst import CondInst
from boxseg.structures import MaskNetwork

WARMUPS = (("solver", "warmup"), ("loss", "warmup"), ("boxinst", "warmup"), ("pc", "warmup"))
"""Settings that count steps, or give a share of them."""


def run_training(
    config: BoxSegConfig,
    *,
    folder: Path,
    data_root: Path,
    reporter: Reporter,
    device: str = "cpu",
    threads: int = 1,
    criterion: Criterion = MASK_AP,
) -> Progress:
    """Build everything and train in this process; the process group, if any, is already set up.

    Goes on from the newest sound checkpoint in `folder/checkpoints` where there is one.

    Args:
        config: All settings.
        folder: The run's folder; gets `checkpoints/` and `samples/`.
        data_root: Where the generated data set lives; it is drawn there if missing.
        reporter: Receives every report, on every rank.
        device: As torch names it.
        threads: CPU threads of torch in this process.
        criterion: Decides which evaluation is the best.
    """
    # By itself torch takes all cores, which other processes on this machine need too.
    torch.set_num_threads(threads)
    trainer = build_trainer(config, data_root=data_root, device=device)
    return train(trainer, folder=folder, reporter=reporter, criterion=criterion)


def build_trainer(
    config: BoxSegConfig,
    *,
    data_root: Path = Path("runs/.data"),
    device: str | torch.device = "cpu",
) -> Trainer:
    """Networks, optimizer, bank and data of a fresh run; the same on every rank.

    Weights of `model.start_from` and of checkpoints are loaded by `boxseg.engine.train.train`.

    Raises:
        DataError: a data set cannot be used.
        ConfigError: the backbone is unknown, or its weights are not to be had.
    """
    seed_everything(config.train.seed)
    train_data, val_data = build_datasets(config, data_root)
    student = build_network(config, num_classes=len(train_data.category_ids))
    if torch.device(device).type == "cpu":
        speed_up_pointwise(student)
    memory_format = torch.channels_last if config.train.channels_last else torch.contiguous_format
    student.to(device).to(memory_format=memory_format).train()
    teacher = None
    if config.teacher.on:
        # A copy of the finished student. In training mode, as its batch norms use the statistics of each batch.
        teacher = deepcopy(student).requires_grad_(False).train()
    return Trainer(
        config=with_warmups_in_steps(config),
        student=student,
        # Each rank gathers its own BatchNorm statistics; to broadcast them would give all those of rank 0.
        forward=DistributedDataParallel(student, broadcast_buffers=False)
        if is_distributed()
        else student,
        teacher=teacher,
        optimizer=build_optimizer(student, config.solver),
        bank=BANKS[config.pc.bank](config.pc.bank_size) if config.pc.on else None,
        loader=TrainLoader(
            train_data,
            config.train,
            config.data,
            rank=rank(),
            world_size=world_size(),
            device=device,
        ),
        train_data=train_data,
        val_data=val_data,
        device=torch.device(device),
    )


def build_datasets(config: BoxSegConfig, data_root: Path) -> tuple[CocoBoxes, CocoBoxes]:
    """Training boxes and validation set, with one and the same list of classes.

    Raises:
        DataError: a file cannot be used, or the two disagree about the categories.
    """
    train_source, val_source = config.data.train, config.data.val
    if not isinstance(train_source, CocoSource) or not isinstance(val_source, CocoSource):
        # Both are drawn, even if a file takes the place of one.
        toy_train, toy_val = ensure_toy(data_root, config.data.toy)
        train_source = train_source if isinstance(train_source, CocoSource) else toy_train
        val_source = val_source if isinstance(val_source, CocoSource) else toy_val
    train_data = load_boxes(
        train_source, train=True, use_masks=config.data.use_masks == "where_present"
    )
    val_data = load_boxes(val_source, train=False)
    # A label is a position in the list of classes: with another list it would mean another class.
    require_same_classes(
        train_source.annotations,
        train_data.categories,
        val_source.annotations,
        val_data.categories,
    )
    return train_data, val_data


def build_network(
    config: BoxSegConfig, *, num_classes: int, weights: str | None = None
) -> MaskNetwork:
    """The network in training mode, on the CPU; `weights` overrides `model.weights`."""
    model = config.model
    if weights is not None:
        model = model.model_copy(update={"weights": weights})
    return build_condinst(config, build_backbone(model), num_classes)


def check_start(config: BoxSegConfig, path: Path) -> None:
    """Refuse weights that the network of these settings cannot start from; classes do not matter.

    Raises:
        CheckpointError: they are missing, damaged, or of another network.
        DataError: the file holds no state dict.
    """
    # Names and shapes decide, apart from layers of classes: no weights are loaded, and one class is enough.
    take_over(build_network(config, num_classes=1, weights="none"), read_trained(path), ["any"])


def build_condinst(config: BoxSegConfig, backbone: Backbone, num_classes: int) -> CondInst:
    """CondInst with the settings of `model`, `cond` and `fcos`."""
    return CondInst(
        num_classes=num_classes,
        backbone=backbone,
        detection_loss=detection_losses,
        model=config.model,
        cond=config.cond,
        fcos=config.fcos,
    )


def speed_up_pointwise(network: nn.Module) -> None:
    """Let one-thread CPU training use oneDNN for 1x1 convolutions: about twice as fast there, same numbers.

    torch falls back to a plain matrix product for them when it has one thread, unless they are dilated; dilation has
    no meaning for a 1x1 kernel.
    """
    for module in network.modules():
        if (
            isinstance(module, nn.Conv2d)
            and module.kernel_size == (1, 1)
            and module.padding == (0, 0)
        ):
            module.dilation = (2, 2)


def with_warmups_in_steps(config: BoxSegConfig) -> BoxSegConfig:
    """The same settings with each warm-up as a number of steps, whatever it was given as."""
    changes = {}
    for group, name in WARMUPS:
        settings = getattr(config, group)
        steps = as_steps(getattr(settings, name), config.train.steps)
        changes[group] = settings.model_copy(update={name: steps})
    return config.model_copy(update=changes)


def seed_everything(seed: int) -> None:
    """Seed the global generators; the loop's own randomness is a function of seed and step."""
    random.seed(seed)
    # numpy takes seeds of 32 bits only.
    np.random.seed(seed % 2**32)  # noqa: NPY002  some libraries draw from it
    torch.manual_seed(seed)

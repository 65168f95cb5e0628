"""Plain vision transformers as backbones; their real weights need a download, so these are random."""

import pytest
import torch

from boxseg.build import build_trainer
from boxseg.config.method import ModelConfig
from boxseg.engine.train import optimise
from boxseg.model.backbone import build_backbone
from boxseg.model.vit import PlainVit, is_plain_vit

DINO_V2, DINO_V3 = "vit_small_patch14_dinov2", "vit_tiny_patch16_dinov3_qkvb"


@pytest.fixture(scope="module")
def vits():
    return {name: PlainVit(name, pretrained=False) for name in (DINO_V2, DINO_V3)}


def test_the_networks_of_dino_are_plain_and_those_with_stages_are_not():
    plain = [DINO_V2, DINO_V3, "vit_small_patch16_dinov3.lvd1689m", "vit_base_patch14_reg4_dinov2"]
    assert all(map(is_plain_vit, plain))
    assert not any(
        map(is_plain_vit, ["convnext_atto", "swin_tiny_patch4_window7_224", "resnet18"])
    )


@pytest.mark.parametrize("name", [DINO_V2, DINO_V3])
def test_every_token_stands_for_16_px_of_the_image_with_any_patch_size(vits, name):
    embedded = []
    handle = vits[name].vit.patch_embed.register_forward_hook(
        lambda module, inputs, output: embedded.append(output)
    )
    image = torch.zeros(1, 3, 96, 160)
    vits[name](image)
    image[:, :, 32:48, 112:128] = 1
    vits[name](image)
    handle.remove()
    change = (embedded[1] - embedded[0])[0].abs().sum(dim=-1)  # (H/16, W/16)
    assert change.shape == (6, 10)
    assert divmod(int(change.argmax()), 10) == (2, 7)
    assert bool(change[2, 7] > 0.8 * change.sum())


@pytest.mark.parametrize("name", [DINO_V2, DINO_V3])
def test_every_part_learns_from_random_weights(vits, name):
    sum(item.sum() for item in vits[name](torch.randn(1, 3, 64, 96))).backward()
    assert [key for key, value in vits[name].named_parameters() if value.grad is None] == []
    vits[name].zero_grad()


def test_a_network_with_loaded_weights_is_frozen_by_default(vits, tmp_path):
    torch.save(vits[DINO_V3].vit.state_dict(), tmp_path / "vit.pt")
    loaded = ModelConfig(backbone=f"timm/{DINO_V3}", weights=str(tmp_path / "vit.pt"))
    frozen = build_backbone(loaded)
    torch.testing.assert_close(
        frozen.extractor.vit.state_dict(), vits[DINO_V3].vit.state_dict(), rtol=0, atol=0
    )
    learns = [name for name, value in frozen.named_parameters() if value.requires_grad]
    assert learns == ["extractor.finer.weight", "extractor.finer.bias"]
    maps = frozen(torch.randn(1, 3, 64, 64))
    # nothing is kept to go back through it
    assert [item.requires_grad for item in maps] == [True, False, False]
    tuned = build_backbone(loaded.model_copy(update={"frozen_stages": 0}))
    assert all(value.requires_grad for value in tuned.parameters())


@pytest.mark.parametrize(("frozen_stages", "learns"), [(None, True), (1, False)])
def test_a_step_trains_the_network_or_what_is_around_it(
    tiny_config, data_root, frozen_stages, learns
):
    model = {"backbone": f"timm/{DINO_V3}", "frozen_stages": frozen_stages}
    trainer = build_trainer(
        tiny_config(model=model, solver={"backbone_lr_scale": 0.01}), data_root=data_root
    )
    rates = {
        id(value): group["base_lr"]
        for group in trainer.optimizer.param_groups
        for value in group["params"]
    }
    extractor = trainer.student.backbone.extractor
    assert (
        rates[id(extractor.finer.weight)]
        == rates[id(trainer.student.head.class_logits.weight)]
        == 1e-3
    )
    assert rates.get(id(extractor.vit.norm.weight)) == (pytest.approx(1e-5) if learns else None)
    before = {name: value.clone() for name, value in trainer.student.named_parameters()}
    metrics = optimise(trainer, next(trainer.loader.batches(0, 1)), 0)
    assert bool(torch.isfinite(metrics["train/loss"]))
    moved = {
        name
        for name, value in trainer.student.named_parameters()
        if not torch.equal(value, before[name])
    }
    assert any(".vit.blocks.0." in name for name in moved) == learns
    assert any(".vit." in name for name in moved) == learns
    assert {"backbone.extractor.finer.weight", "head.class_logits.weight"} <= moved

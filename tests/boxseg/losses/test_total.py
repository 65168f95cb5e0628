"""All losses together: names, weights, warm-ups, and batches in which something is missing."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from boxseg.config.method import BoxInstConfig, LossConfig
from boxseg.losses.total import compute_losses, warmup
from boxseg.ops.masks import box_masks
from boxseg.structures import Batch, Proposals, PseudoMasks

SIZE, CLASSES = 32, 3
TERMS = {"own", "projection", "pairwise", "mask", "affinity"}
NOW = {
    "boxinst": BoxInstConfig(warmup=0, color_thr=0.01, bottom_px=0),
    "loss": LossConfig(warmup=0),
}


def replace(settings, **changes):
    """Each change goes to the group that has the setting; `pairwise_warmup` and `pseudo_warmup` name the warm-ups."""
    names = {"boxinst": {"pairwise_warmup": "warmup"}, "loss": {"pseudo_warmup": "warmup"}}
    replaced = {}
    for group, values in settings.items():
        own = {names[group].get(name, name): value for name, value in changes.items()}
        replaced[group] = values.model_copy(
            update={n: v for n, v in own.items() if n in type(values).model_fields}
        )
    return replaced


class SmallNetwork(nn.Module):
    """Mask features, and a vector per cell that mixes them to a mask; `chosen` are its proposals."""

    def __init__(self, chosen):
        super().__init__()
        torch.manual_seed(0)
        self.vectors, self.features = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)
        self.chosen = chosen

    def forward(self, images, valid):
        maps = F.avg_pool2d(images.float() / 255 * valid[:, None], 8)
        return self.vectors(maps).flatten(2).transpose(1, 2), self.features(maps)

    def detection_losses(self, predictions, boxes, labels, *, mean_over_ranks):
        own = sum(output.square().mean() for output in predictions)
        return {"own": own / mean_over_ranks(torch.ones(()))}, self.chosen

    def mask_logits(self, predictions, image_index, handle):
        vectors, features = predictions
        logits = (features[image_index] * vectors[image_index, handle][..., None, None]).sum(
            dim=1, keepdim=True
        )
        return (
            F.interpolate(logits, scale_factor=2, mode="nearest")[:, 0] * 5
            if len(logits)
            else logits[:, 0].repeat(1, 2, 2)
        )


def make_step(boxes=(((4, 4, 20, 20), (8, 16, 30, 30)), ((0, 0, 12, 31),)), *, quality=0.5):
    """Network, predictions, batch and pseudo masks of one step."""
    images = len(boxes)
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (images, 3, SIZE, SIZE), generator=random, dtype=torch.uint8)
    batch = Batch(
        weak=pixels,
        strong=pixels,
        valid=torch.ones(images, SIZE, SIZE, dtype=torch.bool),
        boxes=[torch.tensor(image, dtype=torch.float32).view(-1, 4) for image in boxes],
        labels=[torch.arange(len(image)) % CLASSES for image in boxes],
        sizes=[(SIZE, SIZE)] * images,
        original_sizes=[(SIZE, SIZE)] * images,
        image_ids=list(range(images)),
    )
    chosen = [
        (image, 2 * box + 3, box) for image in range(images) for box in range(len(boxes[image]))
    ]
    proposals = Proposals(*torch.tensor(chosen, dtype=torch.int64).view(-1, 3).unbind(dim=1))
    pseudo = []
    for image in batch.boxes:
        mask = box_masks(image, SIZE, SIZE, stride=4) & (
            torch.rand(len(image), 8, 8, generator=random) > 0.3
        )
        number = torch.full((len(image),), quality)
        pseudo.append(PseudoMasks(mask, mask.float(), number, number, number.long() + 1))
    network = SmallNetwork(proposals)
    return network, network(batch.strong, batch.valid), batch, pseudo


def run(parts, *, settings=NOW, step=0, **changes):
    network, predictions, batch, pseudo = parts
    pseudo = changes.pop("pseudo", pseudo)
    return compute_losses(network, predictions, batch, pseudo, step=step, **settings, **changes)


def numbers(losses):
    return {name: float(value.detach()) for name, value in losses.terms.items()}


def test_warm_up_rises_linearly_from_the_first_step():
    assert [warmup(step, 4) for step in (0, 1, 3, 9)] == [0.25, 0.5, 1, 1]
    assert warmup(9_999, 10_000) == 1
    assert warmup(0, 0) == 1


def test_the_total_is_the_sum_of_terms_that_are_all_at_work():
    losses = run(make_step())
    assert set(losses.terms) == TERMS
    assert all(value > 0 for value in numbers(losses).values())
    assert all(term.dim() == 0 for term in losses.terms.values())
    torch.testing.assert_close(losses.total, sum(losses.terms.values()))


def test_every_parameter_gets_a_gradient():
    parts = make_step()
    run(parts).total.backward()
    assert all(
        parameter.grad is not None and float(parameter.grad.abs().sum()) > 0
        for parameter in parts[0].parameters()
    )


@pytest.mark.parametrize("boxes", [((), ()), (((4, 4, 20, 20),), ())])
@pytest.mark.parametrize("teacher", [True, False])
def test_missing_boxes_or_pseudo_masks_keep_names_and_gradient_paths(boxes, teacher):
    parts = make_step(boxes)
    losses = run(parts, **({} if teacher else {"pseudo": None}))
    assert set(losses.terms) == TERMS
    found = numbers(losses)
    if not any(boxes):
        assert {name for name, value in found.items() if value != 0} == {"own"}
    if not teacher:
        assert found["mask"] == found["affinity"] == 0
    losses.total.backward()
    for parameter in parts[0].parameters():
        assert parameter.grad is not None
        assert bool(torch.isfinite(parameter.grad).all())
    assert all(term.requires_grad for term in losses.terms.values())


def test_boxes_without_proposals_give_no_mask_loss():
    parts = make_step()
    none = torch.zeros(0, dtype=torch.int64)
    parts[0].chosen = Proposals(none, none, none)
    found = numbers(run(parts))
    assert found["own"] > 0
    assert found["projection"] == found["pairwise"] == found["mask"] == found["affinity"] == 0


def test_pseudo_masks_of_no_quality_teach_nothing():
    found = numbers(run(make_step(quality=0.0)))
    assert found["mask"] == found["affinity"] == 0
    assert found["projection"] > 0


def test_weights_and_warm_ups_are_inside_the_terms():
    base = numbers(run(make_step()))
    weighted = numbers(
        run(
            make_step(),
            settings=replace(
                NOW, projection_weight=2.0, pairwise_weight=3.0, mask_weight=4.0, aff_weight=0.0
            ),
        )
    )
    assert weighted["projection"] == pytest.approx(2 * base["projection"], rel=1e-5)
    assert weighted["pairwise"] == pytest.approx(3 * base["pairwise"], rel=1e-5)
    assert weighted["mask"] == pytest.approx(2 * base["mask"], rel=1e-5)
    assert weighted["affinity"] == 0
    warm = numbers(
        run(make_step(), settings=replace(NOW, pairwise_warmup=10, pseudo_warmup=4), step=0)
    )
    assert warm["pairwise"] == pytest.approx(base["pairwise"] / 10, rel=1e-5)
    assert warm["mask"] == pytest.approx(base["mask"] / 4, rel=1e-5)
    assert warm["affinity"] == pytest.approx(base["affinity"] / 4, rel=1e-5)
    assert warm["projection"] == pytest.approx(base["projection"], rel=1e-5)


@pytest.mark.parametrize(
    ("change", "terms"),
    [
        ({"dilation": 1}, {"pairwise", "affinity"}),
        ({"size": 5}, {"pairwise", "affinity"}),
        ({"color_thr": 0.00001}, {"pairwise"}),
        ({"bottom_px": 20.0}, {"pairwise", "affinity"}),
        ({"aff_thr": 0.8}, {"affinity"}),
    ],
)
def test_every_setting_changes_its_terms_only(change, terms):
    base, other = (
        numbers(run(make_step())),
        numbers(run(make_step(), settings=replace(NOW, **change))),
    )
    assert {name for name in base if base[name] != pytest.approx(other[name], rel=1e-6)} == terms


def test_whole_grey_levels_are_a_setting():
    parts = list(make_step())
    weak = torch.full_like(parts[2].weak, 100)
    weak[..., ::2, 16:] = 101  # pooled 100.5
    parts[2] = dataclasses.replace(parts[2], weak=weak)
    found = [
        numbers(run(parts, settings=replace(NOW, color_thr=0.97, truncate_colors=truncate)))[
            "pairwise"
        ]
        for truncate in (True, False)
    ]
    assert found[0] != pytest.approx(found[1], rel=1e-4)


def test_normalisers_are_means_over_processes():
    base = numbers(run(make_step()))
    doubled = numbers(run(make_step(), mean_over_ranks=lambda sums: 2 * sums))
    assert doubled["own"] == pytest.approx(base["own"] / 2, rel=1e-5)
    assert doubled["projection"] == pytest.approx(base["projection"])


def test_mask_losses_are_computed_in_full_precision_under_autocast():
    parts = make_step()
    plain = numbers(run(parts))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = run(make_step()[:1] + parts[1:])
    assert losses.total.dtype == torch.float32
    for name, value in numbers(losses).items():
        assert value == pytest.approx(plain[name], rel=1e-4)


def test_inputs_are_left_unchanged():
    parts = make_step()
    before = [parts[2].weak.clone(), *[pseudo.mask.clone() for pseudo in parts[3]]]
    run(parts)
    for copy, now in zip(
        before, [parts[2].weak, *[pseudo.mask for pseudo in parts[3]]], strict=True
    ):
        assert torch.equal(copy, now)

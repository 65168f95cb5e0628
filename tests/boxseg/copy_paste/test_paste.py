"""Peer-assisted copy-paste, with numbers worked by hand for `docs/method.md#copy-paste`."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from boxseg.config.method import PcConfig
from boxseg.config.presets import RELEASED
from boxseg.copy_paste.bank import BANKS, Peer
from boxseg.copy_paste.choose import attempt_probability, placement_range
from boxseg.copy_paste.paste import paste_peers, pixel_mask
from boxseg.ops.boxes import box_intersection
from boxseg.ops.masks import aligned_bilinear, box_masks
from boxseg.structures import Batch, PseudoMasks


def released(**changes: Any) -> PcConfig:
    """Settings of the released code, which the worked numbers are of."""
    return PcConfig(**RELEASED["pc"] | changes)


SETTINGS = released(min_area=20, warmup=0, p_end=1.0, paste_weak=True)


FIELDS = [field for field in fields(PseudoMasks) if field.name != "full"]


def with_changes(settings, **changes):
    return settings.model_copy(update=changes)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_batch(boxes, labels, *, size=64, quality=0.9, seed=0):
    """Images of noise whose pseudo masks fill the middle of their boxes."""
    images = len(boxes)
    pixels = torch.randint(
        0, 256, (2, images, 3, size, size), generator=seeded(seed), dtype=torch.uint8
    )
    boxes = [torch.tensor(image, dtype=torch.float32).view(-1, 4) for image in boxes]
    batch = Batch(
        weak=pixels[0],
        strong=pixels[1],
        valid=torch.ones(images, size, size, dtype=torch.bool),
        boxes=boxes,
        labels=[torch.tensor(image, dtype=torch.int64) for image in labels],
        sizes=[(size, size)] * images,
        original_sizes=[(size, size)] * images,
        image_ids=list(range(images)),
    )
    pseudo = []
    for image in boxes:
        soft = box_masks(image, size, size, stride=4).float() * 0.8
        count = len(image)
        pseudo.append(
            PseudoMasks(
                soft > 0.5,
                soft,
                torch.full((count,), quality),
                torch.full((count,), 0.8),
                torch.full((count,), 3),
            )
        )
    return batch, pseudo


def make_peer(label=0, *, quality=0.8, side=12, color=255):
    return Peer(
        views=torch.tensor([color, color - 100], dtype=torch.uint8)
        .repeat_interleave(3)[:, None, None]
        .repeat(1, side, side),
        mask=torch.ones(side, side, dtype=torch.bool),
        corner=(30, 20),
        box=(20.0, 30.0, 20.0 + side, 30.0 + side),
        label=label,
        quality=quality,
        score=0.7,
    )


def bank_with(*peers, kind="classes", size=80):
    bank = BANKS[kind](size)
    bank.add([(peer.label, lambda peer=peer: peer) for peer in peers], seeded())
    return bank


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 1), (1000, 0.93), (2500, 0.825), (5000, 0.65), (10_000, 0.3), (20_000, 0.3)],
)
def test_attempt_probability_of_the_worked_examples(step, expected):
    assert attempt_probability(step, released()) == pytest.approx(expected, abs=1e-5)


def test_attempt_probability_may_rise_or_have_no_warm_up():
    rising = released(p_start=0.0, p_end=0.3, warmup=100)
    assert [attempt_probability(step, rising) for step in (0, 50, 100)] == pytest.approx(
        [0, 0.15, 0.3]
    )
    assert attempt_probability(0, released(warmup=0)) == pytest.approx(0.3)


@pytest.mark.parametrize("step", [0, 50, 100])
def test_pastes_are_as_frequent_as_the_probability_says(step):
    batch, pseudo = make_batch([[[24, 24, 40, 40]]] * 20, [[0]] * 20)
    settings = with_changes(
        SETTINGS, p_start=0.9, p_end=0.3, warmup=100, min_area=0, bank_q_thr=1.0
    )
    random, bank, rates = seeded(step), bank_with(make_peer(side=6)), []
    for _ in range(20):
        *_, stats = paste_peers(
            batch, pseudo, bank, step=step, settings=settings, generator=random
        )
        rates.append(float(stats["pc/paste_rate"]))
    expected = attempt_probability(step, settings)
    assert sum(rates) / 20 == pytest.approx(
        expected, abs=4 * (expected * (1 - expected) / 400) ** 0.5
    )


def test_placement_of_the_worked_example():
    left, top = placement_range((30, 20, 60, 70), (50, 40, 90, 80), 0.1)
    assert left == pytest.approx((23, 87))
    assert top == pytest.approx((-5, 75))


def test_a_peer_is_pasted_into_both_views_and_comes_last():
    batch, pseudo = make_batch([[[8, 8, 24, 24]]], [[0]])
    changed, masks, stats = paste_peers(
        batch, pseudo, bank_with(make_peer()), step=0, settings=SETTINGS, generator=seeded(1)
    )
    assert float(stats["pc/paste_rate"]) == 1
    assert changed.labels[0].tolist()[-1] == 0
    x1, y1, x2, y2 = changed.boxes[0][-1].int().tolist()
    pasted = torch.zeros(64, 64, dtype=torch.bool)
    pasted[y1:y2, x1:x2] = True
    for before, after, color in (
        (batch.strong, changed.strong, 255),
        (batch.weak, changed.weak, 155),
    ):
        assert bool((after[0][:, pasted] == color).all())
        assert torch.equal(after[0][:, ~pasted], before[0][:, ~pasted])
    assert torch.equal(masks[0].mask[-1], pasted[2::4, 2::4])
    assert float(masks[0].quality[-1]) == pytest.approx(0.8)
    assert float(masks[0].score[-1]) == pytest.approx(0.7)
    assert not bool(masks[0].mask[:-1][:, pasted[2::4, 2::4]].any())
    assert float(masks[0].soft[:-1][:, pasted[2::4, 2::4]].sum()) == 0
    lengths = {len(getattr(masks[0], field.name)) for field in FIELDS}
    assert lengths == {len(changed.boxes[0])} == {len(changed.labels[0])}


def test_the_reference_leaves_the_weak_view_and_its_colours_as_they_were():
    batch, pseudo = make_batch([[[8, 8, 24, 24]]], [[0]])
    settings = with_changes(SETTINGS, paste_weak=False)
    changed, *_ = paste_peers(
        batch, pseudo, bank_with(make_peer()), step=0, settings=settings, generator=seeded(1)
    )
    assert torch.equal(changed.weak, batch.weak)
    assert not torch.equal(changed.strong, batch.strong)


@pytest.mark.parametrize("seed", range(20))
def test_the_pasted_box_overlaps_its_target_on_each_axis(seed):
    batch, pseudo = make_batch([[[20, 24, 44, 40]]], [[0]])
    settings = with_changes(SETTINGS, overlap=0.25, box_shift_px=100)
    changed, *_ = paste_peers(
        batch, pseudo, bank_with(make_peer()), step=0, settings=settings, generator=seeded(seed)
    )
    x1, y1, x2, y2 = changed.boxes[0][-1].tolist()
    assert (x2 - x1, y2 - y1) == (12, 12)
    assert min(x2, 44) - max(x1, 20) >= 0.25 * 12 - 0.5
    assert min(y2, 40) - max(y1, 24) >= 0.25 * 12 - 0.5


def test_among_several_places_the_one_that_hides_least_is_taken():
    batch, pseudo = make_batch([[[20, 20, 44, 44], [4, 4, 30, 60]]], [[0, 1]])
    settings = with_changes(SETTINGS, box_shift_px=64)
    covered = {}
    for placements in (1, 20):
        areas = []
        for seed in range(10):
            changed, _, _ = paste_peers(
                batch,
                pseudo,
                bank_with(make_peer()),
                step=0,
                settings=with_changes(settings, placements=placements),
                generator=seeded(seed),
            )
            if len(changed.boxes[0]) > 2:
                areas.append(float(box_intersection(changed.boxes[0][-1:], batch.boxes[0]).sum()))
        covered[placements] = sum(areas) / len(areas)
    assert covered[20] < 0.5 * covered[1]


def test_nothing_that_was_handed_in_is_changed():
    batch, pseudo = make_batch([[[8, 8, 24, 24]], [[30, 30, 50, 60]]], [[0], [0]])
    saved = [value.clone() for value in (batch.weak, batch.strong, *batch.boxes, *batch.labels)]
    saved += [getattr(one, field.name).clone() for one in pseudo for field in FIELDS]
    changed, *_ = paste_peers(
        batch, pseudo, bank_with(make_peer()), step=0, settings=SETTINGS, generator=seeded()
    )
    assert len(changed.boxes[0]) + len(changed.boxes[1]) > 2
    now = [batch.weak, batch.strong, *batch.boxes, *batch.labels]
    now += [getattr(one, field.name) for one in pseudo for field in FIELDS]
    for before, after in zip(saved, now, strict=True):
        assert torch.equal(before, after)


def test_the_same_seed_gives_the_same_paste():
    results = []
    for _ in range(2):
        torch.rand(3)  # the global generator has no part in it
        batch, pseudo = make_batch([[[8, 8, 24, 24]], [[30, 30, 50, 60]]], [[0], [0]])
        changed, *_ = paste_peers(
            batch,
            pseudo,
            bank_with(make_peer(), make_peer(color=200)),
            step=0,
            settings=SETTINGS,
            generator=seeded(5),
        )
        results.append(changed)
    assert torch.equal(results[0].strong, results[1].strong)
    assert torch.equal(torch.cat(results[0].boxes), torch.cat(results[1].boxes))


@pytest.mark.parametrize(
    ("settings", "peer"),
    [
        (with_changes(SETTINGS, p_end=0.0), make_peer()),
        (with_changes(SETTINGS, per_image=0), make_peer()),
        (SETTINGS, make_peer(label=5)),
        (with_changes(SETTINGS, min_area=144), make_peer()),
        (with_changes(SETTINGS, require_better=True), make_peer(quality=0.9)),
    ],
)
def test_an_image_that_gets_nothing_is_returned_as_it_was(settings, peer):
    batch, pseudo = make_batch([[[8, 8, 24, 24]]], [[0]])
    pseudo = [replace(pseudo[0], quality=torch.tensor([0.95]))]
    changed, masks, stats = paste_peers(
        batch, pseudo, bank_with(peer), step=0, settings=settings, generator=seeded(3)
    )
    assert changed is batch
    assert masks is pseudo
    assert float(stats["pc/paste_rate"]) == 0


def test_an_empty_bank_pastes_nothing_and_learns_the_image_first():
    batch, pseudo = make_batch([[[8, 8, 24, 24]], [[30, 30, 50, 60]]], [[0], [0]])
    bank = BANKS["classes"](80)
    changed, _, stats = paste_peers(
        batch, pseudo, bank, step=0, settings=SETTINGS, generator=seeded()
    )
    assert len(changed.boxes[0]) == 1  # the bank was empty when the first image chose
    assert len(bank) == 2
    assert float(stats["pc/bank_size"]) == 2


def test_the_lowest_quality_gets_the_peer_and_the_larger_box_breaks_a_tie():
    boxes = [[2, 2, 14, 14], [24, 2, 40, 14], [44, 44, 62, 62]]
    batch, pseudo = make_batch([boxes], [[0, 0, 0]])
    settings = with_changes(SETTINGS, target="lowest-q", overlap=0.5)
    for quality, target in (([0.9, 0.2, 0.8], 1), ([0.0, 0.7, 0.0], 2)):
        changed, *_ = paste_peers(
            batch,
            [replace(pseudo[0], quality=torch.tensor(quality))],
            bank_with(make_peer()),
            step=0,
            settings=settings,
            generator=seeded(2),
        )
        x1, y1, x2, y2 = changed.boxes[0][-1].tolist()
        tx1, ty1, tx2, ty2 = boxes[target]
        assert x1 < tx2
        assert tx1 < x2
        assert y1 < ty2
        assert ty1 < y2


def test_a_better_peer_is_looked_for_among_the_others():
    batch, pseudo = make_batch([[[8, 8, 24, 24]]], [[0]], quality=0.6)
    bank = bank_with(make_peer(quality=0.55, color=120), make_peer(quality=0.7, color=130))
    for seed in range(4):
        changed, masks, _ = paste_peers(
            batch,
            pseudo,
            bank,
            step=0,
            settings=with_changes(SETTINGS, require_better=True, bank_q_thr=0.99),
            generator=seeded(seed),
        )
        assert float(masks[0].quality[-1]) == pytest.approx(0.7)
        assert int(changed.strong.max()) >= 130


def test_mode_segmentation_ignores_the_class():
    batch, pseudo = make_batch([[[8, 8, 24, 24]]], [[0]])
    settings = with_changes(SETTINGS, mode="segmentation")
    changed, *_ = paste_peers(
        batch, pseudo, bank_with(make_peer(label=5)), step=0, settings=settings, generator=seeded()
    )
    assert changed.labels[0].tolist()[-1] == 5


def test_mode_simple_pastes_a_whole_entry_at_its_old_place_even_without_boxes():
    batch, pseudo = make_batch([[]], [[]])
    first, second = (
        make_peer(label=1, side=8),
        replace(make_peer(label=2), corner=(50, 58), box=(58.0, 50, 70, 62)),
    )
    settings = with_changes(SETTINGS, mode="simple")
    bank = bank_with(first, second, kind="images")
    changed, *_ = paste_peers(batch, pseudo, bank, step=0, settings=settings, generator=seeded())
    # the second is cut by the border
    assert changed.boxes[0].tolist() == [[20, 30, 28, 38], [58, 50, 64, 62]]
    assert changed.labels[0].tolist() == [1, 2]
    assert len(bank) == 0  # the entry is used up


def test_only_peers_of_an_entry_with_enough_in_sight_are_pasted():
    batch, pseudo = make_batch([[[0, 0, 8, 8]]], [[0]])
    settings = with_changes(SETTINGS, mode="simple", bank="images")
    peers = [
        replace(make_peer(label), corner=(30, column))
        for label, column in ((1, 63), (2, 20), (3, 63))
    ]
    bank = bank_with(*peers, kind="images")
    out, masks, stats = paste_peers(
        batch, pseudo, bank, step=0, settings=settings, generator=seeded()
    )
    assert stats["pc/paste_rate"] == 1
    assert out.labels[0].tolist() == [0, 2]
    assert out.boxes[0][1].tolist() == [20, 30, 32, 42]
    assert masks[0].mask.shape[0] == 2
    assert torch.equal(out.strong[0, 0, :, 63:], batch.strong[0, 0, :, 63:])


def test_among_equal_qualities_the_first_instance_of_an_entry_is_taken():
    batch, pseudo = make_batch([[[8, 8, 24, 24]]], [[0]])
    bank = bank_with(make_peer(color=210), make_peer(color=220), kind="images")
    changed, *_ = paste_peers(batch, pseudo, bank, step=0, settings=SETTINGS, generator=seeded())
    x1, y1, *_ = changed.boxes[0][-1].int().tolist()
    assert int(changed.strong[0, 0, y1, x1]) == 210


def test_several_peers_go_to_several_targets():
    batch, pseudo = make_batch([[[2, 2, 20, 20], [40, 40, 60, 60]]], [[0, 0]])
    bank = bank_with(*(make_peer(side=6, color=color) for color in (210, 220, 230)))
    settings = with_changes(SETTINGS, per_image=3)
    changed, *_ = paste_peers(batch, pseudo, bank, step=0, settings=settings, generator=seeded())
    assert len(changed.boxes[0]) == 4  # two targets, so two peers


def test_admission_to_the_bank():
    boxes = [[2, 2, 14, 14], [20, 2, 40, 22], [36, 2, 60, 22], [2, 40, 22, 60], [30, 40, 50, 60]]
    batch, pseudo = make_batch([boxes], [[0, 1, 2, 3, 4]])
    pseudo = [
        replace(
            pseudo[0],
            quality=torch.tensor([0.9, 0.9, 0.9, 0.4, 0.9]),
            score=torch.tensor([0.9, 0.9, 0.9, 0.9, 0.4]),
        )
    ]
    settings = with_changes(SETTINGS, p_end=0.0, bank_iou_thr=0.05)

    def admitted(**change):
        bank = BANKS["classes"](80)
        paste_peers(
            batch,
            pseudo,
            bank,
            step=0,
            settings=with_changes(settings, **change),
            generator=seeded(),
        )
        return sorted(group[0].label for group in bank.draw(None, seeded()))

    assert admitted() == [0]  # 1 and 2 overlap, 3 has low quality, 4 a low score
    assert admitted(bank_iou_thr=0.5) == [0, 1, 2]
    assert admitted(bank_q_thr=0.3, bank_s_thr=0.3) == [0, 3, 4]
    assert admitted(min_area=300) == []
    # 20 000 px at 800 px are 128 px here
    assert admitted(min_area=20_000, relative_limits=True) == [0]


def test_a_peer_is_the_instance_at_full_resolution():
    batch, pseudo = make_batch([[[9, 13, 30.5, 41.25]]], [[0]])
    soft = torch.rand(1, 16, 16, generator=seeded(4))
    pseudo = [replace(pseudo[0], soft=soft)]
    bank = BANKS["classes"](80)
    paste_peers(
        batch,
        pseudo,
        bank,
        step=0,
        settings=with_changes(SETTINGS, p_end=0.0),
        soft_thr=0.45,
        generator=seeded(),
    )
    (peer,) = next(bank.draw(None, seeded()))
    rows, columns = slice(13, 42), slice(9, 31)
    assert peer.corner == (13, 9)
    assert torch.equal(pixel_mask(peer, 0.45), aligned_bilinear(soft, 4)[0, rows, columns] > 0.45)
    assert torch.equal(peer.views[:3], batch.strong[0, :, rows, columns])
    assert torch.equal(peer.views[3:], batch.weak[0, :, rows, columns])
    assert (peer.box, peer.label) == ((9, 13, 30.5, 41.25), 0)


def test_masks_known_on_every_pixel_are_kept_pasted_and_measured_there():
    batch, pseudo = make_batch([[[8, 8, 24.5, 24.5]]], [[0]])
    full = box_masks(batch.boxes[0], 64, 64) & (torch.rand(1, 64, 64, generator=seeded(4)) > 0.3)
    pseudo = [replace(pseudo[0], full=full, mask=full[:, 2::4, 2::4])]
    area = int(full.sum())

    def run(**change):
        bank = bank_with(make_peer(label=0))
        settings = with_changes(SETTINGS, **{"bank_iou_thr": 1.0, **change})
        _, (masks,), _ = found = paste_peers(
            batch, pseudo, bank, step=0, settings=settings, generator=seeded(1)
        )
        own = [
            peer for group in bank.draw(None, seeded()) for peer in group if peer.quality != 0.8
        ]
        return found[0], masks, own

    changed, masks, (remembered,) = run(min_area=100)
    assert torch.equal(remembered.mask, full[0, 8:25, 8:25])
    assert torch.equal(masks.mask, masks.full[:, 2::4, 2::4])
    x1, y1, x2, y2 = changed.boxes[0][-1].int().tolist()
    peer = torch.zeros(64, 64, dtype=torch.bool)
    peer[y1:y2, x1:x2] = True
    assert torch.equal(masks.full[-1], peer)
    assert torch.equal(masks.full[0], full[0] & ~peer)
    assert run(min_area=area - 1, p_end=0.0)[2]
    assert not run(min_area=area, p_end=0.0)[2]  # not more than the limit, counted in pixels


@pytest.mark.parametrize("kind", ["images", "classes"])
def test_many_steps_keep_every_box_inside_its_image(kind):
    bank, random, remembered = BANKS[kind](6), seeded(9), 0
    pasted = 0.0
    for step in range(30):
        corners = torch.rand(2, 3, 2, generator=random) * 40
        boxes = torch.cat(
            [corners, corners + 6 + torch.rand(2, 3, 2, generator=random) * 16], dim=-1
        )
        batch, pseudo = make_batch(
            boxes.tolist(), torch.randint(0, 2, (2, 3), generator=random).tolist(), seed=step
        )
        settings = with_changes(SETTINGS, per_image=2, keep_sides=True, drop_slivers=True)
        changed, masks, stats = paste_peers(
            batch, pseudo, bank, step=step, settings=settings, generator=random
        )
        pasted += float(stats["pc/paste_rate"])
        remembered = max(remembered, len(bank))
        for image in range(2):
            found = changed.boxes[image]
            assert bool((found[:, 2:] - found[:, :2] >= 1).all())
            assert float(found.min()) >= 0
            assert float(found.max()) <= 64
            assert (
                len(found)
                == len(changed.labels[image])
                == len(masks[image].mask)
                == len(masks[image].quality)
            )
            assert int(masks[image].mask.sum(dim=0).max()) <= 3
    assert pasted > 5
    assert 0 < remembered <= 6


def paste_one_class(probability, kind, *, images=200, **changes):
    """Which images of a run of one class got a paste, when each has one instance good enough for the bank."""
    settings = with_changes(SETTINGS, p_end=probability, bank=kind, **changes)
    bank, random, pasted = BANKS[kind](80), seeded(7), []
    for step in range(images):
        batch, pseudo = make_batch([[[20, 20, 44, 44]]], [[0]], seed=step)
        *_, stats = paste_peers(
            batch, pseudo, bank, step=step, settings=settings, generator=random
        )
        pasted.append(float(stats["pc/paste_rate"]) == 1)
    return pasted, bank


@pytest.mark.parametrize("kind", ["images", "classes"])
def test_a_used_up_entry_leaves_before_the_images_own_instances_are_remembered(kind):
    pasted, bank = paste_one_class(1.0, kind, images=12)
    # remembered first, they were refused, and every second image found nothing
    assert pasted == [False] + [True] * 11
    assert len(bank) == (1 if kind == "images" else 12)


def test_pastes_of_one_class_are_as_frequent_as_attempts():
    pasted, _ = paste_one_class(0.765, "images")
    # A bank that remembers first is empty after each paste: 0.765 / 1.765 = 0.43.
    assert sum(pasted) / len(pasted) == pytest.approx(0.765, abs=3 * (0.765 * 0.235 / 200) ** 0.5)


def test_the_bank_of_images_takes_an_image_as_it_was_before_its_paste():
    batch, pseudo = make_batch([[[20, 20, 44, 44]]], [[0]])
    bank = bank_with(make_peer(), kind="images")
    changed, *_ = paste_peers(batch, pseudo, bank, step=0, settings=SETTINGS, generator=seeded())
    assert not torch.equal(changed.strong, batch.strong)
    ((peer,),) = bank.draw(None, seeded())
    assert torch.equal(peer.views[:3], batch.strong[0, :, 20:45, 20:45])


def test_an_entry_that_could_not_be_pasted_stays_and_keeps_its_place():
    batch, pseudo = make_batch([[[20, 20, 44, 44]]], [[0]])
    peer = make_peer(side=4)  # 16 px, too few
    bank = bank_with(peer, kind="images")
    *_, stats = paste_peers(batch, pseudo, bank, step=0, settings=SETTINGS, generator=seeded())
    assert float(stats["pc/paste_rate"]) == 0
    assert list(bank.draw(None, seeded())) == [[peer]]

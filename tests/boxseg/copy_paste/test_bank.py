"""The peer bank, as `docs/method.md#bank` says."""

import io

import pytest
import torch

from boxseg.copy_paste.bank import BANKS, ClassBank, ImageBank, Peer
from boxseg.errors import CheckpointError


def make_peer(label=0, quality=0.8, seed=0):
    random = torch.Generator().manual_seed(seed)
    return Peer(
        views=torch.randint(0, 256, (6, 4, 5), generator=random, dtype=torch.uint8),
        mask=torch.rand(4, 5, generator=random) > 0.5,
        corner=(2, 3),
        box=(3.25, 2.5, 7.75, 5.5),
        label=label,
        quality=quality,
        score=0.6,
    )


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def add(bank, peers, seed=0):
    bank.add([(peer.label, lambda peer=peer: peer) for peer in peers], seeded(seed))


def test_newest_instances_replace_the_oldest_of_the_fullest_class():
    bank = ClassBank(3)
    rare, *common = make_peer(label=7), *(make_peer(label=1) for _ in range(4))
    add(bank, [rare])
    add(bank, common)
    assert len(bank) == 3
    left = [peer for group in bank.draw(None, seeded()) for peer in group]
    assert {id(peer) for peer in left} == {id(rare), id(common[2]), id(common[3])}


def test_a_pasted_instance_stays_in_the_class_bank():
    bank, peer = ClassBank(3), make_peer()
    add(bank, [peer])
    bank.mark_used(peer)
    assert len(bank) == 1


def test_a_class_bank_draws_every_fitting_peer_once():
    bank = ClassBank(9)
    peers = [make_peer(label=label) for label in (0, 0, 1, 2)]
    add(bank, peers)
    drawn = list(bank.draw({0, 2}, seeded()))
    assert [len(group) for group in drawn] == [1, 1, 1]
    assert {id(group[0]) for group in drawn} == {id(peers[0]), id(peers[1]), id(peers[3])}
    assert list(bank.draw({5}, seeded())) == []


def test_an_image_bank_keeps_the_first_entry_of_a_label_tuple():
    bank = ImageBank(5)
    first = [make_peer(label=1), make_peer(label=0)]
    add(bank, first)
    add(bank, [])
    add(bank, [make_peer(label=1), make_peer(label=0)])
    assert len(bank) == 1
    assert next(bank.draw({1}, seeded())) == [first[0]]


def test_a_full_image_bank_drops_a_random_entry_and_a_paste_uses_up_a_whole_one():
    bank = ImageBank(2)
    for label in range(4):
        add(bank, [make_peer(label=label)], label)
    assert len(bank) == 2
    pair = [make_peer(label=8), make_peer(label=9)]
    large = ImageBank(9)
    add(large, pair)
    large.mark_used(pair[1])
    assert len(large) == 0
    large.mark_used(pair[1])  # gone already: nothing happens


def test_an_image_bank_draws_at_most_as_often_as_it_has_entries():
    bank = ImageBank(9)
    for label in range(4):
        add(bank, [make_peer(label=label)])
    assert len(list(bank.draw(None, seeded()))) == 4
    assert len(list(bank.draw({2}, seeded()))) <= 4
    assert list(ImageBank(9).draw(None, seeded())) == []


@pytest.mark.parametrize("kind", ["images", "classes"])
def test_a_bank_survives_a_checkpoint(kind):
    bank = BANKS[kind](9)
    add(bank, [make_peer(label=1, quality=0.7, seed=1), make_peer(label=1, seed=2)])
    add(bank, [make_peer(label=3, seed=3)])
    file = io.BytesIO()
    torch.save(bank.state_dict(), file)
    file.seek(0)
    fresh = BANKS[kind](9)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert len(fresh) == len(bank)
    pairs = zip(bank.draw(None, seeded()), fresh.draw(None, seeded()), strict=True)
    for before, after in [
        (one, other) for group in pairs for one, other in zip(*group, strict=True)
    ]:
        assert (before.corner, before.box, before.label, before.quality, before.score) == (
            after.corner,
            after.box,
            after.label,
            after.quality,
            after.score,
        )
        assert torch.equal(before.views, after.views)
        assert torch.equal(before.mask, after.mask)


@pytest.mark.parametrize("kind", ["images", "classes"])
def test_an_empty_bank_survives_a_checkpoint(kind):
    fresh = BANKS[kind](9)
    fresh.load_state_dict(BANKS[kind](9).state_dict())
    assert len(fresh) == 0


def test_a_bank_refuses_the_state_of_another_kind():
    with pytest.raises(CheckpointError, match=r"pc\.bank"):
        ClassBank(3).load_state_dict(ImageBank(3).state_dict())

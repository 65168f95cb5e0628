"""Location targets and proposal choice."""

import torch

from boxseg.model.fcos import make_locations
from boxseg.model.targets import assign_batch, assign_locations, choose_proposals

SIZES = (64, 128, 256, 512)
STRIDES = (8, 16, 32, 64, 128)
MAPS = [torch.zeros(1, 1, -(-128 // stride), -(-160 // stride)) for stride in STRIDES]
LOCATIONS = make_locations(MAPS, STRIDES)


def assign(boxes, labels=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.tensor(labels)
    return assign_locations(*LOCATIONS, boxes, labels, radius=1.5, sizes=SIZES)


def at(x, y, level=0):
    locations, _, levels = LOCATIONS
    return int(((locations == torch.tensor([x, y])).all(dim=1) & (levels == level)).nonzero())


def test_the_worked_box_has_nine_positives_on_the_finest_level():
    targets = assign([[10, 10, 50, 40]], [2])
    positive = targets.box_index >= 0
    expected = {(x, y) for x in (20.0, 28.0, 36.0) for y in (20.0, 28.0, 36.0)}
    assert {tuple(location) for location in LOCATIONS[0][positive].tolist()} == expected
    assert set(LOCATIONS[2][positive].tolist()) == {0}
    assert set(targets.labels[positive].tolist()) == {2}
    assert set(targets.labels[~positive].tolist()) == {-1}


def test_targets_of_the_worked_locations():
    targets = assign([[10, 10, 50, 40]])
    chosen = [at(20, 20), at(28, 28)]
    expected = torch.tensor([[1.25, 1.25, 3.75, 2.5], [2.25, 2.25, 2.75, 1.5]])
    torch.testing.assert_close(targets.distances[chosen], expected)
    torch.testing.assert_close(targets.centerness[chosen], torch.tensor([0.408248, 0.738549]))
    assert (targets.centerness[targets.box_index < 0] == 0).all()


def test_the_smaller_box_wins_a_contested_location():
    targets = assign([[0, 0, 60, 60], [16, 16, 44, 44]])
    assert targets.box_index[at(28, 28)] == 1


def test_large_boxes_go_to_coarser_levels():
    targets = assign([[0, 0, 150, 120]])
    levels = LOCATIONS[2][targets.box_index >= 0]
    assert levels.numel() > 0
    assert set(levels.tolist()) == {1}


def test_a_degenerate_first_box_does_not_disturb_the_others():
    alone, beside = (
        assign([[10, 10, 50, 40]]),
        assign([[0, 0, 0, 0], [10, 10, 50, 40], [70, 70, 60, 60]]),
    )
    assert torch.equal(alone.box_index >= 0, beside.box_index == 1)
    torch.testing.assert_close(alone.distances, beside.distances)


def test_no_boxes_make_everything_background():
    targets = assign([])
    assert (targets.box_index == -1).all()
    assert targets.distances.abs().sum() == 0


def test_a_batch_equals_its_images_one_by_one():
    boxes = [
        torch.tensor([[10.0, 10, 50, 40], [60, 30, 140, 120]]),
        torch.zeros(0, 4),
        torch.tensor([[5.0, 5, 30, 30]]),
    ]
    labels = [torch.tensor([1, 0]), torch.zeros(0, dtype=torch.int64), torch.tensor([2])]
    batch = assign_batch(*LOCATIONS, boxes, labels, radius=1.5, sizes=SIZES)
    for image in range(3):
        alone = assign_locations(*LOCATIONS, boxes[image], labels[image], radius=1.5, sizes=SIZES)
        assert torch.equal(batch.box_index[image], alone.box_index)
        assert torch.equal(batch.labels[image], alone.labels)
        torch.testing.assert_close(batch.distances[image], alone.distances)
        torch.testing.assert_close(batch.centerness[image], alone.centerness)


def proposals_by_loop(box_index, scores, max_per_image):
    """The rule of `docs/method.md#proposals` in plain loops."""
    chosen = []
    for image in range(len(box_index)):
        owners = sorted(set(box_index[image].tolist()) - {-1})
        for owner in owners:
            mine = (box_index[image] == owner).nonzero().flatten().tolist()
            mine.sort(key=lambda location: -float(scores[image, location]))
            quota = max(max_per_image // len(owners), 1)
            chosen += [(image, location, owner) for location in mine[:quota]]
    return chosen


def test_proposals_follow_the_quota_of_each_box():
    generator = torch.Generator().manual_seed(0)
    box_index = torch.randint(-1, 6, (4, 200), generator=generator)
    box_index[2] = -1
    box_index[3] = torch.where(torch.arange(200) < 190, 0, torch.arange(200) - 189)
    scores = torch.rand(4, 200, generator=generator)
    for max_per_image in (64, 7, 3):
        chosen = choose_proposals(box_index, scores, max_per_image=max_per_image)
        triples = zip(
            chosen.image_index.tolist(),
            chosen.handle.tolist(),
            chosen.box_index.tolist(),
            strict=True,
        )
        assert list(triples) == proposals_by_loop(box_index, scores, max_per_image)


def test_without_positives_there_are_no_proposals():
    chosen = choose_proposals(torch.full((2, 5), -1), torch.rand(2, 5), max_per_image=64)
    assert len(chosen.handle) == 0
    assert chosen.box_index.dtype == torch.int64

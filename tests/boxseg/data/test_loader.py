import itertools
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from boxseg.config.method import CocoSource, DataConfig, TrainConfig
from boxseg.data.dataset import CocoBoxes
from boxseg.data.loader import ImageOrder, TrainLoader, collate, eval_batches
from boxseg.data.transforms import View
from boxseg.errors import DataError
from boxseg.structures import DrawnMasks


@pytest.fixture(scope="module")
def dataset(toy):
    return CocoBoxes(toy[0], train=True)


def loader(dataset, *, workers=0, strong="strong", rank=0, world_size=1, **changes):
    train = {"image_size": (64, 80), "max_size": 200, "batch_size": 4} | changes
    data = DataConfig(strong=strong, loader_workers=workers)
    return TrainLoader(dataset, TrainConfig(**train), data, rank=rank, world_size=world_size)


def same(first, second):
    tensors = ("weak", "strong", "valid")
    return (
        all(torch.equal(getattr(first, name), getattr(second, name)) for name in tensors)
        and all(
            torch.equal(a, b)
            for a, b in zip(first.boxes + first.labels, second.boxes + second.labels, strict=True)
        )
        and first.image_ids == second.image_ids
        and first.sizes == second.sizes
    )


def view(height, width, value=9, boxes=1, image_id=1):
    image = torch.full((3, height, width), value, dtype=torch.uint8)
    size = (height, width)
    return View(
        image, torch.ones(boxes, 4), torch.zeros(boxes, dtype=torch.int64), image_id, size, size
    )


def test_padding_reaches_the_next_multiple_and_is_zero_and_invalid():
    batch = collate([view(30, 65), view(40, 50)])
    assert batch.weak.shape == (2, 3, 64, 96)
    assert batch.strong is batch.weak
    assert batch.valid.shape == (2, 64, 96)
    assert batch.sizes == [(30, 65), (40, 50)]
    assert batch.valid.sum(dim=(1, 2)).tolist() == [30 * 65, 40 * 50]
    assert batch.valid[0, :30, :65].all()
    for row in range(2):
        assert (batch.weak[row][:, batch.valid[row]] == 9).all()
        assert (batch.weak[row][:, ~batch.valid[row]] == 0).all()


def test_sizes_that_fit_are_not_padded():
    assert collate([view(64, 32)]).weak.shape == (1, 3, 64, 32)
    assert collate([view(5, 9)], divisor=4).weak.shape == (1, 3, 8, 12)


def test_an_image_without_boxes_can_be_in_a_batch():
    batch = collate([view(8, 8, boxes=0), view(8, 8, boxes=2)])
    assert [len(boxes) for boxes in batch.boxes] == [0, 2]
    assert len(batch) == 2


def test_starting_at_a_step_gives_what_a_run_from_the_start_gives(dataset):
    whole = list(loader(dataset).batches(0, 14))
    resumed = list(loader(dataset).batches(9, 5))
    assert len(resumed) == 5
    assert all(same(a, b) for a, b in zip(whole[9:], resumed, strict=True))


def test_late_views_have_another_shape_for_any_first_step_of_a_run(dataset):
    windows = {"window": 64, "object_size": (48.0, 64.0)}
    closer = windows | {"closer": 1.5, "closer_from": 0.6, "steps": 5}
    mixed = list(loader(dataset, **closer).batches(0, 5))
    early = loader(dataset, **windows).batches(0, 3)
    assert all(same(a, b) for a, b in zip(mixed[:3], early, strict=True))
    sizes = [max(size) for batch in mixed for size in batch.sizes]
    assert max(sizes[:12]) <= 64
    assert min(sizes[12:]) > 90
    (resumed,) = loader(dataset, **closer).batches(4, 1)
    assert same(mixed[4], resumed)


def test_ranks_share_the_batch_of_a_single_worker(dataset):
    alone = list(loader(dataset, batch_size=8, strong="strongv2").batches(0, 7))
    options = {"batch_size": 8, "world_size": 2, "strong": "strongv2"}
    ranks = [list(loader(dataset, rank=rank, **options).batches(0, 7)) for rank in (0, 1)]
    for step, batch in enumerate(alone):
        parts = [ranks[0][step], ranks[1][step]]
        assert batch.image_ids == parts[0].image_ids + parts[1].image_ids
        assert batch.sizes == parts[0].sizes + parts[1].sizes
        for row in range(8):
            part, part_row = parts[row // 4], row % 4
            h, w = batch.sizes[row]
            assert torch.equal(batch.strong[row, :, :h, :w], part.strong[part_row, :, :h, :w])
            assert torch.equal(batch.boxes[row], part.boxes[part_row])


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_processes_change_nothing(dataset, workers):
    expected = list(loader(dataset).batches(3, 5))
    found = list(loader(dataset, workers=workers).batches(3, 5))
    assert all(same(a, b) for a, b in zip(expected, found, strict=True))


def test_every_image_comes_once_per_epoch_in_a_new_order(dataset):
    ids = [
        image_id
        for batch in loader(dataset, batch_size=3).batches(0, 40)
        for image_id in batch.image_ids
    ]
    epochs = [ids[start : start + 40] for start in (0, 40, 80)]  # 40 is no multiple of 3
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == 40 for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_images_arrive_in_planes_and_padding_stays_black_in_both_views(dataset):
    for batch in loader(dataset, image_size=50).batches(0, 4):
        assert batch.weak.is_contiguous()
        assert batch.strong.is_contiguous()
        for image in (batch.weak, batch.strong):
            assert not image.movedim(1, 0)[:, ~batch.valid].any()


def test_without_colour_changes_both_views_are_one_tensor(dataset):
    batch = next(loader(dataset, strong="none").batches(0, 1))
    assert batch.strong is batch.weak


def test_an_image_looks_different_in_the_next_epoch(dataset):
    batches = list(loader(dataset, batch_size=1).batches(0, 80))
    first = {batch.image_ids[0]: batch for batch in batches[:40]}
    assert sum(not same(first[batch.image_ids[0]], batch) for batch in batches[40:]) > 35


def test_another_seed_gives_another_order(dataset):
    orders = [
        next(loader(dataset, batch_size=16, seed=seed).batches(0, 1)).image_ids for seed in (0, 1)
    ]
    assert orders[0] != orders[1]


def test_a_batch_may_be_larger_than_the_data_set(content, write_source):
    dataset = CocoBoxes(write_source(content), train=True)
    batch = next(loader(dataset, batch_size=7).batches(3, 1))
    assert sorted(Counter(batch.image_ids).values()) == [3, 4]


def test_batches_are_read_lazily(dataset):
    steps = loader(dataset).batches(0, 10**9)
    assert len(next(steps)) == 4


def test_reading_batches_leaves_the_global_generators_alone(dataset):
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    list(loader(dataset).batches(0, 2))
    list(loader(dataset, workers=1).batches(0, 2))
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert np.random.get_state()[1].tolist() == numpy_state  # noqa: NPY002


def test_the_loader_can_be_sent_to_another_process(dataset):
    original = loader(dataset)
    copy = pickle.loads(pickle.dumps(original))
    assert same(next(original.batches(5, 1)), next(copy.batches(5, 1)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_an_error_with_file_and_id_and_nothing_else(
    content, write_source, workers
):
    source = write_source(content)
    (source.images / "b.png").write_bytes(b"broken")
    dataset = CocoBoxes(source, train=True)
    with pytest.raises(DataError, match=r"^image 20: .*b\.png: the image cannot be read[^\n]*$"):
        list(loader(dataset, workers=workers).batches(0, 2))


def test_a_data_set_without_boxes_cannot_be_trained_on(content, write_source):
    content["annotations"] = []
    with pytest.raises(DataError, match="no image has a box"):
        loader(CocoBoxes(write_source(content), train=True))


def mixed_sizes(landscape=50, portrait=23):
    sizes = [(40, 60)] * landscape + [(60, 40)] * portrait
    return np.array(sizes, dtype=np.int64)[np.random.default_rng(0).permutation(len(sizes))]


@pytest.mark.parametrize("batch_size", [1, 4, 7, 16, 100])
@pytest.mark.parametrize(("landscape", "portrait"), [(50, 23), (30, 1), (8, 8)])
def test_grouping_by_orientation_keeps_every_image_once_per_epoch(batch_size, landscape, portrait):
    sizes = mixed_sizes(landscape, portrait)
    order = ImageOrder(sizes, seed=3, global_batch_size=batch_size)
    for epoch in range(4):
        start = epoch * len(sizes)
        assert sorted(order(start + i) for i in range(len(sizes))) == list(range(len(sizes)))


def test_most_batches_hold_one_orientation():
    sizes = mixed_sizes(500, 230)
    order = ImageOrder(sizes, seed=3, global_batch_size=8)
    steps = 10 * len(sizes) // 8
    batches = [[sizes[order(step * 8 + i)][0] for i in range(8)] for step in range(steps)]
    mixed = sum(len(set(batch)) > 1 for batch in batches)
    assert mixed <= 2 * 11
    tall = [batch[0] == 60 for batch in batches if len(set(batch)) == 1]
    changes = sum(a != b for a, b in itertools.pairwise(tall))
    assert changes > 0.3 * len(tall)  # orientations alternate, they do not come in blocks


def test_squares_are_shuffled_plainly():
    sizes = np.full((20, 2), 64, dtype=np.int64)
    order = [
        [ImageOrder(sizes, seed=0, global_batch_size=size)(i) for i in range(20)]
        for size in (2, 8)
    ]
    assert order[0] == order[1]


def test_evaluation_reads_the_given_images_in_order(toy):
    dataset = CocoBoxes(toy[1], train=False)
    indices = [7, 2, 5]
    batches = list(
        eval_batches(
            dataset, indices, TrainConfig(image_size=96, max_size=500), batch_size=2, workers=0
        )
    )
    assert [batch.image_ids for batch in batches] == [
        [dataset.image_id(7), dataset.image_id(2)],
        [dataset.image_id(5)],
    ]
    assert batches[0].strong is batches[0].weak
    assert batches[0].sizes == [(96, 96), (96, 96)]
    assert batches[0].original_sizes == [(128, 128), (128, 128)]
    torch.testing.assert_close(batches[1].boxes[0], dataset[5].boxes * 0.75)


def test_evaluation_works_with_loader_processes_images_without_boxes_and_no_images(
    content, write_source
):
    content["annotations"] = content["annotations"][:1]
    dataset = CocoBoxes(write_source(content), train=False)
    train = TrainConfig(image_size=40, max_size=100)
    (batch,) = eval_batches(dataset, [0, 1], train, batch_size=2, workers=1)
    assert [len(boxes) for boxes in batch.boxes] == [1, 0]
    assert batch.weak.shape == (2, 3, 64, 64)
    assert list(eval_batches(dataset, [], train, batch_size=2, workers=0)) == []


def test_training_on_the_real_sets_reads(real_set):
    path = real_set / "annotations" / "train_boxes.json"
    dataset = CocoBoxes(CocoSource(images=real_set / "images", annotations=path), train=True)
    batch = next(loader(dataset, image_size=128, max_size=256, batch_size=4).batches(0, 1))
    for boxes, (h, w) in zip(batch.boxes, batch.sizes, strict=True):
        assert len(boxes) > 0
        assert (boxes >= 0).all()
        assert (boxes[:, 2] <= w).all()
        assert (boxes[:, 3] <= h).all()


def test_drawn_masks_are_sampled_at_the_cells_of_the_padded_batch():
    random = torch.Generator().manual_seed(0)
    masks = [torch.rand(2, *size, generator=random) > 0.5 for size in ((30, 65), (41, 50))]
    views = [
        replace(
            view(*mask.shape[1:], boxes=2), drawn=DrawnMasks(mask, torch.tensor([True, False]))
        )
        for mask in masks
    ]
    batch = collate(views)
    for mask, drawn in zip(masks, batch.drawn, strict=True):
        padded = torch.zeros(2, 64, 96, dtype=torch.bool)
        padded[:, : mask.shape[1], : mask.shape[2]] = mask
        assert torch.equal(drawn.mask, padded[:, 2::4, 2::4])
        assert drawn.present.tolist() == [True, False]
    assert collate([view(30, 65)]).drawn is None


def test_drawn_masks_change_nothing_else_in_a_batch_and_work_with_loader_processes(toy, dataset):
    drawn = CocoBoxes(toy[0], train=True, use_masks=True)
    with_masks, in_processes, without = (
        list(loader(data, workers=workers).batches(0, 2))
        for data, workers in ((drawn, 0), (drawn, 1), (dataset, 0))
    )
    for own, other, plain in zip(with_masks, in_processes, without, strict=True):
        assert same(own, plain)
        assert plain.drawn is None
        assert all(
            torch.equal(a.mask, b.mask) for a, b in zip(own.drawn, other.drawn, strict=True)
        )
        assert all(each.present.all() for each in own.drawn)

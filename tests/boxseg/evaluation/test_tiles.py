"""Large images in tiles: bounded memory, and every object once and whole."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from boxseg.build import build_trainer
from boxseg.config.method import BoxSegConfig, FcosConfig
from boxseg.data.loader import collate
from boxseg.data.transforms import View
from boxseg.evaluation import validate
from boxseg.evaluation.finder import Finder
from boxseg.evaluation.tiles import Tile, cut_tiles, tile_starts
from boxseg.ops.masks import tight_boxes
from boxseg.predict import Predictor
from boxseg.predict import predictor as predict
from boxseg.structures import MaskNetwork, RawDetections

SIDE = 128


class ColorNetwork(MaskNetwork):
    """Finds every patch of one grey level: what it sees of it, and that without a mistake."""

    def __init__(self, scores=None):
        super().__init__()
        self.scores = scores or {}
        """Grey level -> score where less than 64 columns of a patch are seen; else 0.9."""
        self.shapes = []

    def forward(self, images, valid):
        self.shapes.append(tuple(images.shape))
        return images[:, 0]

    def detect(self, predictions, *, score_thr, pre_topk):
        found = []
        for image in predictions:
            levels = image.unique()[1:]  # 0 is the background
            boxes = tight_boxes(image == levels[:, None, None])
            narrow = boxes[:, 2] - boxes[:, 0] < 64
            scores = [
                self.scores.get(level, 0.9) if few else 0.9
                for level, few in zip(levels.tolist(), narrow.tolist(), strict=True)
            ]
            found.append(
                RawDetections(
                    boxes, torch.zeros_like(levels).long(), torch.tensor(scores), levels.long()
                )
            )
        return found

    def mask_logits(self, predictions, image_index, handle):
        mask = (predictions[image_index] == handle[:, None, None]).float()
        return (F.avg_pool2d(mask[:, None], 4)[:, 0] - 0.5) * 20

    def detection_losses(self, predictions, boxes, labels, *, mean_over_ranks):
        raise NotImplementedError


def make_batch(patches, size, *, original_size=None):
    """One image of (height, width) with patches x1 y1 x2 y2 of the grey levels 1, 2, …"""
    image = torch.zeros(3, *size, dtype=torch.uint8)
    for level, (x1, y1, x2, y2) in enumerate(patches, 1):
        image[:, y1:y2, x1:x2] = level
    boxes = torch.tensor(patches, dtype=torch.float32).reshape(-1, 4)
    view = View(image, boxes, torch.arange(len(boxes)), 7, original_size or size, size)
    return collate([view])


def find(network, batch, *, side, at_once=4):
    finder = Finder(network, batch, FcosConfig())
    for tiles in cut_tiles(batch, side=side, at_once=at_once):
        finder.add(tiles, network(tiles.batch.weak, tiles.batch.valid))
    return finder.detections()


def assert_same(left, right):
    """The same objects, in any order."""
    assert len(left.boxes) == len(right.boxes)
    order = [int((left.boxes - box).abs().sum(dim=1).argmin()) for box in right.boxes]
    assert sorted(order) == list(range(len(order)))
    torch.testing.assert_close(left.boxes[order], right.boxes, atol=1e-3, rtol=0)
    torch.testing.assert_close(left.scores[order], right.scores, atol=1e-3, rtol=0)
    assert torch.equal(left.masks[order], right.masks)


def test_tiles_cover_an_axis_and_overlap_by_a_quarter():
    for side in (64, 96, 128, 320):
        for length in range(1, 1200, 7):
            starts = tile_starts(length, side)
            assert starts[0] == 0
            assert all(start % 32 == 0 for start in starts)
            assert length <= starts[-1] + side < length + 32 or length <= side
            assert all(32 <= after - before <= 0.75 * side for before, after in pairwise(starts))
    assert tile_starts(300, 128) == [0, 96, 192]
    assert tile_starts(128, 128) == [0]


def test_every_box_is_in_the_tile_that_shows_most_of_it():
    patches = [(10, 10, 30, 40), (110, 20, 140, 60), (100, 100, 220, 190)]
    batch = make_batch(patches, (200, 300))
    parts = list(cut_tiles(batch, side=SIDE, at_once=3))
    assert max(len(part.batch) for part in parts) == 3
    seen = []
    for part in parts:
        for position, place in enumerate(part.places):
            top, left = place.corner
            height, width = part.batch.sizes[position]
            tile = batch.weak[0, :, top : top + height, left : left + width]
            assert torch.equal(part.batch.weak[position, :, :height, :width], tile)
            assert part.batch.valid[position].sum() == height * width
            back = part.batch.boxes[position] + torch.tensor([left, top] * 2)
            for row, box in zip(place.rows.tolist(), back, strict=True):
                seen.append(row)
                assert part.batch.labels[position].tolist() == place.rows.tolist()
                if row < 2:
                    assert box.tolist() == list(patches[row])
    assert sorted(seen) == [0, 1, 2]


@pytest.mark.parametrize("original_size", [(250, 400), (375, 600), (125, 200)])
def test_objects_are_found_once_and_whole(original_size):
    patches = [
        (4, 4, 24, 36),  # in one tile only
        (112, 40, 140, 72),  # across the first border
        (240, 112, 272, 144),  # across four tiles
        (180, 8, 300, 28),  # larger than the overlap
        (8, 180, 392, 212),  # larger than a tile, through all of a row
        (96, 60, 128, 92),  # ends at a border
        (376, 100, 400, 130),  # at the end of the image
    ]
    batch = make_batch(patches, (250, 400), original_size=original_size)
    network = ColorNetwork()
    (whole,) = find(network, batch, side=None)
    (tiled,) = find(network, batch, side=SIDE)
    assert len(whole.boxes) == len(patches)
    assert tiled.masks.shape[1:] == original_size
    assert tiled.image_id == 7
    assert_same(tiled, whole)


def test_a_weak_detection_of_a_whole_object_does_not_replace_its_parts():
    patches = [(40, 20, 150, 60)]  # the first tile cuts it at 128, the second one at 96
    batch = make_batch(patches, (100, 224))
    (found,) = find(ColorNetwork(scores={1: 0.1}), batch, side=SIDE)
    (whole,) = find(ColorNetwork(), batch, side=None)
    assert whole.boxes.tolist() == [[40, 20, 150, 60]]
    # a part that scores ten times as much stays as it is
    assert found.boxes[0].tolist() == [40, 20, 128, 60]
    assert float(found.scores[0]) > 2 * float(found.scores[1])


def test_memory_is_bounded_for_images_of_any_size():
    network = ColorNetwork()
    for size in ((500, 900), (2000, 100), (128, 4000)):
        find(network, make_batch([(10, 10, 40, 40)], size), side=SIDE, at_once=3)
    assert len(network.shapes) > 20
    assert max(shape[0] for shape in network.shapes) == 3
    assert {shape[2:] for shape in network.shapes} == {(128, 128)}


def test_images_that_fit_in_a_tile_give_the_same_as_without_tiles(trained_run):
    predictor = Predictor(trained_run.checkpoint)
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
        for size in ((64, 64), (50, 60))
    ]
    before = predictor(images)
    with_tiles(predictor, 96)
    for here, there in zip(predictor(images), before, strict=True):
        assert torch.equal(here.masks, there.masks)
        assert torch.equal(here.scores, there.scores)
        assert torch.equal(here.boxes, there.boxes)


def test_a_large_image_is_predicted_in_tiles_of_a_bounded_size(trained_run, monkeypatch):
    predictor = Predictor(trained_run.checkpoint)
    with_tiles(predictor, 64, eval_size=200)
    shapes = []
    forward = predictor.network.forward

    def watch(batch, valid):
        shapes.append(tuple(batch.shape))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("too little memory")
        return forward(batch, valid)

    monkeypatch.setattr(predictor.network, "forward", watch)
    monkeypatch.setitem(predict.BATCH_SIZE, "cpu", 4)
    image = torch.randint(
        0, 256, (3, 100, 150), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    (found,) = predictor([image])
    assert found.masks.shape[1:] == (100, 150)
    assert len(found.boxes) <= predictor.config.fcos.topk
    assert (found.scores.diff() <= 0).all()
    assert {shape[1:] for shape in shapes} == {(3, 64, 64)}
    assert max(shape[0] for shape in shapes) == 4
    with_tiles(predictor, None)
    shapes.clear()
    predictor([image])
    assert shapes == [(1, 3, 224, 320)]


def with_tiles(predictor, side, **changes):
    values = predictor.config.model_dump()
    values["train"] |= {"eval_tile": side, **changes}
    predictor.config = BoxSegConfig.model_validate(values)


@pytest.fixture
def evaluate(tiny_config, data_root, tmp_path):
    def run(**train):
        trainer = build_trainer(tiny_config(train={"seed": 1, **train}), data_root=data_root)
        return validate.validate(trainer, folder=tmp_path, step=6)[1]

    return run


def test_an_evaluation_in_tiles_has_the_metrics_of_one_of_whole_images(evaluate, tmp_path):
    whole, one_tile, tiled = (
        evaluate(),
        evaluate(eval_tile=64),
        evaluate(eval_tile=64, eval_size=96),
    )
    assert one_tile == whole
    # where masks differ in quality, and some are good and some are not
    at_times = {"qam/quality_auroc", "qam/quality_rank"}
    assert tiled.keys() - at_times == whole.keys() - at_times
    assert 0 <= tiled["qam/pseudo_iou"] <= 1
    assert (tmp_path / "samples/step-00000006.png").exists()


def test_labels_of_tiles_are_put_together_at_their_places():
    tile, other = Tile(0, (0, 0), torch.tensor([1])), Tile(0, (1, 2), torch.tensor([0, 2]))
    first = (tile, torch.ones(1, 2, 3, dtype=torch.bool), torch.tensor([0.5]))
    second = (other, torch.ones(2, 3, 2, dtype=torch.bool), torch.tensor([0.2, 0.8]))
    masks, quality = validate._join_labels([first, second], 3, (4, 4))
    assert masks.sum(dim=(1, 2)).tolist() == [6, 6, 6]
    assert masks[1, :2, :3].all()
    assert masks[2, 1:, 2:].all()
    assert quality.tolist() == pytest.approx([0.2, 0.5, 0.8])


def test_sides_that_pyramids_cannot_have_are_refused(tiny_config):
    with pytest.raises(ValueError, match="multiple of 32"):
        tiny_config(train={"eval_tile": 100})

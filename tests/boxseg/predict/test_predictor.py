"""Images as the predictor takes them."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from boxseg.errors import BoxSegError, DataError, ShapeError
from boxseg.predict import predictor as predict
from boxseg.predict.predictor import BATCH_PIXELS, Predictor, as_image, in_batches


@pytest.fixture
def predictor(trained_run):
    return Predictor(trained_run.checkpoint)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    sizes = [(64, 64), (50, 70), (64, 60), (70, 50), (64, 64)]
    return [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes
    ]


@pytest.mark.parametrize("memory", [8, 1])
def test_images_are_found_alike_in_batches_and_alone(predictor, images, monkeypatch, memory):
    alone = predictor(images)  # on a CPU one by one
    monkeypatch.setitem(predict.BATCH_SIZE, "cpu", 4)
    seen = []
    forward = predictor.network.forward

    def watch(batch, valid):
        if len(batch) > memory:
            raise torch.OutOfMemoryError("too little memory")
        seen.append(len(batch))
        return forward(batch, valid)

    monkeypatch.setattr(predictor.network, "forward", watch)
    together = predictor(images)
    assert sorted(seen) == ([1, 1, 1, 2] if memory > 1 else [1] * 5)
    for number, (here, there) in enumerate(zip(together, alone, strict=True)):
        assert here.image_id == there.image_id == number
        torch.testing.assert_close(here.scores, there.scores, atol=1e-3, rtol=0)
        assert (here.masks != there.masks).float().mean() < 1e-3


def test_an_image_too_large_for_the_memory_is_refused_with_the_way_out(
    predictor, images, monkeypatch
):
    def fail(batch, valid):
        raise torch.OutOfMemoryError("too little memory")

    monkeypatch.setattr(predictor.network, "forward", fail)
    with pytest.raises(
        BoxSegError, match=r"64 x 64 px .* does not fit in memory; use --device cpu"
    ):
        predictor(images[:1])


def test_batches_are_bounded_in_number_and_pixels():
    half = BATCH_PIXELS // 2
    items = [1, 1, 1, half, half, half + 1, 3 * half, 1]
    assert list(in_batches(items, size=2, pixels=int)) == [
        [1, 1],
        [1, half],
        [half],
        [half + 1],
        [3 * half],
        [1],
    ]


def test_a_file_of_16_bits_is_read_as_in_training(tmp_path):
    Image.fromarray(np.array([[0, 0x4000], [0x8000, 0xFFFF]], dtype=np.uint16)).save(
        tmp_path / "a.png"
    )
    assert as_image(tmp_path / "a.png")[0].tolist() == [[0, 0x40], [0x80, 0xFF]]


def test_an_array_equals_its_tensor():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert torch.equal(as_image(pixels), as_image(torch.from_numpy(pixels).permute(2, 0, 1)))


def test_an_array_that_runs_backwards_is_read_as_its_copy():
    bgr = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert torch.equal(as_image(bgr[..., ::-1]), as_image(bgr[..., ::-1].copy()))


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (2, 4, 4, 3), (3, 4, 4), (0, 4, 3)])
def test_an_array_of_another_shape_is_refused(shape):
    with pytest.raises(ShapeError, match=re.escape(f"shape {shape}; ") + ".*uint8 RGB"):
        as_image(np.zeros(shape, dtype=np.uint8))


@pytest.mark.parametrize("item", [Image.new("RGB", (4, 4)), b"street.jpg", None])
def test_what_is_neither_path_nor_pixels_is_refused(item):
    with pytest.raises(ShapeError, match=f"type {type(item).__name__}; .* RGB array"):
        as_image(item)


@pytest.mark.parametrize("image", ["street.jpg", Path("a.jpg"), np.zeros((4, 4, 3), np.uint8)])
def test_one_image_without_a_list_is_refused(predictor, image):
    with pytest.raises(ShapeError, match=r"a list of images is needed \(write \[image\]\)"):
        predictor(image)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.png"):
        as_image(str(tmp_path / "none.png"))

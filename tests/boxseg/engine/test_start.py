"""Runs that start from trained weights: what is taken over, what starts from scratch, and what is refused."""

import shutil

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from boxseg.build import build_network, build_trainer, check_start
from boxseg.engine import checkpoint
from boxseg.engine.events import StartReport
from boxseg.engine.start import TrainedWeights, read_trained, take_over
from boxseg.engine.train import train
from boxseg.errors import CheckpointError, DataError

NEW_IMAGES = {"toy": {"train_images": 20, "seed": 9}}
SHORT = {"steps": 6, "batch_size": 4, "eval_every": 6, "panels": 0}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    return tmp_path_factory.mktemp("earlier")


@pytest.fixture
def run(tiny_config, recorder, data_root):
    def start(folder, *, stop_at=None, **changes):
        reporter = recorder(stop_at)
        config = tiny_config(
            **{"method": "boxinst", "data": NEW_IMAGES, "train": SHORT, **changes}
        )
        return train(
            build_trainer(config, data_root=data_root), folder=folder, reporter=reporter
        ), reporter

    return start


@pytest.fixture
def trained(run, earlier):
    """A run of 40 updates."""
    if not (earlier / "checkpoints").exists():
        data, length = (
            {"toy": {"train_images": 40}},
            {**SHORT, "steps": 40, "batch_size": 8, "eval_every": 40},
        )
        run(earlier, data=data, train=length, solver={"lr": 2e-3})
    return earlier


def test_a_start_from_another_run_is_ahead_on_a_few_new_images(run, trained, tmp_path):
    _, fresh = run(tmp_path / "fresh")
    _, tuned = run(tmp_path / "tuned", model={"start_from": trained})
    assert fresh.starts == []
    assert [str(each).split(": ", 1)[1] for each in tuned.starts] == [
        "92 of 92 weights taken over, known classes: disc, square, star, ring, corner, crescent"
    ]
    assert sum(tuned.losses()) < sum(fresh.losses()) - 6 * 0.1  # 0.25 a step measured
    assert max(tuned.losses()) < max(fresh.losses())


def test_other_classes_get_rows_of_their_own_in_the_last_layer(run, trained, tmp_path):
    classes = {"toy": {"train_images": 4, "shapes": ["ellipse", "star"]}}
    _, reporter = run(
        tmp_path, data=classes, model={"start_from": trained}, train={**SHORT, "steps": 1}
    )
    (report,) = reporter.starts
    assert report.classes == ("star",)
    assert report.anew == ()
    assert reporter.losses()[0] > 0


def test_rows_follow_the_names_of_classes(tiny_config):
    before, after = (build_network(tiny_config(), num_classes=count) for count in (3, 2))
    torch.nn.init.normal_(before.head.class_logits.bias)
    fresh = {name: value.clone() for name, value in after.state_dict().items()}
    weights = TrainedWeights("before", before.state_dict(), ["cat", "dog", "cow"])
    report = take_over(after, weights, ["Dog", "hen"])
    assert report.classes == ("Dog",)
    now, then = after.state_dict(), before.state_dict()
    for name in ("head.class_logits.weight", "head.class_logits.bias"):
        assert torch.equal(now[name][0], then[name][1])
        assert torch.equal(now[name][1], fresh[name][1])


def test_an_equal_number_of_other_classes_does_not_make_them_common(tiny_config):
    before, after = (build_network(tiny_config(), num_classes=2) for _ in range(2))
    report = take_over(
        after, TrainedWeights("before", before.state_dict(), ["cat", "dog"]), ["hen", "cow"]
    )
    assert report.classes == ()
    assert report.anew == ("head.class_logits.weight", "head.class_logits.bias")
    assert not torch.equal(after.head.class_logits.weight, before.head.class_logits.weight)


def test_a_bare_file_is_taken_where_shapes_fit(tiny_config, tmp_path):
    before, after = (build_network(tiny_config(), num_classes=count) for count in (2, 3))
    save_file(before.state_dict(), tmp_path / "a.safetensors")
    torch.save({"state_dict": before.state_dict()}, tmp_path / "b.pt")
    for name in ("a.safetensors", "b.pt"):
        report = take_over(after, read_trained(tmp_path / name), ["x", "y", "z"])
        assert report.classes is None
        assert report.anew == ("head.class_logits.weight", "head.class_logits.bias")
        assert torch.equal(
            after.backbone.extractor.conv1[0].weight, before.backbone.extractor.conv1[0].weight
        )


def test_another_width_takes_what_fits_and_says_what_does_not(tiny_config):
    before, after = (
        build_network(tiny_config(model={"channels": width}), num_classes=2) for width in (16, 24)
    )
    report = take_over(
        after, TrainedWeights("before", before.state_dict(), ["a", "b"]), ["a", "b"]
    )
    assert report.taken >= 60
    assert "head.controller.weight" in report.anew
    assert torch.equal(
        after.backbone.extractor.conv1[0].weight, before.backbone.extractor.conv1[0].weight
    )


def test_weights_of_which_nothing_fits_are_refused_and_change_nothing(tiny_config):
    network = build_network(tiny_config(), num_classes=2)
    fresh = {name: value.clone() for name, value in network.state_dict().items()}
    strange = {f"strange.{name}": value for name, value in nn.Linear(3, 3).state_dict().items()}
    classes = {name: value + 1 for name, value in fresh.items() if "class_logits" in name}
    with pytest.raises(
        CheckpointError,
        match=r"there: no layer has the name and shape .* model.backbone and model.channels",
    ):
        take_over(network, TrainedWeights("there", strange | classes, ["a", "b"]), ["a", "b"])
    assert all(torch.equal(value, fresh[name]) for name, value in network.state_dict().items())


def test_unreadable_weights_are_refused(tiny_config, trained, tmp_path):
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(DataError, match=r"text.pt: cannot be read as a state dict"):
        check_start(tiny_config(), tmp_path / "text.pt")
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        check_start(tiny_config(), tmp_path)
    check_start(tiny_config(), trained)


def test_a_resumed_run_does_not_load_the_start_again(run, trained, tmp_path):
    start = shutil.copytree(trained, tmp_path / "start", symlinks=True)
    whole, _ = run(tmp_path / "whole", model={"start_from": start})
    run(tmp_path / "parts", stop_at=2, model={"start_from": start})
    shutil.rmtree(start)
    resumed, reporter = run(tmp_path / "parts", model={"start_from": start})
    assert reporter.starts == []
    assert (resumed.step, resumed.metrics) == (6, whole.metrics)
    ends = [
        checkpoint.load_network(tmp_path / name / "checkpoints/last", "student")
        for name in ("whole", "parts")
    ]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        run(tmp_path / "new", model={"start_from": start})


def test_the_teacher_starts_from_the_same_weights(
    tiny_config, recorder, data_root, trained, tmp_path
):
    trainer = build_trainer(
        tiny_config(model={"start_from": trained}, train={"steps": 1}), data_root=data_root
    )
    seen = {}

    class Look(recorder):
        def on_start(self, report):
            seen.update(
                {name: value.clone() for name, value in trainer.teacher.state_dict().items()}
            )

    train(trainer, folder=tmp_path, reporter=Look())
    taken = read_trained(trained).state
    assert all(torch.equal(value, taken[name]) for name, value in seen.items())


def test_the_report_lists_the_first_names_only():
    report = StartReport("there", 2, tuple("abcdefgh"), None)
    assert (
        str(report)
        == "starts from there: 2 of 10 weights taken over; new: a, b, c, d, e, f and 2 more"
    )

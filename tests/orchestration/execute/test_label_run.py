"""`boxseg label` without a run: settings are chosen, a run is trained, and the command continues after every stop."""

import contextlib
import io
import json
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tiny_sets import KINDS, without_masks, write_set

from boxseg.engine.train import optimise
from orchestration.cli.app import run
from orchestration.config.spec import load_run
from orchestration.execute.label_run import LabelTask, find_same_run
from orchestration.planning.recipe import WINDOW_PX
from orchestration.record.run_folder import RunFolder
from orchestration.tracking.tracker import Tracker

TINY = shlex.split(
    "--set model.backbone=timm/test_resnet --set model.weights=none --set model.channels=16 --set model.tower_convs=1 "
    "--set cond.branch_channels=16 --set cond.branch_convs=1 --set train.window=64 --set train.object_size=[24,48] "
    "--set train.batch_size=2 --set train.steps=6 --set train.save_every=2 --set train.eval_size=64 "
    "--set resources.cpus_per_worker=1"
)


def prepare(folder: Path, make_store) -> list[str]:
    """The command for four pictures with boxes alone, to give in a folder."""
    drawn = write_set(folder / "drawn", KINDS["rings"], images=4)
    without_masks(drawn, folder / "boxes.json")
    for storage in ("out/runs", "elsewhere"):
        (folder / storage).mkdir(parents=True)
        make_store(folder / storage / "mlflow.db")
    return ["label", "boxes.json", "--images", str(drawn.images), "--output", "out", *TINY]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_store) -> list[str]:
    """The command, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return prepare(tmp_path, make_store)


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    folder: Path
    command: list[str]
    out: str
    """What it printed, as JSON."""
    err: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, make_store) -> Finished:
    """The command, once it has ended."""
    folder = tmp_path_factory.mktemp("finished")
    command = prepare(folder, make_store)
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.chdir(folder)
        assert run([*command, "--json"]) == 0
    return Finished(folder, command, out.getvalue(), err.getvalue())


@pytest.fixture
def done(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command, in the folder where it has ended; tests do not change its output."""
    monkeypatch.chdir(finished.folder)
    return finished.command


def runs(storage: str = "out/runs") -> list[RunFolder]:
    return [RunFolder(path.parent) for path in Path(storage).glob("*/*/status.json")]


def test_boxes_alone_become_masks(done, finished):
    told = json.loads(finished.out)
    assert told["boxes"] == len(json.loads(Path("boxes.json").read_text())["annotations"])
    assert (
        told["expected_iou"]["low"] <= told["expected_iou"]["mean"] <= told["expected_iou"]["high"]
    )
    assert Path(told["review"]).exists()
    assert "timing a few updates" in finished.err
    assert "for 6 updates" in finished.err
    (trained,) = runs()
    assert told["run"] == str(trained.path.absolute())
    assert trained.status().status == "finished"
    assert load_run(Path("out/recipe.yaml")).train.steps == 6
    labels = json.loads(Path("out/labels.coco.json").read_text())["annotations"]
    assert all(each["segmentation"]["counts"] for each in labels)


def test_repeating_the_command_neither_chooses_nor_trains_nor_labels_again(
    done, monkeypatch, capsys
):
    monkeypatch.setattr("boxseg.engine.pace.time_update", None)
    monkeypatch.setattr("boxseg.engine.train.optimise", None)
    assert run(done) == 0
    told = capsys.readouterr().err
    assert "is trained already" in told
    assert "4/4 images\n" not in told
    assert len(runs()) == 1


def test_a_killed_run_continues_from_its_last_checkpoint(ask, monkeypatch, capsys):
    def killed(trainer, batch, step):
        if step == 5:
            raise KeyboardInterrupt
        return optimise(trainer, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr("boxseg.engine.train.optimise", killed)
        assert run(ask) == 130
    assert not Path("out/labels.jsonl").exists()
    steps = []

    def counted(trainer, batch, step):
        steps.append(step)
        return optimise(trainer, batch, step)

    monkeypatch.setattr("boxseg.engine.pace.time_update", None)
    monkeypatch.setattr("boxseg.engine.train.optimise", counted)
    assert run(ask) == 0
    assert steps == [4, 5]
    assert len(runs()) == 1
    assert Path("out/labels.coco.json").exists()


def test_after_a_kill_during_writing_the_recipe_it_is_chosen_again_and_nothing_is_trained_twice(
    done,
):
    Path("out/recipe.yaml").unlink()  # the request is written first
    assert run(done) == 0
    assert Path("out/recipe.yaml").exists()
    assert len(runs()) == 1


def test_a_stop_with_its_state_saved_says_how_to_continue(done, monkeypatch, capsys):
    (trained,) = runs()
    interrupted = replace(trained.status(), status="interrupted")
    monkeypatch.setattr("orchestration.execute.label_run.find_same_run", lambda spec: interrupted)
    monkeypatch.setattr("orchestration.execute.run.train_run", lambda spec, *, resume: interrupted)
    assert run(done) == 75
    assert "the same command goes on" in capsys.readouterr().err


def test_a_stop_after_the_last_update_ends_the_whole_command(ask, monkeypatch, capsys):
    close = Tracker.close

    def close_when_asked_to_stop(tracker, **options):
        signal.raise_signal(signal.SIGTERM)
        close(tracker, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "close", close_when_asked_to_stop)
        assert run(ask) == 75
    assert runs()[0].status().status == "finished"
    assert not Path("out/labels.coco.json").exists()
    assert "the same command goes on" in capsys.readouterr().err
    assert run(ask) == 0
    assert Path("out/labels.coco.json").exists()


def test_a_plan_shows_all_and_writes_nothing_and_loads_no_torch(done):
    before = sorted(Path().rglob("*"))
    program = (
        "import sys; from orchestration.cli.app import run; code = run(sys.argv[1:]); "
        "sys.exit(code or (99 if {'torch', 'ray', 'mlflow'} & set(sys.modules) else 0))"
    )
    command = [sys.executable, "-c", program, *done, "--output", "other", "--plan"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    assert sorted(Path().rglob("*")) == before
    assert "# longer side of boxes: " in shown.stdout
    assert "window: 64" in shown.stdout
    assert "for 6 updates" in shown.stderr


def test_a_plan_of_what_would_be_refused_ends_with_the_reason(ask, capsys):
    pictures = Path(ask[ask.index("--images") + 1])
    next(pictures.iterdir()).write_bytes(b"no picture")
    assert run([*ask, "--plan"]) == run(ask) == 3
    told = capsys.readouterr()
    assert "for 6 updates" in told.err
    assert told.err.count("error: ") == 2


def test_a_plan_of_a_yolo_folder_writes_nothing_either(done, capsys):
    before = sorted(Path().rglob("*"))
    assert run(["label", "out/yolo", "--plan", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["settings"]
    assert told["train"]["window"] == WINDOW_PX
    assert told["data"]["train"]["annotations"] == str(Path("labels/yolo/boxes.json").absolute())
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            ["--minutes", "7"],
            "was chosen for another --minutes; name another --output, or remove it",
        ),
        (["--set", "train.seed=4"], "another --set"),
        (["--set", "trian.seed=4"], "trian is not a setting; did you mean train?"),
        (["--train-on", "drawn/boxes.json"], "another --train-on"),
    ],
)
def test_another_request_is_not_mixed_with_the_first(done, more, told, capsys):
    assert run([*done, *more]) == 2
    assert told in capsys.readouterr().err


def test_other_boxes_are_not_mixed_with_the_first(done, capsys):
    before = Path("boxes.json").read_text()
    content = json.loads(before)
    content["annotations"].pop()
    Path("boxes.json").write_text(json.dumps(content))
    assert run(done) == 2
    assert "was chosen for another DATA, --train-on" in capsys.readouterr().err
    Path("boxes.json").write_text(before)


def test_a_recipe_from_elsewhere_is_left_as_it_is(ask, capsys):
    Path("out/recipe.yaml").write_text("name: mine\n")
    assert run(ask) == 2
    assert "was not chosen by `boxseg label`" in capsys.readouterr().err
    assert Path("out/recipe.yaml").read_text() == "name: mine\n"


@pytest.mark.parametrize(
    "more",
    [["--minutes", "5"], ["--train-on", "boxes.json"], ["--set", "train.steps=3"], ["--plan"]],
)
def test_options_of_training_are_refused_where_nothing_is_trained(done, more, capsys):
    assert run(["label", *done[1:4], "--source", "box", *more]) == 2
    assert f"{more[0]}: is for training" in capsys.readouterr().err


def test_masks_to_fuse_with_also_count_where_the_run_is_trained(done, finished, capsys):
    drawn = str(next((finished.folder / "drawn").rglob("*.json")))
    assert run([*done, "--fuse-with", drawn]) == 2
    assert "labels made with another fuse_with" in capsys.readouterr().err
    new = [*done, "--output", "joined", "--fuse-with"]
    for masks, told in (("none.json", "does not exist"), ("boxes.json", "has no mask for any")):
        assert run([*new, masks]) == 3
        assert told in capsys.readouterr().err
        assert not Path("joined").exists()


def test_what_is_left_out_of_masks_to_fuse_with_is_reported_once(done, finished, tmp_path, caplog):
    masks = json.loads(next((finished.folder / "drawn").rglob("*.json")).read_text())
    masks["images"].pop()
    (tmp_path / "masks.json").write_text(json.dumps(masks))
    assert run([*done, "--fuse-with", str(tmp_path / "masks.json")]) == 2
    warned = [
        record.getMessage() for record in caplog.records if "masks.json" in record.getMessage()
    ]
    assert len(warned) == len(set(warned)) > 0


def test_train_on_and_storage_can_name_other_boxes_and_another_folder(ask, tmp_path):
    taught = write_set(tmp_path / "taught", KINDS["rings"], images=3, seed=1)
    assert run([*ask, "--train-on", str(taught.annotations), "--storage", "elsewhere"]) == 0
    (trained,) = runs("elsewhere")
    assert load_run(trained.config_path).data.train == taught
    assert not list(Path("out").rglob("status.json"))
    labels = json.loads(Path("out/labels.coco.json").read_text())
    assert len(labels["images"]) == 4


def test_only_a_run_with_the_same_settings_is_continued(done):
    recipe = Path("out/recipe.yaml")
    assert find_same_run(load_run(recipe)) is not None
    assert find_same_run(load_run(recipe, ["train.steps=7"])) is None
    assert find_same_run(load_run(recipe, ["name=other"])) is None


def test_time_for_labelling_leaves_less_for_training(tmp_path):
    many, few = (
        write_set(tmp_path / "a", KINDS["small"], images=8),
        write_set(tmp_path / "b", KINDS["rings"], images=2),
    )
    task = LabelTask(few, few, name="it", folder=tmp_path, minutes=2.0)
    assert replace(task, data=many).choose()[1].steps < task.choose()[1].steps

import json
import os
from pathlib import Path

import pytest

from boxseg.engine.checkpoint import (
    find_best,
    find_checkpoint_damage,
    find_sound,
    publish,
    save_checkpoint,
)
from boxseg.errors import ConfigError, StorageError
from orchestration.cli.app import run as main
from orchestration.config.resolved import dump_resolved, parse_resolved
from orchestration.config.spec import RunSpec
from orchestration.record.find_runs import find_run, find_trained, list_runs, resolve_start_from
from orchestration.record.run_folder import RunFolder
from orchestration.store.mirror import Mirror, fetch_newest, in_hand, is_local
from orchestration.store.places import shown
from orchestration.tracking.repair import repair

from .conftest import Machines, make_run, save

NETWORK = "student.safetensors"
"""What a checkpoint before its first evaluation is used for."""


def keys(machines: Machines) -> list[str]:
    """What the store has of the run."""
    mirror = Mirror(machines.run)
    return sorted(
        entry.key.removeprefix(mirror.prefix) for entry in mirror.store.entries(mirror.prefix[:-1])
    )


def writes(machines: Machines) -> list[str]:
    """Names of the objects that were written, in their order."""
    puts = [request.key for request in machines.store.requests if request.method == "PUT"]
    return [key.partition("aaaaaa/")[2] for key in puts]


def test_another_machine_reads_what_this_one_wrote(machines: Machines):
    with machines.on("a"):
        run = make_run(machines.run)
        run.report(5, {"train/loss": 0.5})
        run.report(10, {"val/mask_ap": 0.25}, is_best=True)
        save(machines.run, 10, best=True)
        assert Mirror(machines.run).push()
    with machines.on("b"):
        assert [each.id for each in list_runs(machines.folder)] == [machines.run.name]
        found = find_run(machines.folder, "toys")
        assert found.path == machines.run
        assert found.stored().best == {"val/mask_ap": 0.25}
        assert found.history("train/loss") == [(5, 0.5)]
        assert not list(machines.run.rglob("*.safetensors")), "weights come when they are wanted"
        trained = find_trained(machines.folder, "toys")
        assert find_checkpoint_damage(trained, only=NETWORK) is None
        assert (trained / "student.safetensors").read_bytes().startswith(b"weights 10 ")


def test_only_the_better_network_of_a_trained_run_is_fetched(machines: Machines):
    with machines.on("a"):
        make_run(machines.run)
        files = {name: name.encode() for name in (NETWORK, "teacher.safetensors", "state.pt")}
        checkpoints = machines.run / "checkpoints"
        checkpoints.mkdir()
        about = {"best_step": 10, "network": "teacher"}
        publish(checkpoints, save_checkpoint(checkpoints, step=10, files=files, about=about))
        Mirror(machines.run).push()
    with machines.on("b"):
        trained = find_trained(machines.folder, "toys")
        assert sorted(path.name for path in trained.iterdir()) == [
            "about.json",
            "teacher.safetensors",
        ]
        machines.store.requests.clear()
        find_trained(machines.folder, "toys")
        assert not machines.store.requests, "nothing travels twice"
        fetch_newest(machines.run / "checkpoints")
        assert find_checkpoint_damage(trained) is None, "whoever goes on needs all of it"


def test_a_network_that_is_damaged_in_the_store_is_not_used(machines: Machines):
    with machines.on("a"):
        make_run(machines.run)
        step = save(machines.run, 10, best=True)
        mirror = Mirror(machines.run)
        mirror.push()
        key = (step / NETWORK).relative_to(machines.run)
        mirror.store.write(f"{mirror.prefix}{key}", b"something else")
    with machines.on("b"):
        trained = find_trained(machines.folder, "toys")
        assert not (trained / NETWORK).exists()
        assert "is missing" in str(find_checkpoint_damage(trained, only=NETWORK))


def test_a_checkpoint_counts_from_its_last_file_on_and_states_come_at_the_end(machines: Machines):
    with machines.on("a"):
        make_run(machines.run).report(10, {"train/loss": 0.5})
        save(machines.run, 10)
        Mirror(machines.run).push()
    sent = writes(machines)
    step = "checkpoints/step-00000010"
    assert set(sent[:2]) == {f"{step}/student.safetensors", f"{step}/state.pt"}
    assert sent[-2:] == [f"{step}/about.json", "status.json"]
    assert sent.index("metrics.jsonl") < sent.index(f"{step}/about.json")


def test_only_what_changed_is_sent_and_what_has_gone_is_removed(machines: Machines):
    with machines.on("a"):
        run = make_run(machines.run)
        for step in (10, 20, 30):
            save(machines.run, step)
        mirror = Mirror(machines.run)
        assert mirror.push()
        assert not mirror.push(), "nothing new"
        before = len(writes(machines))
        run.report(35, {"train/loss": 0.5})
        save(machines.run, 40)  # publishing it removes step 20
        assert mirror.push()
        step = "checkpoints/step-00000040"
        assert sorted(writes(machines)[before:]) == [
            f"{step}/about.json",
            f"{step}/state.pt",
            f"{step}/student.safetensors",
            "metrics.jsonl",
            "status.json",
        ]
        assert {Path(key).parts[1] for key in keys(machines) if "step-" in key} == {
            "step-00000030",
            "step-00000040",
        }


@pytest.mark.parametrize("meanwhile", ["_present", "send_weights", "_send"])
@pytest.mark.parametrize("more", [[40], [40, 50, 60]], ids=["slow", "faster than the store"])
def test_the_best_checkpoint_in_the_store_is_the_reported_one(
    machines: Machines, monkeypatch, meanwhile: str, more: list[int]
):
    def train(*steps: int) -> None:
        for step in steps:
            save(machines.run, step, best=True)
            run.report(step, {"val/mask_ap": step / 100}, is_best=True)

    with machines.on("a"):
        run = make_run(machines.run)
        mirror = Mirror(machines.run)
        train(10, 20)
        mirror.push()
        train(30)
        usual = getattr(mirror, meanwhile)

        def interrupted(*arguments):
            monkeypatch.setattr(mirror, meanwhile, usual)
            if meanwhile != "_present":
                train(*more)
                return usual(*arguments)
            found = usual()
            train(*more)
            # looked at one after the other, some before and some after that
            return {name: about for name, about in found.items() if (machines.run / name).exists()}

        monkeypatch.setattr(mirror, meanwhile, interrupted)
        mirror.push()
    with machines.on("b"):  # the other machine is lost
        Mirror(machines.run).pull()
        best = RunFolder(machines.run).stored().best_step
        assert (machines.run / f"checkpoints/step-{best:08d}/about.json").exists()


def test_a_checkpoint_that_was_removed_here_without_its_weights_is_removed_there(
    machines: Machines,
):
    with machines.on("a"):
        make_run(machines.run)
        save(machines.run, 10)
        Mirror(machines.run).push()
    with machines.on("b"):
        mirror = Mirror(machines.run)
        mirror.pull()
        save(machines.run, 20)
        save(machines.run, 30)
        assert not (machines.run / "checkpoints/step-00000010").exists()
        mirror.push()
        assert not [key for key in keys(machines) if "step-00000010" in key]


@pytest.mark.parametrize("fault", ["missing", "damaged"])
def test_half_uploaded_and_damaged_checkpoints_are_passed_over(machines: Machines, fault: str):
    with machines.on("a"):
        make_run(machines.run)
        save(machines.run, 10)
        save(machines.run, 20)
        mirror = Mirror(machines.run)
        mirror.push()
        key = f"{mirror.prefix}checkpoints/step-00000020/student.safetensors"
        if fault == "missing":
            mirror.store.delete([key])
        else:
            mirror.store.write(key, b"half of it")
        # only its weights are there: nobody takes it for a checkpoint
        mirror.store.write(f"{mirror.prefix}checkpoints/step-00000030/state.pt", b"state")
    with machines.on("b"):
        Mirror(machines.run).pull()
        fetch_newest(machines.run / "checkpoints")
        sound = find_sound(machines.run / "checkpoints")
        assert sound is not None
        assert sound.name == "step-00000010"


def test_resuming_elsewhere_downloads_one_checkpoint_and_knows_the_best(machines: Machines):
    with machines.on("a"):
        make_run(machines.run)
        save(machines.run, 10, best=True)
        for step in (99_999_990, 100_000_000):
            written = save(machines.run, step)
            about = json.loads((written / "about.json").read_bytes())
            assert about["best_step"] == 0  # of this small stand-in; the real one names it
        Mirror(machines.run).push()
    with machines.on("b"):
        Mirror(machines.run).pull()
        machines.store.requests.clear()
        fetch_newest(machines.run / "checkpoints")
        fetched = {request.key.partition("checkpoints/")[2] for request in machines.store.requests}
        assert fetched == {"step-100000000/student.safetensors", "step-100000000/state.pt"}
        assert find_best(machines.run / "checkpoints") is None  # no link travels


def test_a_record_of_another_machine_replaces_ours_unless_we_drove_last(machines: Machines):
    with machines.on("a"):
        make_run(machines.run)
        mirror = Mirror(machines.run)
        mirror.push()
    with machines.on("b"):
        other = Mirror(machines.run)
        other.pull()
        RunFolder(machines.run).report(5, {"train/loss": 0.5})
        other.push()
    with machines.on("a"):
        RunFolder(machines.run).report(4, {"train/loss": 0.4})  # never sent: it was cut off
        Mirror(machines.run).pull()
        assert RunFolder(machines.run).history("train/loss") == [(5, 0.5)]
    with machines.on("b"):
        # killed after it was sent and before that was noted: what came later is here only
        mirror = Mirror(machines.run)
        (machines.run / ".store.driver").write_text("ours")
        mirror.store.write(f"{mirror.prefix}.driver", b'{"token": "ours"}')
        mirror.store.write(
            f"{mirror.prefix}metrics.jsonl", (machines.run / "metrics.jsonl").read_bytes() + b"\n"
        )
        RunFolder(machines.run).report(6, {"train/loss": 0.6})
        Mirror(machines.run).pull()
        assert RunFolder(machines.run).history("train/loss") == [(5, 0.5), (6, 0.6)]


def test_readers_leave_a_run_alone_that_this_machine_drives(machines: Machines):
    with machines.on("a"):
        make_run(machines.run)
        Mirror(machines.run).push()
        with in_hand(machines.run):
            machines.store.requests.clear()
            assert find_run(machines.folder, "toys").stored().step == 0
        asked = {
            request.key.partition("aaaaaa/")[2]
            for request in machines.store.requests
            if not request.lists
        }
        assert asked == set()


def test_files_removed_in_the_store_are_removed_here_too(machines: Machines):
    with machines.on("a"):
        make_run(machines.run)
        (machines.run / "samples").mkdir()
        (machines.run / "samples/one.png").write_bytes(b"png")
        Mirror(machines.run).push()
    with machines.on("b"):
        Mirror(machines.run).pull()
        assert (machines.run / "samples/one.png").exists()
    with machines.on("a"):
        (machines.run / "samples/one.png").unlink()
        Mirror(machines.run).push()
    with machines.on("b"):
        Mirror(machines.run).pull()
        assert not (machines.run / "samples/one.png").exists()


def test_a_trial_belongs_to_the_tree_of_its_sweep(machines: Machines):
    with machines.on("a"):
        make_run(machines.run)
        trial = machines.run / "20260101-000000-aaaaaa-00"
        make_run(trial)
        save(trial, 10, best=True)
        Mirror(machines.run).push()
    with machines.on("b"):
        trained = find_trained(machines.folder, "20260101-000000-aaaaaa-00")
        assert find_checkpoint_damage(trained, only=NETWORK) is None
        assert trained.parent.parent == machines.run / "20260101-000000-aaaaaa-00"


def test_an_mlflow_of_this_machine_stays_here_and_that_of_a_server_is_known_everywhere(machines):
    with machines.on("a"):
        make_run(machines.run)
        RunFolder(machines.run).write_tracking({"uri": "sqlite:////here/mlflow.db", "run_id": "1"})
        Mirror(machines.run).push()
        assert "tracking.json" not in keys(machines)
        RunFolder(machines.run).write_tracking({"uri": "http://tracker:5000", "run_id": "1"})
        Mirror(machines.run).push()
        assert "tracking.json" in keys(machines)


@pytest.mark.parametrize(
    ("name", "stays"),
    [
        ("status.json", False),
        ("checkpoints/step-00000001/about.json", False),
        ("trial-00/metrics.jsonl", False),
        (".lock", True),
        ("checkpoints/.step-00000001-abc/state.pt", True),
        ("pulse.json", True),
        ("trial-00/stop", True),
        ("logs/ray.log", True),
        ("trial-00/logs/ray.log", True),
    ],
)
def test_which_files_never_travel(name: str, stays: bool):
    assert is_local(name) == stays


def test_requests_of_listing_grow_with_runs_and_not_with_their_files(machines: Machines):
    with machines.on("a"):
        make_run(machines.run)
        for step in range(1, 40):
            RunFolder(machines.run).report(step, {"train/loss": 0.5})
        save(machines.run, 10)
        Mirror(machines.run).push()
    with machines.on("b"):
        machines.store.requests.clear()
        list_runs(machines.folder)
        first = list(machines.store.requests)
        assert [request.lists for request in first] == [True, True, True, False]
        assert not any(request.lists_all for request in first)
    with machines.on("b"):
        machines.store.requests.clear()
        list_runs(machines.folder)
        list_runs(machines.folder)  # within seconds nothing is asked again
        assert len(machines.store.requests) == 3, "the state has not changed"


def test_a_missing_bucket_and_a_missing_server_are_reported(machines: Machines, monkeypatch):
    with machines.on("a"):
        machines.storage = "s3://nobucket/runs"
        with pytest.raises(StorageError, match="there is no such bucket; make it"):
            list_runs(machines.folder)
        monkeypatch.setattr("orchestration.store.client.RETRY_S", 0.1)
        os.environ["AWS_ENDPOINT_URL"] = "http://127.0.0.1:9"
        machines.storage = "s3://other/runs"
        with pytest.raises(
            StorageError, match=r"does not answer as it should.* http://127.0.0.1:9"
        ):
            list_runs(machines.folder)


def test_a_run_can_start_from_the_address_of_another_on_any_machine(
    machines: Machines,
):
    with machines.on("a"):
        make_run(machines.run)
        save(machines.run, 10, best=True)
        Mirror(machines.run).push()
        address = shown(machines.run)
    with machines.on("b"):
        spec = RunSpec.model_validate({"model": {"start_from": address}})
        assert resolve_start_from(spec).model.start_from == machines.run
        best = machines.run / "checkpoints/step-00000010"
        assert find_checkpoint_damage(best, only=NETWORK) is None
        resolved = parse_resolved(dump_resolved(spec))
        assert resolved["model"]["start_from"] == address, "other machines have other folders"
    with machines.on("c"):
        step = f"{address}/checkpoints/step-00000010"
        spec = RunSpec.model_validate({"model": {"start_from": step}})
        assert (
            find_checkpoint_damage(resolve_start_from(spec).model.start_from, only=NETWORK) is None
        )
    with pytest.raises(ValueError, match=r"start_from: ftp://host/x is no address"):
        RunSpec.model_validate({"model": {"start_from": "ftp://host/x"}})


def test_reading_continues_where_answers_were_cut_off(machines: Machines):
    with machines.on("a"):
        make_run(machines.run).report(5, {"train/loss": 0.5})
        save(machines.run, 10, best=True)
        Mirror(machines.run).push()
    with machines.on("b"):
        machines.store.fault = "cut"
        trained = find_trained(machines.folder, "toys")
        assert find_checkpoint_damage(trained, only=NETWORK) is None
        assert RunFolder(machines.run).history("train/loss") == [(5, 0.5)]


def test_an_empty_store_is_called_by_its_address(
    machines: Machines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "toys.yaml"
    file.write_text(f"name: toys\nstorage: {machines.storage}\n")
    with machines.on("a"):
        assert main(["train", str(file), "--auto-resume", "--plan"]) == 0
        assert f"under {machines.storage}: starting" in capsys.readouterr().err
        with pytest.raises(ConfigError, match=f"^{machines.storage}: no runs here"):
            list(repair(machines.folder))

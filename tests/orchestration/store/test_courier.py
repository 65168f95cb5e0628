import contextlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_training import make_training

from boxseg.engine.checkpoint import find_checkpoint_damage, find_sound, newest_step
from boxseg.engine.events import EvalReport, StepReport
from boxseg.errors import StorageError
from orchestration.config.spec import RunSpec
from orchestration.execute.payload import Payload
from orchestration.execute.reporter import FileReporter
from orchestration.execute.worker import folder_received, train_here
from orchestration.record.run_folder import RunFolder
from orchestration.store import client, courier
from orchestration.store.courier import Courier, DriverLink
from orchestration.store.desk import Desk, read_records, write_records
from orchestration.store.mirror import DROVE, Mirror, fetch_checkpoint, fetch_newest
from orchestration.store.places import mirrors, moved, shown, storage_folder

from .conftest import Machines, make_run, save


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courier, "TELL_S", 0.05)
    monkeypatch.setattr(courier, "MOST_WAIT_S", 0.2)
    monkeypatch.setattr(client, "RETRIES", 1)
    client._open.cache_clear()


@pytest.fixture
def desk(machines: Machines) -> Desk:
    """With a run that its driver, on machine a, has just begun."""
    desk = Desk()
    with machines.on("a"):
        make_run(machines.run)
        desk.lay(shown(machines.run), read_records(machines.run))
    return desk


@contextmanager
def training(machines: Machines, desk: Desk, name: str = "b") -> Iterator[Path]:
    """The run's folder on another machine, which the driver does not see."""
    with machines.on(name), Courier(desk, machines.run, leads=True):
        yield machines.run


def hear(machines: Machines, desk: Desk) -> RunFolder:
    """The driver's folder of the run, with everything that was reported."""
    with machines.on("a"):
        run = RunFolder(machines.run)
        for changes in desk.collect().values():
            write_records(run, changes)
        return run


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_records_go_to_the_driver_and_weights_to_the_store(machines: Machines, desk: Desk):
    with training(machines, desk) as folder:
        run = RunFolder(folder)
        run.report(5, {"train/loss": 0.5})
        save(folder, 10, best=True)
        run.report(10, {"val/mask_ap": 0.25}, is_best=True)
        run.finish("finished")
    heard = hear(machines, desk)
    assert heard.stored().status == "finished"
    assert heard.stored().best_step == 10
    assert heard.history("train/loss") == [(5, 0.5)]
    with machines.on("a"):
        checkpoint = machines.run / "checkpoints/step-00000010"
        assert [path.name for path in checkpoint.iterdir()] == ["about.json"]
        mirror = Mirror(machines.run)
        prefix = f"{mirror.prefix}checkpoints/step-00000010"
        keys = [entry.key for entry in mirror.store.entries(prefix)]
        assert sorted(Path(key).name for key in keys) == ["state.pt", "student.safetensors"]
        mirror.push()  # from now on it counts
        mirror.fetch_checkpoint(checkpoint)
        assert find_sound(machines.run / "checkpoints") == checkpoint


def test_a_checkpoint_is_not_reported_before_the_store_has_its_weights(
    machines: Machines, desk: Desk
):
    with training(machines, desk) as folder:
        machines.store.fault = "away"
        save(folder, 10)
        RunFolder(folder).report(11, {"train/loss": 0.5})
        wait_for(lambda: hear(machines, desk).stored().step == 11)
        with machines.on("a"):
            assert not list(machines.run.glob("checkpoints/step-*"))
        machines.store.fault = "none"
        wait_for(lambda: bool(list(hear(machines, desk).path.glob("checkpoints/*/about.json"))))


def test_checkpoints_are_sent_in_the_order_in_which_they_were_written(
    machines: Machines, desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    tried: list[str] = []
    send, records = Mirror.send_weights, courier.records_of

    def watch(mirror: Mirror, name: str) -> bool:
        tried.append(name)
        return send(mirror, name)

    monkeypatch.setattr(Mirror, "send_weights", watch)
    # as a file system may list them
    monkeypatch.setattr(
        courier, "records_of", lambda folder: dict(sorted(records(folder).items(), reverse=True))
    )
    with training(machines, desk) as folder:
        machines.store.fault = "away"
        for step in (10, 20, 30):
            save(folder, step)
        wait_for(lambda: bool(tried))
        machines.store.fault = "none"  # and the end waits until all are sent
    first_tries = list(dict.fromkeys(tried))
    assert len(first_tries) > 1
    assert first_tries == sorted(first_tries)


@pytest.mark.parametrize("patience_s", [60.0, 0.2])
def test_an_end_is_reported_once_the_store_has_its_last_checkpoint_or_nothing_more_is_tried(
    machines: Machines, desk: Desk, monkeypatch, patience_s: float
):
    monkeypatch.setattr(courier, "GIVE_UP_S", patience_s)
    with training(machines, desk) as folder:
        machines.store.fault = "away"
        save(folder, 10)
        run = RunFolder(folder)
        run.finish("finished")
        run.append_metrics(11, {"system/cpu": 1.0})
        wait_for(lambda: hear(machines, desk).history("system/cpu") == [(11, 1.0)])
        assert not hear(machines, desk).stored().is_final
        if patience_s > 1:
            machines.store.fault = "none"
    heard = hear(machines, desk)
    assert heard.stored().is_final
    assert (heard.path / "checkpoints/step-00000010").exists() == (patience_s > 1)


def train(machines: Machines, desk: Desk) -> list[str]:
    """Train a run of ten steps on the machine of the block around; the store goes away before its only evaluation.

    Gives the step at which each of its processes began.
    """

    def loop(config: object, *, folder: Path, reporter: FileReporter, **_: object):
        found = find_sound(folder / "checkpoints")
        with (folder / "starts").open("a") as file:
            file.write(f"{newest_step(folder / 'checkpoints')}\n")
        metrics = {"val/mask_ap": 0.25}
        if found is None:
            reporter.on_step(StepReport(5, {"train/loss": 0.5}))
            machines.store.fault = "none" if "c" in mirrors().parts else "away"
        written = found or save(folder, 10, best=True)
        reporter.on_eval(EvalReport(10, metrics, written, True, is_repeated=found is not None))
        return SimpleNamespace(step=10, metrics=metrics)

    driver_link = DriverLink(desk, mirrors(), "")
    spec = RunSpec.model_validate({"train": {"steps": 10}})
    payload = Payload(spec, machines.run, machines.run, train_fn=loop, driver_link=driver_link)
    train_here(payload, device="cpu")
    return (machines.run / "starts").read_text().split()


@pytest.mark.parametrize(("then", "begins"), [("b", ["0", "10"]), ("c", ["0", "0"])])
def test_a_run_whose_store_stays_away_fails_and_is_resumed_where_its_checkpoint_is(
    machines: Machines, desk: Desk, monkeypatch, then: str, begins: list[str]
):
    monkeypatch.setattr(courier, "GIVE_UP_S", 0.3)
    with (
        machines.on("b"),
        pytest.raises(StorageError, match=r"has not taken step-00000010 for .* it is in /"),
    ):
        train(machines, desk)
    heard = hear(machines, desk).stored()
    assert heard.failure is not None
    assert (heard.status, str(heard.failure.failure_class)) == ("failed", "disk_full")
    assert (heard.step, heard.best_step) == (10, None), "a best checkpoint that nobody has"

    machines.store.fault = "none"
    with machines.on("a"):
        run = RunFolder(machines.run)
        run.start()
        desk.lay(shown(run.path), read_records(run.path))
    with machines.on(then):
        assert train(machines, desk) == begins
    heard = hear(machines, desk).stored()
    assert (heard.status, heard.step, heard.best_step) == ("finished", 10, 10)
    with machines.on("a"):
        Mirror(machines.run).push()
    with machines.on("d"):
        Mirror(machines.run).pull()
        fetch_newest(machines.run / "checkpoints")
        assert newest_step(machines.run / "checkpoints") == 10
        assert find_sound(machines.run / "checkpoints") is not None
        assert RunFolder(machines.run).history("train/loss") == [(5, 0.5)]


@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_a_run_whose_best_checkpoint_the_store_has_lost_takes_the_best_that_is_left(
    machines: Machines, desk: Desk, damage: str
):
    spec = RunSpec.model_validate({"train": {"steps": 20, "report_every": 5}})
    scores = {5: 0.3, 10: 0.6, 15: 0.2, 20: 0.1}
    script = {step: {"val/mask_ap": score} for step, score in scores.items()}
    loop = make_training(script={spec.qam.k_top: script})

    def killed_at_20(*arguments: object, reporter: FileReporter, **named: object) -> object:
        real_on_step = reporter.on_step

        def die(report: StepReport) -> None:
            if report.step == 20:
                raise KeyError(20)
            real_on_step(report)

        reporter.on_step = die  # type: ignore[method-assign]
        return loop(*arguments, reporter=reporter, **named)

    for name, train_fn in (("b", killed_at_20), ("c", loop)):
        with machines.on("a"):
            run = RunFolder(machines.run)
            run.start()
            desk.lay(shown(run.path), read_records(run.path))
        with machines.on(name), contextlib.suppress(KeyError):
            driver_link = DriverLink(desk, mirrors(), "")
            payload = Payload(spec, machines.run, machines.run, "inline", train_fn, driver_link)
            train_here(payload, device="cpu")
        heard = hear(machines, desk)
        with machines.on("a"):
            driver = Mirror(machines.run)
            driver.push()
        if name == "b":
            assert heard.stored().best_step == 10
            weights = f"{driver.prefix}checkpoints/step-00000010/state.pt"
            driver.store.delete([weights])
            if damage == "damaged":
                driver.store.write(weights, b"other")
    status = heard.stored()
    assert (status.status, status.best_step, status.best) == ("finished", 15, script[15])
    with machines.on("d"):
        Mirror(machines.run).pull()
        best = fetch_checkpoint(RunFolder(machines.run).best_checkpoint)
        assert best.name == "step-00000015"
        assert find_checkpoint_damage(best) is None


def test_a_failure_is_reported_while_the_store_is_away(machines: Machines, desk: Desk):
    with training(machines, desk) as folder:
        RunFolder(folder).report(5, {"train/loss": 0.5})
    machines.store.fault = "away"
    with machines.on("b"):
        save(machines.run, 10)
        driver_link, began = DriverLink(desk, mirrors(), ""), time.monotonic()
        with folder_received(driver_link, machines.run, trains=False):
            RunFolder(machines.run).finish("failed", StorageError("the store is away"))
        assert time.monotonic() - began < 20
    heard = hear(machines, desk)
    assert heard.stored().failure is not None
    assert heard.history("train/loss") == [(5, 0.5)]
    assert not list(heard.path.glob("checkpoints/*/about.json")), "nobody else has it"


def test_a_best_evaluation_is_reported_once_the_store_has_its_checkpoint(machines: Machines, desk):
    with training(machines, desk) as folder:
        run = RunFolder(folder)
        for step, fault in ((10, "none"), (20, "away")):
            machines.store.fault = fault
            save(folder, step, best=True)
            run.report(step, {"val/mask_ap": step / 100}, is_best=True)
            wait_for(lambda: hear(machines, desk).stored().step == step)  # noqa: B023
            wait_for(lambda: hear(machines, desk).stored().best_step == 10)
        assert hear(machines, desk).stored().best == {"val/mask_ap": 0.1}
        machines.store.fault = "none"
        wait_for(lambda: hear(machines, desk).stored().best_step == 20)
        assert (hear(machines, desk).path / "checkpoints/step-00000020/about.json").exists()


def test_ray_gets_an_evaluation_once_its_checkpoint_is_in_the_store(machines: Machines, desk):
    """A scheduler may end the process at once, which may be the only one with the checkpoint."""
    heard: list[float] = []
    spec = RunSpec.model_validate({"train": {"steps": 40}})
    with machines.on("b"), Courier(desk, machines.run, leads=True) as carrier:
        run = RunFolder(machines.run)
        payload = Payload(spec, run.path, run.path, driver_link=DriverLink(desk, mirrors(), ""))
        reporter = FileReporter(
            run, payload, send=lambda told: heard.append(told["step"]), courier=carrier
        )
        machines.store.fault = "away"
        for step in (10, 20):
            reporter.on_eval(EvalReport(step, {"val/mask_ap": 0.1}, save(run.path, step)))
        reporter.on_step(StepReport(21, {"train/loss": 0.5}))
        assert heard == [], "and training went on"
        wait_for(lambda: hear(machines, desk).stored().step == 21)
        machines.store.fault = "none"
        written = [run.path / f"checkpoints/step-000000{step}" for step in (10, 20)]
        wait_for(lambda: all(map(carrier.has_sent, written)))
        reporter.on_step(StepReport(22, {"train/loss": 0.5}))
        assert heard == [10, 20]
        machines.store.fault = "away"
        reporter.on_eval(EvalReport(30, {"val/mask_ap": 0.2}, save(run.path, 30)))
        machines.store.fault = "none"
        reporter.finish(40, {"val/mask_ap": 0.3})
        assert heard == [10, 20, 30, 40]


def test_a_request_to_stop_comes_through(machines: Machines, desk: Desk):
    with training(machines, desk) as folder:
        assert not RunFolder(folder).stop_requested()
        desk.stop()
        wait_for(RunFolder(folder).stop_requested)


def test_a_checkpoint_that_training_removed_is_removed_at_the_driver_and_in_the_store(
    machines, desk
):
    with training(machines, desk) as folder:
        save(folder, 10)
        wait_for(lambda: bool(list(hear(machines, desk).path.glob("checkpoints/*10/about.json"))))
        with machines.on("a"):
            driver = Mirror(machines.run)
            driver.push()
        save(folder, 20)
        save(folder, 30)
    hear(machines, desk)
    with machines.on("a"):
        driver.push()
        assert sorted(path.name for path in (machines.run / "checkpoints").iterdir()) == [
            "step-00000020",
            "step-00000030",
        ]
        kept = {Path(entry.key).parent.name for entry in driver.store.entries(driver.prefix[:-1])}
        assert kept == {machines.run.name, "step-00000020", "step-00000030"}


def test_another_machine_continues_from_where_the_driver_knows_the_run_to_be(
    machines: Machines, desk
):
    with training(machines, desk) as folder:
        save(folder, 10)
    hear(machines, desk)
    with machines.on("b"):
        save(machines.run, 20)  # killed before anybody heard of it
    for name in ("c", "b"):
        with training(machines, desk, name) as folder:
            found = find_sound(folder / "checkpoints")
            assert found is not None
            assert found.name == "step-00000010"
            assert (found / "student.safetensors").is_file()


def test_an_outdated_process_is_ignored_and_asked_to_stop(machines: Machines, desk: Desk):
    with machines.on("b"):
        first, records = desk.take(shown(machines.run), leads=True)
        assert set(records) == {"config.yaml", "status.json"}
        second, _ = desk.take(shown(machines.run), leads=True)
        assert desk.tell(shown(machines.run), first, {"status.json": b"late"})
        assert not desk.tell(shown(machines.run), second, {"metrics.jsonl": b"now"})
        assert desk.collect() == {shown(machines.run): {"metrics.jsonl": b"now"}}
        desk.clear(shown(machines.run))
        assert desk.tell(shown(machines.run), second, {"metrics.jsonl": b"after the end"})
        assert desk.collect() == {}


def test_an_end_written_by_the_driver_is_kept(machines: Machines, desk: Desk):
    with training(machines, desk) as folder:
        RunFolder(folder).report(5, {"train/loss": 0.5})
        with machines.on("a"):
            RunFolder(machines.run).finish("stopped")
    assert hear(machines, desk).stored().status == "stopped"


def test_others_of_a_run_read_only_and_know_the_folder_of_the_one_that_leads(machines, desk):
    with training(machines, desk) as folder:
        save(folder, 10)
    hear(machines, desk)
    with machines.on("c"):
        other = Courier(desk, machines.run, leads=False)
        assert not other.is_received("mark")
        with other:
            found = find_sound(machines.run / "checkpoints")
            assert found is not None
            RunFolder(machines.run).report(12, {"train/loss": 0.5})
            time.sleep(0.2)
        assert desk.collect() == {}
        with Courier(desk, machines.run, leads=True) as leader:
            assert other.is_received(leader.mark)


def test_a_driver_of_the_same_folder_needs_no_courier(machines: Machines):
    with machines.on("a"):
        trial = machines.run / "trial-00"
        make_run(trial)
        (machines.run / DROVE).write_text("ours")
        assert DriverLink(Desk(), mirrors(), "ours").is_home(trial)
        assert not DriverLink(Desk(), mirrors(), "another").is_home(trial)
    with machines.on("b"):
        assert not DriverLink(Desk(), mirrors(), "ours").is_home(machines.run / "trial-00")


def test_paths_of_the_drivers_mirrors_are_moved_to_ours(machines: Machines):
    with machines.on("a"):
        home, run = mirrors(), machines.run
    with machines.on("b"):
        assert moved(run, home) == machines.run != run
        assert moved(Path("/data/images"), home) == Path("/data/images")
        assert moved(home / "gs/b/runs", home) == storage_folder("gs://b/runs")


def test_weights_to_start_from_are_fetched_to_this_machine(machines: Machines):
    with machines.on("a"):
        make_run(machines.run)
        save(machines.run, 10, best=True)
        Mirror(machines.run).push()
    with machines.on("b"):
        courier.bring_patiently(machines.run)
        best = machines.run / "checkpoints/step-00000010"
        assert json.loads((best / "about.json").read_bytes())["step"] == 10
        assert (best / "student.safetensors").is_file()
        courier.bring_patiently(Path("/elsewhere/weights.pt"))

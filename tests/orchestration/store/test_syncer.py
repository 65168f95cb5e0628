import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from boxseg.engine.checkpoint import find_checkpoint_damage, find_sound
from boxseg.errors import ConfigError, StorageError
from orchestration.config.spec import RunSpec
from orchestration.execute.supervise import supervise
from orchestration.record.find_runs import find_run
from orchestration.record.run_folder import RunFolder
from orchestration.store import client, syncer
from orchestration.store.mirror import Mirror, fetch_newest
from orchestration.store.syncer import Syncer, drive_in_store

from .conftest import Machines, make_run, save


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncer, "LOOK_S", 0.05)
    monkeypatch.setattr(syncer, "RECORDS_S", 0.2)
    monkeypatch.setattr(syncer, "MOST_WAIT_S", 0.2)
    monkeypatch.setattr(client, "RETRIES", 1)
    client._open.cache_clear()


@contextmanager
def driving(machines: Machines) -> Iterator[Syncer]:
    with machines.on("a"):
        make_run(machines.run)
        with drive_in_store(machines.run) as found:
            assert found is not None
            with found:
                yield found


def train(machines: Machines, steps: range) -> float:
    """Reports and checkpoints as of a training; gives the longest time that one of them took [s]."""
    longest = 0.0
    for step in steps:
        began = time.monotonic()
        RunFolder(machines.run).report(step, {"train/loss": 1 / step})
        if step % 5 == 0:
            save(machines.run, step)
        longest = max(longest, time.monotonic() - began)
        time.sleep(0.02)
    return longest


def check_whole(machines: Machines, steps: range) -> None:
    """Another machine has all that was reported, and the newest checkpoint."""
    with machines.on("b"):
        Mirror(machines.run).pull()
        history = RunFolder(machines.run).history("train/loss")
        assert history == [(step, 1 / step) for step in steps]
        fetch_newest(machines.run / "checkpoints")
        found = find_sound(machines.run / "checkpoints")
        assert found is not None
        assert found.name == f"step-{steps[-1]:08d}"
        assert find_checkpoint_damage(found) is None


@pytest.mark.parametrize("fault", ["throttled", "cut", "lost answers"])
def test_a_store_with_faults_has_everything_in_the_end(machines: Machines, fault: str):
    with driving(machines):
        machines.store.fault = fault
        train(machines, range(1, 21))
    machines.store.fault = "none"
    check_whole(machines, range(1, 21))


def test_a_store_that_is_slow_and_then_away_holds_up_nothing_and_gets_everything(machines):
    with driving(machines):
        train(machines, range(1, 6))
        machines.store.delay_s = 3.0
        longest = train(machines, range(6, 16))
        machines.store.delay_s, machines.store.fault = 0.0, "away"
        train(machines, range(16, 31))
        machines.store.fault = "none"
        train(machines, range(31, 36))
    assert longest < 2.0, "no step waited for a request of 3 s"
    check_whole(machines, range(1, 36))


def test_a_store_that_is_away_before_the_start_is_refused_at_once(machines: Machines):
    machines.store.fault = "away"
    with pytest.raises(StorageError, match="does not answer as it should"), driving(machines):
        pytest.fail("nothing may begin")


def test_files_that_a_store_never_took_are_sent_when_the_run_is_looked_at_next(
    machines, monkeypatch, capsys
):
    monkeypatch.setattr(syncer, "GIVE_UP_S", 0.5)
    told = (
        r"s3://bucket/\S+ does not have all files \(.*\); they are complete in .*boxseg runs show"
    )

    threads = []

    def part() -> None:
        with driving(machines) as found:
            threads.append(found._thread)
            train(machines, range(1, 6))
            machines.store.fault = "away"
            train(machines, range(6, 11))

    with pytest.raises(StorageError, match=told):
        part()
    threads[0].join(10)
    assert not threads[0].is_alive()
    assert "waiting for s3://bucket/" in capsys.readouterr().err
    machines.store.fault = "none"
    with machines.on("c"):
        assert find_run(machines.folder, "toys").stored().step < 10
    with machines.on("a"):
        assert find_run(machines.folder, "toys").stored().step == 10  # which sends it, too
    check_whole(machines, range(1, 11))


def test_the_error_of_a_run_comes_before_that_of_its_store(machines, monkeypatch, capsys):
    monkeypatch.setattr(syncer, "GIVE_UP_S", 0.3)

    def fail() -> None:
        with driving(machines):
            machines.store.fault = "away"
            RunFolder(machines.run).report(1, {"train/loss": 1.0})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert "does not have all files" in capsys.readouterr().err


def test_a_run_does_not_count_as_sent_after_an_unexpected_fault(machines, monkeypatch):
    monkeypatch.setattr(syncer, "GIVE_UP_S", 0.3)

    def fail() -> None:
        with driving(machines) as found:
            monkeypatch.setattr(found._mirror, "push", lambda **_: 1 / 0)
            RunFolder(machines.run).report(1, {"train/loss": 1.0})

    with pytest.raises(StorageError, match=r"does not have all files .*ZeroDivisionError"):
        fail()


def test_a_run_that_its_store_never_took_is_not_announced_as_stored(
    machines, monkeypatch, tmp_path
):
    monkeypatch.setattr(syncer, "GIVE_UP_S", 0.3)
    told = tmp_path / "told"
    spec = RunSpec.model_validate(
        {"notify": {"command": ["sh", "-c", 'echo "$0" > ' + str(told)]}}
    )

    def run() -> None:
        with machines.on("a"):
            folder = make_run(machines.run)
            with drive_in_store(folder.path) as sender, supervise(folder, spec, sender):
                machines.store.fault = "away"
                folder.finish("finished")

    with pytest.raises(StorageError, match="does not have all files"):
        run()
    assert " finished, but disk_full: s3://bucket/" in told.read_text()


def test_two_drivers_of_one_mirror_are_refused(machines: Machines):
    told = "driven by another process of this machine"
    with driving(machines), pytest.raises(ConfigError, match=told), drive_in_store(machines.run):
        pytest.fail("it is driven already")


def test_a_driver_that_lost_its_place_sends_nothing_more(machines: Machines):
    def go_on() -> None:
        with driving(machines) as found:
            found._lease.is_lost = True
            found._thread.join(5)
            machines.store.requests.clear()
            train(machines, range(1, 6))

    with pytest.raises(StorageError, match="another driver has taken it over"):
        go_on()
    sent = [each.key for each in machines.store.requests if each.method == "PUT"]
    assert not [key for key in sent if "checkpoints" in key]


def test_requests_grow_with_time_and_checkpoints_and_not_with_steps(machines, monkeypatch):
    monkeypatch.setattr(syncer, "RECORDS_S", 60.0)

    def count(steps: int) -> int:
        machines.store.requests.clear()
        RunFolder(machines.run).report(0, {"train/loss": 0.0})
        with drive_in_store(machines.run) as found, found:
            for step in range(1, steps + 1):
                RunFolder(machines.run).append_metrics(step, {"train/loss": 1.0})
            save(machines.run, steps)
        return len(machines.store.requests)

    with machines.on("a"):
        make_run(machines.run)
        few, many = count(10), count(100)
    assert many <= few + 1, "the older checkpoint is removed"
    assert few < 20


def test_folders_that_are_in_no_store_need_nothing(tmp_path):
    with drive_in_store(tmp_path / "toys/id") as found:
        assert found is None
    assert not (tmp_path / "toys").exists()


def test_unsent_files_of_a_killed_driver_are_dropped_once_another_machine_has_driven(machines):
    def go_on(name: str, steps: range, *, sends: bool) -> str | None:
        """Train on a machine from where the run is to be; gives the checkpoint that it begins with."""
        with machines.on(name), drive_in_store(machines.run) as found:
            assert found is not None
            fetch_newest(machines.run / "checkpoints")
            begun = find_sound(machines.run / "checkpoints")
            if sends:
                found._mirror.push()
            for step in steps:
                RunFolder(machines.run).report(step, {"train/loss": 1 / step})
            save(machines.run, steps[-1])
            if sends:
                found._mirror.push()
            return None if begun is None else begun.name

    with machines.on("a"):
        make_run(machines.run)
    assert go_on("a", range(1, 6), sends=True) is None
    assert go_on("a", range(6, 16), sends=False) == "step-00000005"  # killed before it sent more
    assert go_on("b", range(6, 9), sends=True) == "step-00000005"
    assert go_on("a", range(9, 21), sends=True) == "step-00000008", "15 is of a past that is gone"
    check_whole(machines, range(1, 21))


def test_unsent_files_of_a_killed_driver_are_used_if_no_other_machine_has_driven(machines):
    with machines.on("a"):
        make_run(machines.run)
        for steps in (range(1, 6), range(6, 11)):
            with drive_in_store(machines.run) as found:
                assert found is not None
                for step in steps:
                    RunFolder(machines.run).report(step, {"train/loss": 1 / step})
                save(machines.run, steps[-1])
        with drive_in_store(machines.run) as found, found:
            assert find_sound(machines.run / "checkpoints").name == "step-00000010"
    check_whole(machines, range(1, 11))

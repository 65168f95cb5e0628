import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

import pytest

from boxseg.errors import ConfigError
from orchestration.store import lease as leases
from orchestration.store.lease import Holder, Lease, held
from orchestration.store.mirror import DROVE, LEASE, Mirror

from .conftest import Machines, make_run

STRANGER = Holder("stranger", host="elsewhere", pid=7)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_S", 0.05)
    monkeypatch.setattr(leases, "PATIENCE_S", 0.4)
    monkeypatch.setattr(leases, "POLL_S", 0.1)
    monkeypatch.setattr(leases, "AGAIN_S", 0.05)


@contextmanager
def on_a(machines: Machines) -> Iterator[Mirror]:
    with machines.on("a"):
        make_run(machines.run)
        yield Mirror(machines.run)


def put(mirror: Mirror, holder: Holder) -> None:
    mirror.store.write(mirror.prefix + LEASE, json.dumps(asdict(holder)).encode())


def test_one_driver_after_the_other_needs_no_waiting(machines: Machines):
    told: list[str] = []
    with on_a(machines) as mirror:
        for _ in range(2):
            with held(mirror, told.append):
                pass
    assert told == []


def test_a_driver_elsewhere_that_renews_is_seen_and_refused(machines: Machines):
    with on_a(machines) as mirror:
        put(mirror, STRANGER)
        timer = threading.Timer(0.15, put, (mirror, replace(STRANGER, renewed=1)))
        timer.start()
        told: list[str] = []
        with pytest.raises(ConfigError, match="is running in process 7 on elsewhere"):
            Lease(mirror).take(told.append)
        timer.join()
        assert len(told) == 1
        assert "waiting up to" in told[0]


def test_a_silent_driver_elsewhere_counts_as_gone(machines: Machines):
    with on_a(machines) as mirror:
        put(mirror, STRANGER)
        with held(mirror, print):
            assert json.loads(mirror.store.read(mirror.prefix + LEASE)[0])["token"] != "stranger"


def test_a_driver_of_this_mirror_that_was_killed_needs_no_waiting(machines: Machines):
    told: list[str] = []
    with on_a(machines) as mirror:
        put(mirror, STRANGER)
        (machines.run / DROVE).write_text("stranger")
        with held(mirror, told.append):
            pass
    assert told == []


def test_of_two_drivers_that_begin_together_only_one_drives(machines: Machines):
    with on_a(machines) as mirror:
        taken: list[Lease] = []
        refused: list[ConfigError] = []

        def take() -> None:
            lease = Lease(mirror)
            lease._was_here = lambda other: False  # each on a machine of its own
            try:
                lease.take(print)
                taken.append(lease)
            except ConfigError as error:
                refused.append(error)

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(taken), len(refused)) == (1, 3)
        taken[0].release()


def test_a_driver_whose_place_was_taken_knows_it(machines: Machines):
    with on_a(machines) as mirror, held(mirror, print) as lease:
        put(mirror, STRANGER)
        lease._thread.join(5)
        assert lease.is_lost
    with machines.on("a"):
        kept = json.loads(mirror.store.read(mirror.prefix + LEASE)[0])
        assert kept["token"] == "stranger", "and leaves it alone"


def test_a_renewal_that_was_never_answered_is_no_other_driver(machines: Machines):
    with on_a(machines) as mirror, held(mirror, print) as lease:
        lease._over.wait(0.2)
        ours = replace(lease._holder, renewed=1000)
        put(mirror, ours)  # sent, and the connection was lost before anybody said so
        lease._over.wait(0.2)
        assert not lease.is_lost
        kept = json.loads(mirror.store.read(mirror.prefix + LEASE)[0])
        assert kept["renewed"] < 1000, "it goes on renewing"


def test_a_driver_recognises_its_own_write_after_a_lost_answer(machines: Machines):
    with on_a(machines) as mirror:
        machines.store.fault = "lost answers"
        with held(mirror, print) as lease:
            lease._over.wait(0.3)
            assert not lease.is_lost
        machines.store.fault = "none"
        assert json.loads(mirror.store.read(mirror.prefix + LEASE)[0])["released"]

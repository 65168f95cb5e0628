import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from boxseg.errors import NonFiniteLossError, StorageError
from orchestration.config.spec import RunSpec
from orchestration.errors import PreemptedError, ResourceError
from orchestration.execute import fit
from orchestration.execute.payload import Payload

pytestmark = pytest.mark.ray  # loads it, and starts none


def test_workers_meet_where_ray_reaches_their_node_unless_its_user_has_chosen(monkeypatch):
    import ray

    from orchestration.connect.process_group import INTERFACE, choose_interface

    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv(INTERFACE, "ib0")
    choose_interface()
    assert os.environ[INTERFACE] == "ib0"
    monkeypatch.delenv(INTERFACE)
    choose_interface()
    assert os.environ[INTERFACE] == "lo"


def test_a_failed_meeting_of_workers_is_tried_again_by_ray_and_says_why():
    from ray.exceptions import RayTaskError
    from ray.train.v2._internal.execution.failure_handling.default import (
        RETRYABLE_CONTROLLER_ERRORS,
    )

    from orchestration.connect.process_group import ProcessGroupConfig

    def refuse(*_: object, **__: object) -> None:
        lines = "\n".join(f"  line {number}" for number in range(9))
        raise RayTaskError("meet", f"{lines}\nDistBackendError: Gloo connectFullMesh failed", None)

    config = ProcessGroupConfig(backend="gloo")
    group = SimpleNamespace(execute=lambda *_, **__: None, execute_single=refuse)
    with pytest.raises(RETRYABLE_CONTROLLER_ERRORS, match=r"^DistBackendError: Gloo connect"):
        config.backend_cls().on_start(group, config)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("WorkerGroupStartupFailedError", "the 2 workers did not come together: no route; look"),
        ("InsufficientClusterResourcesError", r"could not place 2 workers of 1 CPU .*: no route"),
    ],
)
def test_a_run_that_did_not_start_says_whether_places_or_connections_were_missing(
    monkeypatch, kind, told
):
    from ray.train.v2._internal import exceptions
    from ray.train.v2.api.exceptions import ControllerError

    def give_up() -> None:
        raise ControllerError(getattr(exceptions, kind)("no route"))

    monkeypatch.setattr(fit, "_make_trainer", lambda *_: SimpleNamespace(fit=give_up))
    spec = RunSpec.model_validate({"resources": {"workers": 2}, "train": {"batch_size": 2}})
    with pytest.raises(ResourceError, match=told):
        fit.train_payload(Payload(spec, Path("run"), Path("data"), "ray_train"))


def test_only_starts_that_lack_a_place_are_tried_without_end():
    from ray.train.v2._internal import exceptions
    from ray.train.v2._internal.execution.failure_handling import FailureDecision
    from ray.train.v2.api.config import FailureConfig
    from ray.train.v2.api.exceptions import ControllerError

    from orchestration.connect.scaling import PatientPolicy

    policy = PatientPolicy(FailureConfig(controller_failure_limit=2))

    def decide(kind: str, argument: object) -> list[FailureDecision]:
        error = ControllerError(getattr(exceptions, kind)(argument))
        return [policy.make_decision(error) for _ in range(9)]

    assert set(decide("WorkerGroupStartupTimeoutError", 2)) == {FailureDecision.RETRY}
    assert decide("WorkerGroupStartupFailedError", "no route")[2] == FailureDecision.RAISE


@pytest.mark.parametrize(
    ("raised", "first"),
    [
        ([StorageError("the store is away")], "RAISE"),
        ([RuntimeError("Connection closed by peer"), StorageError("the store is away")], "RAISE"),
        ([NonFiniteLossError("step 3: the loss is nan")], "RAISE"),
        ([PreemptedError("a machine will be taken away")], "RETRY"),
        ([MemoryError()], "RETRY"),
        ([RuntimeError("Connection closed by peer")], "RETRY"),
    ],
)
def test_a_failure_that_would_recur_does_not_restart_all_workers(monkeypatch, raised, first):
    from ray.train.v2._internal.execution.failure_handling import FailureDecision
    from ray.train.v2.api.config import FailureConfig
    from ray.train.v2.api.exceptions import WorkerGroupError

    from orchestration.connect.scaling import PatientPolicy

    error = WorkerGroupError("workers failed", dict(enumerate(raised)))
    policy = PatientPolicy(FailureConfig(max_failures=3))
    decisions = [policy.make_decision(error) for _ in range(4)]
    assert decisions[0] == FailureDecision[first]
    assert decisions[3] == FailureDecision.RAISE

    def give_up() -> None:
        raise error

    monkeypatch.setattr(fit, "_make_trainer", lambda *_: SimpleNamespace(fit=give_up))
    spec = RunSpec.model_validate({"resources": {"workers": 2}, "train": {"batch_size": 2}})
    told = type(raised[-1]) if first == "RAISE" else WorkerGroupError
    with pytest.raises(told):
        fit.train_payload(Payload(spec, Path("run"), Path("data"), "ray_train"))


def test_every_training_waits_for_its_place(monkeypatch):
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from orchestration.connect.scaling import PatientPolicy, SharesPolicy, trainer_with

    given = []
    monkeypatch.setattr(
        DataParallelTrainer,
        "_initialize_and_run_controller",
        lambda self, **options: given.append(options),
    )
    monkeypatch.setattr(SharesPolicy, "__init__", lambda *_: None)
    for share in (None, SimpleNamespace()):
        trainer_with(share)(dict)._initialize_and_run_controller(scaling_policy="Ray's own")
    assert all(isinstance(options["failure_policy"], PatientPolicy) for options in given)
    assert given[0]["scaling_policy"] == "Ray's own"
    assert isinstance(given[1]["scaling_policy"], SharesPolicy)


def test_workers_start_without_the_process_that_ray_has_for_data_sets_of_its_own(tmp_path):
    from ray.train.v2._internal.callbacks import DatasetsCallback

    payload = Payload(RunSpec.model_validate({"name": "x"}), tmp_path, tmp_path, "ray_train")
    callbacks = fit._make_trainer(payload, [])._create_default_callbacks()
    assert callbacks
    assert not [each for each in callbacks if isinstance(each, DatasetsCallback)]

"""Every failure has one class, and the class decides what is done and how a command ends."""

import pytest

from boxseg.errors import CollapseError, ConfigError, DataError, NonFiniteLossError, StorageError
from orchestration.errors import ExitCode, PreemptedError, ResourceError, exit_code_for
from orchestration.record.failures import RULES, Failure, FailureClass, error_of


class OutOfMemoryError(RuntimeError):
    """Named like those of torch and Ray."""


@pytest.mark.parametrize(
    ("error", "expected", "policy", "code"),
    [
        (ConfigError("qam.k_top: 0"), "configuration", "stop", ExitCode.USAGE),
        (ResourceError("needs 64 CPU cores"), "configuration", "stop", ExitCode.RESOURCES),
        (DataError("a.json: width 0"), "data", "stop", ExitCode.DATA),
        (NonFiniteLossError("step 3"), "non_finite", "stop", ExitCode.DIVERGED),
        (CollapseError("masks are boxes"), "collapse", "stop", ExitCode.DIVERGED),
        (
            OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "out_of_memory",
            "halve",
            ExitCode.RESOURCES,
        ),
        (MemoryError(), "out_of_memory", "halve", ExitCode.RESOURCES),
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
            ),
            "out_of_memory",
            "halve",
            ExitCode.RESOURCES,
        ),
        (
            OutOfMemoryError("Task was killed due to the node running low on memory."),
            "out_of_memory",
            "halve",
            5,
        ),
        (PreemptedError("the machine was taken"), "preempted", "retry", ExitCode.INTERRUPTED),
        (
            RuntimeError("The actor died because its node has died."),
            "node_lost",
            "retry",
            ExitCode.FAILED,
        ),
        (
            RuntimeError("The actor died unexpectedly before finishing"),
            "worker_lost",
            "retry",
            ExitCode.FAILED,
        ),
        (
            RuntimeError(
                "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"
            ),
            "worker_lost",
            "retry",
            ExitCode.FAILED,
        ),
        (RuntimeError("std::bad_alloc"), "out_of_memory", "halve", ExitCode.RESOURCES),
        (
            RuntimeError("DataLoader worker (pid(s) 71) exited unexpectedly"),
            "worker_lost",
            "retry",
            ExitCode.FAILED,
        ),
        (
            RuntimeError("DataLoader worker (pid 71) is killed by signal: Killed. "),
            "worker_lost",
            "retry",
            ExitCode.FAILED,
        ),
        (
            RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1"),
            "worker_lost",
            "retry",
            ExitCode.FAILED,
        ),
        (StorageError("runs/a: the disk is full"), "disk_full", "stop", ExitCode.RESOURCES),
        (OSError(28, "No space left on device"), "disk_full", "stop", ExitCode.RESOURCES),
        (
            type("MlflowException", (Exception,), {})("no answer"),
            "tracker_down",
            "retry",
            ExitCode.FAILED,
        ),
        (ZeroDivisionError("division by zero"), "unknown", "stop", ExitCode.FAILED),
    ],
)
def test_an_error_has_its_class_policy_and_exit_code(error, expected, policy, code):
    failure = Failure.of(error)
    assert (failure.failure_class, failure.rule.policy) == (expected, policy)
    assert exit_code_for(error_of(failure)) == code


@pytest.mark.parametrize(
    "text",
    [
        "[enforce fail at ../third_party/gloo/gloo/transport/tcp/pair.cc:446] . Timed out waiting",
        "ProcessGroupGloo is shut down",
        "Gloo connectFullMesh failed with timeout",
        "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.cpp:77, remote process exited",
    ],
)
def test_what_other_workers_say_of_a_lost_one_is_known(text: str):
    assert Failure("RuntimeError", text).failure_class == "worker_lost"


@pytest.mark.parametrize("path", ["/data/igloo/a.png", "/data/gloo/a.png", "/home/preempted/x"])
def test_paths_say_nothing_about_a_failure(path: str):
    failure = Failure("ValueError", f"cannot read {path}")
    assert (failure.failure_class, failure.rule.policy) == ("unknown", "stop")


def test_a_shortened_summary_shows_that_it_is_cut():
    assert Failure("DataError", "a.json: bad").summary == "data: a.json: bad"
    assert Failure("DataError", "long " * 100).summary.endswith(" long …")


def test_every_class_has_a_rule():
    assert set(RULES) == set(FailureClass)


def test_only_failures_that_say_more_than_a_lost_process_name_a_cause():
    assert Failure.of(MemoryError()).names_cause
    assert Failure.of(DataError("x")).names_cause
    assert not Failure.of(RuntimeError("Connection reset by peer")).names_cause
    assert not Failure.of(ZeroDivisionError()).names_cause

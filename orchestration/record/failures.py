"""Why a run failed: classes of failures, what is done about each, and the error that a command ends with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from boxseg.errors import BoxSegError, CheckpointError, StorageError
from orchestration.errors import PreemptedError, ResourceError
from orchestration.secret_text import hide


class FailureClass(StrEnum):
    """What went wrong, as tables and the MLflow tag `failure_class` name it."""

    CONFIGURATION = "configuration"
    DATA = "data"
    OUT_OF_MEMORY = "out_of_memory"
    NON_FINITE = "non_finite"
    COLLAPSE = "collapse"
    PREEMPTED = "preempted"
    NODE_LOST = "node_lost"
    WORKER_LOST = "worker_lost"
    DISK_FULL = "disk_full"
    """Also read-only or vanished storage."""
    CHECKPOINT_LOST = "checkpoint_lost"
    """The checkpoint of the best evaluation of a trial that had ended."""
    TRACKER_DOWN = "tracker_down"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Rule:
    """How a class of failures is recognised and what is done about it."""

    signs: str
    """Regular expression, found in `Kind: text` of the error."""
    policy: Literal["stop", "retry", "halve"]
    """stop: the same failure would come again; retry: go on from the last checkpoint; halve: likewise, with each
    worker's batch in twice as many parts."""
    error: type[BoxSegError] = BoxSegError
    """What a command ends with if the error itself is not one of ours."""


SHOWN_LETTERS = 160
"""What the summary of a failure shows of a long text."""
RULES: dict[FailureClass, Rule] = {
    # Errors of our own come first and are recognised by their class alone, as their texts may quote anything.
    FailureClass.CONFIGURATION: Rule(r"^(ConfigError|ResourceError)\b", "stop"),
    FailureClass.DATA: Rule(r"^DataError\b", "stop"),
    FailureClass.NON_FINITE: Rule(r"^NonFiniteLossError\b", "stop"),
    FailureClass.COLLAPSE: Rule(r"^CollapseError\b", "stop"),
    FailureClass.OUT_OF_MEMORY: Rule(
        r"^(OutOfMemoryError|MemoryError)\b|out of memory|not enough memory|"
        r"[Cc]an(no|')t allocate memory|running low on memory|_STATUS_ALLOC_FAILED|bad_alloc",
        "halve",
        ResourceError,
    ),
    FailureClass.DISK_FULL: Rule(
        r"^StorageError\b|No space left on device|Read-only file system|"
        r"[Dd]isk quota exceeded|Stale file handle",
        "stop",
        StorageError,
    ),
    FailureClass.CHECKPOINT_LOST: Rule(r"^LostCheckpoint\b", "retry", CheckpointError),
    # Before lost nodes and workers: a machine that is taken away loses both.
    FailureClass.PREEMPTED: Rule(r"^PreemptedError\b|(?<!/)preempt", "retry", PreemptedError),
    FailureClass.NODE_LOST: Rule(
        r"^NodeDiedError\b|node (has )?(died|failed)|node .{0,80}(is dead|was lost)",
        "retry",
    ),
    FailureClass.WORKER_LOST: Rule(
        r"^(WorkerLost|ActorDiedError|ActorUnavailableError|WorkerCrashedError|RayActorError|"
        r"WorkerHealthCheck\w*|Dist\w*Error)\b|died unexpectedly|process has died|"
        # a process that reads images, killed for memory for example
        r"DataLoader worker .{0,40}(killed by signal|exited unexpectedly)|"
        # gloo and NCCL report this in the remaining processes when one is lost.
        r"unexpectedly exits|SIGKILL|actor died|onnection (closed|reset) by peer|"
        # but not /data/igloo/a.png
        r"(third_party/|ProcessGroup|(?<![/\w]))([Gg]loo|NCCL)",
        "retry",
    ),
    FailureClass.TRACKER_DOWN: Rule(r"^Mlflow\w*Exception\b|mlflow\.exceptions", "retry"),
    FailureClass.UNKNOWN: Rule("", "stop"),
}
"""The first rule whose signs fit decides."""

OUR_ERRORS: dict[str, type[BoxSegError]] = {
    "BoxSegError": BoxSegError,
    # All subclasses, since this module has imported `orchestration.errors`.
    **{kind.__name__: kind for kind in BoxSegError.__subclasses__()},
}
"""Errors that boxseg raises on purpose, by name."""


@dataclass(frozen=True)
class Failure:
    """Why a run failed."""

    kind: str
    """Class name of the error."""
    text: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Class and text of an error without secrets; of Ray's long texts only the last line, which names the cause."""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        foreign_text = (lines[-1] if len(lines) > 6 else "\n".join(lines))[:2000]
        kind = type(error).__name__
        # the nearest class with an exit code: DataError for its children
        for base in type(error).__mro__:
            # By identity: a foreign class may have the name of one of ours.
            if OUR_ERRORS.get(base.__name__) is base:
                kind = base.__name__
                break
        text = str(error) if isinstance(error, BoxSegError) else foreign_text or kind
        return cls(kind, hide(text))

    @property
    def is_ours(self) -> bool:
        """True if boxseg raised the error on purpose."""
        return self.kind in OUR_ERRORS

    @property
    def failure_class(self) -> FailureClass:
        """What went wrong."""
        text = f"{self.kind}: {self.text}"
        # UNKNOWN comes last and fits any text
        return next(name for name, rule in RULES.items() if re.search(rule.signs, text))

    @property
    def summary(self) -> str:
        """Class and first line, as in `data: no t.json`; if it is unknown, also the class of the error."""
        first_line = self.text.partition("\n")[0]
        if len(first_line) > SHOWN_LETTERS:
            first_line = f"{first_line[:SHOWN_LETTERS]}…"
        if self.failure_class == FailureClass.UNKNOWN and self.text != self.kind:
            return f"{self.failure_class}: {self.kind}: {first_line}"
        return f"{self.failure_class}: {first_line}"

    @property
    def names_cause(self) -> bool:
        """Whether the text says what went wrong; False if a process died for unknown reasons."""
        unexplained = (FailureClass.UNKNOWN, FailureClass.WORKER_LOST)
        return self.is_ours or self.failure_class not in unexplained

    @property
    def rule(self) -> Rule:
        """What is done about it."""
        return RULES[self.failure_class]


def error_of(failure: Failure) -> BoxSegError:
    """The failure as an error: of its own class if that is one of ours, else of the class that its rule names."""
    if failure.is_ours:
        return OUR_ERRORS[failure.kind](failure.text)
    return failure.rule.error(f"{failure.kind}: {failure.text}")

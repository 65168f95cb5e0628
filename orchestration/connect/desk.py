"""The desk of a driver as an actor of Ray, which runs on other machines can reach."""

from __future__ import annotations

from pathlib import Path

from orchestration.config.spec import RunSpec
from orchestration.connect.cluster import at_head
from orchestration.planning.preflight import uses_cluster
from orchestration.store.courier import DriverLink
from orchestration.store.desk import Desk
from orchestration.store.mirror import DROVE
from orchestration.store.places import address_of, mirrors

ANSWER_S = 30.0
"""How long it may take to answer [s]."""


def open_desk(spec: RunSpec, folder: Path) -> DriverLink | None:
    """A desk on the cluster's head for a run or sweep; None if all of its processes see its folder."""
    if address_of(folder) is None or not uses_cluster(spec):
        return None
    return DriverLink(at_head(Desk, answer_s=ANSWER_S), mirrors(), (folder / DROVE).read_text())

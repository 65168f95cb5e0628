"""The desk of a driver as an actor of Ray: runs of other machines reach it wherever they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestration.config.spec import RunSpec
from orchestration.connect.cluster import actor_at_head
from orchestration.planning.preflight import uses_cluster
from orchestration.store.courier import Outpost
from orchestration.store.desk import Desk, Records
from orchestration.store.mirror import DROVE
from orchestration.store.places import address_of, mirrors

ANSWER_S = 30.0
"""How long it may take to answer [s]."""


@dataclass(frozen=True)
class RemoteDesk:
    """Every method is that of `Desk`, there."""

    actor: Any
    """Handle of the actor; it travels with whoever has it."""

    def lay(self, run: str, records: dict[str, bytes]) -> None:
        """See `Desk`."""
        self._ask("lay", run, records)

    def take(self, run: str, *, leads: bool) -> tuple[int, dict[str, bytes]]:
        """See `Desk`."""
        attempt, records = self._ask("take", run, leads=leads)
        return attempt, records

    def tell(self, run: str, attempt: int, changes: Records) -> bool:
        """See `Desk`."""
        return bool(self._ask("tell", run, attempt, changes))

    def collect(self) -> dict[str, dict[str, bytes | None]]:
        """See `Desk`."""
        changes: dict[str, dict[str, bytes | None]] = self._ask("collect")
        return changes

    def clear(self, run: str) -> None:
        """See `Desk`."""
        self._ask("clear", run)

    def stop(self) -> None:
        """See `Desk`."""
        self._ask("stop")

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        import ray

        return ray.get(getattr(self.actor, method).remote(*arguments, **options), timeout=ANSWER_S)


def open_desk(spec: RunSpec, folder: Path) -> Outpost | None:
    """A desk on the cluster's head, for a run or sweep that it drives; None where all its processes see its folder."""
    if address_of(folder) is None or not uses_cluster(spec):
        return None
    return Outpost(RemoteDesk(actor_at_head(Desk)), mirrors(), (folder / DROVE).read_text())

"""What the parts of a copy to MLflow share: whose copy it is, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestration.record.run_folder import RunFolder, RunStatus

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class RunCopy:
    """A folder that is copied to MLflow now."""

    client: MlflowClient
    experiment_id: str
    folder: RunFolder
    status: RunStatus
    """As it was when this look began."""
    state: dict[str, Any]
    """What the folder's `tracking.json` holds; see `keep`."""

    @property
    def run_id(self) -> str:
        """Id of the run in MLflow."""
        return str(self.state["run_id"])

    @property
    def parent(self) -> RunFolder | None:
        """The sweep of a trial; None for a run or a sweep."""
        above = self.status.parent
        return None if above is None else RunFolder(self.folder.path / above)

    def keep(self, **changes: Any) -> None:
        """Note how far MLflow has followed, so that a kill costs no more than what came since."""
        self.state.update(changes)
        self.folder.write_tracking(self.state)

"""Training for labels where no run is named: choose a recipe, keep it beside the labels, train or go on training."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from boxseg.config.method import CocoSource
from boxseg.data.fingerprint import Fingerprint, take_fingerprint
from boxseg.engine.checkpoint import folder_of
from boxseg.errors import ConfigError
from boxseg.files.writing import make_folder, write_atomic
from orchestration.config.spec import RunSpec, load_run
from orchestration.planning.preflight import check
from orchestration.planning.recipe import Machine, Recipe, make_recipe
from orchestration.record.files import digest
from orchestration.record.find_runs import list_runs
from orchestration.record.records import RULES, read_record
from orchestration.record.run_folder import RunFolder, RunStatus
from orchestration.store.mirror import pull_tree
from orchestration.store.places import shown
from orchestration.words import show_duration

RECIPE, REQUEST, RUNS = "recipe.yaml", "request.json", "runs"
"""Names in the output folder."""
WORDS = {"data": "DATA", "train_on": "--train-on", "minutes": "--minutes", "settings": "--set"}
"""Part of a request -> where it is given."""
NEW_OUTPUT = "name another --output, or remove it"

Tell = Callable[[str], None]


@dataclass(frozen=True)
class _Request:
    """What a recipe was chosen for."""

    __pydantic_config__ = RULES

    data: str
    """Digest of the boxes to label."""
    train_on: str
    """Digest of the boxes to learn from."""
    minutes: float | None
    settings: list[str]
    """What was asked for with --set."""


@dataclass(frozen=True)
class LabelTask:
    """Boxes to label with a run that is still to be trained."""

    data: CocoSource
    """Images and boxes to label."""
    train_on: CocoSource
    """Images and boxes to learn from; perhaps the same."""
    name: str
    """Of the experiment."""
    folder: Path
    """Output folder of the labels; gets `recipe.yaml` and, with `storage` None, `runs/`."""
    storage: Path | None = None
    """Folder of runs, if it is another."""
    minutes: float | None = None
    """Time for all; None: what suits the machine."""
    overrides: tuple[str, ...] = ()
    """Texts of --set."""
    device: str = "auto"

    @property
    def recipe_path(self) -> Path:
        """Where the chosen settings are."""
        return self.folder / RECIPE

    def choose(self, *, step_s: float | None = None) -> tuple[Fingerprint, Recipe]:
        """Look at the data and choose settings; writes nothing.

        Args:
            step_s: Measured time of an update [s]; None: estimated.

        Raises:
            DataError: the data cannot be used.
            ConfigError: what was asked for is no setting, or not possible together.
        """
        fingerprint = take_fingerprint(self.train_on)
        label_boxes = fingerprint.boxes
        if self.data.annotations != self.train_on.annotations:
            label_boxes = take_fingerprint(self.data, look=False).boxes
        recipe = make_recipe(
            self.train_on,
            fingerprint,
            Machine.here(device=self.device),
            name=self.name,
            minutes=self.minutes,
            step_s=step_s,
            label_boxes=label_boxes,
            storage=RUNS if self.storage is None else shown(self.storage),
            overrides=self.overrides,
        )
        recipe.spec()  # raises if the settings do not fit together
        return fingerprint, recipe

    def open_recipe(self, tell: Tell) -> Path:
        """The recipe of an earlier call with the same arguments; or chosen now, with a few updates timed, and written.

        Raises:
            ConfigError: the folder has a recipe that something else was asked of; or see `choose`.
            BoxSegError: a run could not work here, see `preflight.check`.
        """
        if self._is_going_on():
            tell(f"going on with {self.recipe_path}")
            return self.recipe_path
        fingerprint, estimated = self.choose()
        for name, text in fingerprint.rows():
            tell(f"{name}: {text}")
        spec = estimated.spec().model_copy(update={"storage": self.storage or self.folder / RUNS})
        check(spec)
        tell(f"timing a few updates on {Machine.here(device=self.device)} …")
        # chosen again with the measured time, which decides how many updates fit
        _, recipe = self.choose(step_s=_time_update(spec))
        tell(f"{time_told(recipe)}; recipe: {self.recipe_path}")
        make_folder(self.folder)
        write_atomic(self.folder / REQUEST, json.dumps(asdict(self._request()), indent=1))
        write_atomic(self.recipe_path, recipe.text())
        return self.recipe_path

    def _is_going_on(self) -> bool:
        """Whether a recipe is there, chosen for the same request."""
        try:
            earlier = read_record(self.folder / REQUEST, _Request, way_out=NEW_OUTPUT)
        except FileNotFoundError:
            if self.recipe_path.exists():
                message = f"{self.recipe_path}: is of another origin; {NEW_OUTPUT}"
                raise ConfigError(message) from None
            return False
        if not self.recipe_path.exists():
            return False
        before, now = asdict(earlier), asdict(self._request())
        changed = [WORDS[name] for name, value in now.items() if value != before[name]]
        if changed:
            parts = ", ".join(changed)
            raise ConfigError(f"{self.recipe_path}: was chosen for another {parts}; {NEW_OUTPUT}")
        return True

    def _request(self) -> _Request:
        return _Request(
            data=digest(self.data.annotations),
            train_on=digest(self.train_on.annotations),
            minutes=self.minutes,
            settings=list(self.overrides),
        )


def time_told(recipe: Recipe) -> str:
    """How long training and labelling will take, in words."""
    times = recipe.times
    training = f"{show_duration(times.train_s)} for {recipe.steps} updates"
    labelling = f"{show_duration(times.label_s)} for labelling"
    total = show_duration(times.total_s)
    return f"about {total}: {training}, {labelling} ({times.basis}; --minutes changes it)"


def _time_update(spec: RunSpec) -> float:
    from boxseg.label.pace import time_update  # loads torch

    resources = spec.resources
    return time_update(
        spec,
        data_root=spec.storage.absolute() / ".data",
        device="cuda" if resources.gpus_per_worker else "cpu",
        threads=max(1, int(resources.cpus_per_worker)),
    )


def train_recipe(recipe: Path, tell: Tell) -> RunStatus:
    """The finished run of a recipe: trained now, gone on with, or there already. Its status may be `interrupted`.

    Raises:
        BoxSegError: what ended the run, or keeps it from going on.
    """
    spec = load_run(recipe)
    earlier = find_same_run(spec)
    if earlier is not None and earlier.status == "finished":
        tell(f"run {earlier.id} is trained already")
        return earlier
    # a run that goes on has started already
    check(spec if earlier is None else spec.starting_from(None))
    from orchestration.execute.run import train_run

    return train_run(spec, resume=None if earlier is None else earlier.folder)


def find_same_run(spec: RunSpec) -> RunStatus | None:
    """The newest run of the same name, settings and storage, whatever its state; None where there is none."""
    from orchestration.record.resume import check_same_settings

    for status in list_runs(spec.storage, warns=False):
        if status.kind == "run" and status.parent is None and status.name == spec.name:
            pull_tree(Path(status.folder))
            try:
                check_same_settings(
                    spec,
                    RunFolder(status.folder),
                    may_change=("model.start_from",),
                )
            except ConfigError:
                continue
            return status
    return None


def last_checkpoint(status: RunStatus) -> Path:
    """Checkpoint of the last update of a finished run."""
    return folder_of(Path(status.folder) / "checkpoints", status.steps)

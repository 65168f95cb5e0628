"""`boxseg label`: choose a recipe and train where no run is named, open a source of masks, label the boxes."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxseg.config.method import CocoSource
from boxseg.data.fingerprint import Fingerprint, take_fingerprint
from boxseg.engine.checkpoint import folder_of
from boxseg.errors import ConfigError
from boxseg.files.writing import make_folder, write_atomic
from orchestration.config.spec import RunSpec, load_run
from orchestration.errors import StoppedError
from orchestration.execute.trained import open_predictor
from orchestration.planning.preflight import check
from orchestration.planning.recipe import START_S, Machine, Recipe, make_recipe
from orchestration.record.files import digest, file_lock
from orchestration.record.find_runs import list_runs
from orchestration.record.progress import counted
from orchestration.record.records import read_record
from orchestration.record.run_folder import RunFolder, RunStatus
from orchestration.store.mirror import pull_tree
from orchestration.store.places import shown
from orchestration.words import show_duration

if TYPE_CHECKING:
    from boxseg.data.dataset import CocoBoxes
    from boxseg.data.mask_files import MaskFile
    from boxseg.label.sources import Source
    from orchestration.execute.supervise import StopSignals

RECIPE, REQUEST, RUNS, LOCK = "recipe.yaml", "request.json", "runs", ".lock"
"""Names in the output folder."""
OPTIONS = {"data": "DATA", "train_on": "--train-on", "minutes": "--minutes", "settings": "--set"}
"""Part of a request -> the argument or option that gives it."""
NEW_OUTPUT = "name another --output, or remove it"

Tell = Callable[[str], None]


@dataclass(frozen=True)
class LabelTask:
    """Boxes to label, and what a recipe and a run for them are made from."""

    data: CocoSource
    """Images and boxes to label."""
    train_on: CocoSource
    """Images and boxes to learn from; often the same."""
    name: str
    """Name of the experiment."""
    folder: Path
    """Output folder of the labels; gets `recipe.yaml` and, with `storage` None, `runs/`."""
    storage: Path | None = None
    """Folder of runs; None: `runs` in the output folder."""
    minutes: float | None = None
    """Time for training and labelling together; None: what suits the machine."""
    overrides: tuple[str, ...] = ()
    """Values of --set."""
    device: str = "auto"

    @property
    def recipe_path(self) -> Path:
        """Where the chosen settings are."""
        return self.folder / RECIPE

    @functools.cached_property
    def _fingerprint(self) -> Fingerprint:
        return take_fingerprint(self.train_on)

    def choose(self, *, step_s: float | None = None) -> tuple[Fingerprint, Recipe]:
        """Look at the data and choose settings; writes nothing.

        Args:
            step_s: Measured time of an update [s]; None: estimate it.

        Raises:
            DataError: the data cannot be used.
            ConfigError: an override is no setting, or settings do not fit together.
        """
        fingerprint = self._fingerprint
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
        """The recipe of an earlier call with the same arguments, or else a new one, for which a few updates are timed.

        Raises:
            ConfigError: the folder has a recipe that was chosen for another request; or see `choose`.
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
        tell(f"{describe_time(recipe)}; recipe: {self.recipe_path}")
        make_folder(self.folder)
        write_atomic(self.folder / REQUEST, json.dumps(self._request(), indent=1))
        write_atomic(self.recipe_path, recipe.text())
        return self.recipe_path

    def _is_going_on(self) -> bool:
        """Whether an earlier call has chosen a recipe for the same request."""
        try:
            earlier = read_record(self.folder / REQUEST, dict[str, Any], way_out=NEW_OUTPUT)
        except FileNotFoundError:
            if self.recipe_path.exists():
                message = f"{self.recipe_path}: was not chosen by `boxseg label`; {NEW_OUTPUT}"
                raise ConfigError(message) from None
            return False
        if not self.recipe_path.exists():
            return False
        now = self._request()
        changed = [OPTIONS[name] for name, value in now.items() if value != earlier.get(name)]
        if changed:
            self.choose()  # first refuses what would be refused in any folder
            parts = ", ".join(changed)
            raise ConfigError(f"{self.recipe_path}: was chosen for another {parts}; {NEW_OUTPUT}")
        return True

    def _request(self) -> dict[str, Any]:
        """What a recipe is chosen for: the content of the files, whatever their names, and the options."""
        return {
            "data": digest(self.data.annotations),
            "train_on": digest(self.train_on.annotations),
            "minutes": self.minutes,
            "settings": list(self.overrides),
        }


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep others out of an output folder, which is made if it is missing.

    Raises:
        ConfigError: another process works in it.
    """
    make_folder(folder)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(folder / LOCK, wait=False))
        except BlockingIOError as error:
            message = (
                f"{folder}: another command labels into it; wait for it, or name another --output"
            )
            raise ConfigError(message) from error
        yield


def describe_time(recipe: Recipe) -> str:
    """How long training and labelling will take, in words."""
    times = recipe.times
    start = f"{show_duration(START_S)} to start and to finish"
    training = f"{show_duration(times.train_s)} for {recipe.steps} updates"
    labelling = f"{show_duration(times.label_s)} for labelling"
    total = show_duration(times.total_s)
    return f"about {total}: {start}, {training}, {labelling} ({times.basis}; --minutes changes it)"


def _time_update(spec: RunSpec) -> float:
    import torch

    from boxseg.build import build_trainer
    from boxseg.engine.pace import time_update

    resources = spec.resources
    torch.set_num_threads(max(1, int(resources.cpus_per_worker)))
    trainer = build_trainer(
        spec,
        data_root=spec.storage.absolute() / ".data",
        device="cuda" if resources.gpus_per_worker else "cpu",
    )
    return time_update(trainer)


def train_recipe(recipe: Path, tell: Tell) -> RunStatus:
    """The finished run of a recipe: trained now, gone on with, or there already.

    Its status is `interrupted` if a stop was asked for, even after the last update: the whole command is to end.

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

    status = train_run(spec, resume=None if earlier is None else earlier.folder)
    is_stopped = RunFolder(status.folder).stop_requested()
    return replace(status, status="interrupted") if is_stopped else status


def find_same_run(spec: RunSpec) -> RunStatus | None:
    """The newest run of the same name, settings and storage, whatever its state; None where there is none."""
    from orchestration.record.resume import check_same_settings

    for status in list_runs(spec.storage, warns=False):
        if status.kind == "run" and status.parent is None and status.name == spec.name:
            pull_tree(Path(status.folder))
            try:
                check_same_settings(
                    spec, RunFolder(status.folder), may_change=("model.start_from",)
                )
            except ConfigError:
                continue
            return status
    return None


def last_checkpoint(status: RunStatus) -> Path:
    """The checkpoint that a finished run wrote after its last update."""
    return folder_of(Path(status.folder) / "checkpoints", status.steps)


@dataclass(frozen=True)
class MaskSource:
    """Where masks come from."""

    masks: Source
    about: dict[str, Any]
    """Identifies data and source, so that a later call goes on only with the same ones."""
    batch_size: int = 1


def open_source(
    name: str,
    boxes: CocoBoxes,
    *,
    run: str | None,
    masks: MaskFile | None,
    matched: Source | None = None,
    device: str,
    storage: Path,
) -> MaskSource:
    """A source of masks by its name: `run`, `box` or `file:COCO.json`.

    Args:
        name: Of the source; checked by `open_masks` already.
        boxes: Images and boxes to label.
        run: For the source `run`, as `open_predictor` takes it.
        masks: Of the file; for the source `run`, those that join its candidates.
        matched: These, if they are matched to the boxes already; that warns of what is left out.
        device: For the source `run`.
        storage: Folder that holds the runs.
    """
    from boxseg.label import sources
    from boxseg.label.boxes import LABEL_VERSION

    # The version counts for every source, as the way from boxes or files to masks may change too.
    about = {
        "data": digest(boxes.source.annotations),
        "source": name,
        "label_version": LABEL_VERSION,
    }
    if name == "run":
        assert run is not None
        if masks is not None:
            matched = matched or sources.from_file(masks, boxes)
            about["fuse_with"] = digest(masks.path)
        predictor = open_predictor(run, storage=storage, device=device)
        about["run"] = str(predictor.folder)
        fused = sources.from_run(predictor, boxes, others=matched)
        return MaskSource(fused, about, predictor.batch_size)
    if masks is not None:
        about["file"] = digest(masks.path)
        return MaskSource(sources.from_file(masks, boxes), about)
    return MaskSource(sources.from_boxes, about)


def make_labels(
    boxes: CocoBoxes,
    folder: Path,
    source: MaskSource,
    tell: Tell,
    *,
    about: dict[str, Any],
    review: bool,
    signals: StopSignals,
) -> dict[str, Any]:
    """Label the images that are left, write all labels, and with `review` draw the pages to look through them.

    Returns:
        What the command prints: `about`, files, counts, doubts and, if a run made the masks, the IoU to expect.

    Raises:
        StoppedError: one of the `signals` came, perhaps before the call.
    """
    from boxseg.label.checks import shared_doubt
    from boxseg.label.dataset import label_images, write_labels
    from boxseg.label.expected import expect_mean_iou
    from boxseg.label.journal import Journal
    from boxseg.label.review import write_review

    journal = Journal(folder, source.about)
    if changed := journal.forget_changed(boxes):
        tell(f"{changed} images were replaced since they were labelled, and are labelled again")
    left = len(boxes) - len(journal.done)
    if journal.done and left:
        tell(f"{len(journal.done)} images are labelled already")
    finished = label_images(boxes, source.masks, journal, batch_size=source.batch_size)
    _work_through(finished, left, signals, what="images")
    written = write_labels(boxes, journal, folder)
    doubt = shared_doubt(written["doubts"], written["boxes"])
    summary: dict[str, Any] = {"warning": doubt} if doubt else {}
    summary |= {"output": str(folder), **about, **written}
    if source.about["source"] == "run":
        labels = [label for image in journal.done.values() for label in image.labels]
        summary["expected_iou"] = expect_mean_iou([label["quality"] for label in labels])
    if review:
        pages = write_review(folder, boxes.source.images)
        _work_through(pages, len(boxes), signals, what="images drawn")
        summary["review"] = str(folder / "review/index.html")
    return summary


def _work_through(items: Iterable[object], total: int, signals: StopSignals, *, what: str) -> None:
    """Consume an iterator that does the work, and show progress.

    Raises:
        StoppedError: a signal came.
    """
    for _ in counted(items, total, what=what):
        if signals.has_received():
            raise StoppedError("interrupted; what is labelled is kept, the same command goes on")

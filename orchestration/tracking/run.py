"""One folder as a run of MLflow: its name, tags, parameters, metrics and end."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from boxseg.config.criterion import MASK_AP, Criterion
from orchestration.config.resolved import params_of, read_resolved
from orchestration.config.space import names_in
from orchestration.config.spec import SweepConfig, SweepSpec
from orchestration.record.run_folder import RunFolder, end_of
from orchestration.record.table import markdown_table, read_table
from orchestration.tracking.artifacts import (
    SETTINGS,
    copy_checkpoint,
    copy_files,
    copy_model,
    copy_results,
)
from orchestration.tracking.pages import save_comparison, score_name
from orchestration.tracking.run_copy import RunCopy

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

POINTS_PER_CALL = 900
"""MLflow takes up to 1000 metric points at once."""
PARAMS_PER_CALL = 100
MAX_TEXT = 5000
"""Longest tag and parameter that MLflow takes for sure [characters]."""

Stage = Literal["active", "deleted", "missing", "unknown"]

logger = logging.getLogger("boxseg.tracking")

END_TAGS = ("failure_class", "failure", "stopped_by", "front")
"""Tags that only some ends have; they are removed when the run is resumed."""

MLFLOW_STATUS = {
    "finished": "FINISHED",
    "stopped": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}


def follow(client: MlflowClient, experiment_id: str, folder: RunFolder) -> None:
    """Bring MLflow up to date with one folder; safe to repeat after a stop at any place, and from several processes.

    Raises:
        BlockingIOError: another process is at it.
    """
    with folder.tracking():
        state = folder.read_tracking()
        if state.get("deleted"):
            return
        try:
            _copy_news(RunCopy(client, experiment_id, folder, folder.status(), state))
        except Exception:
            stage = run_stage(client, state)
            # gone for good, or never in this store: all of it is copied at the next look
            if stage == "missing":
                folder.write_tracking({"uri": state.get("uri")})
            if stage != "deleted":
                raise
            folder.write_tracking(state | {"deleted": True})
            logger.warning(
                "%s was deleted in MLflow, and stays so; its folder is complete, and `boxseg runs track` brings it "
                "back",
                folder.path.name,
            )


def run_stage(client: MlflowClient, state: dict[str, Any]) -> Stage:
    """What MLflow has of a run: `active`, `deleted` in its page, `missing`; `unknown` where it does not answer."""
    from mlflow.exceptions import MlflowException

    if "run_id" not in state:
        return "unknown"
    try:
        stage = client.get_run(state["run_id"]).info.lifecycle_stage
    except MlflowException as error:
        return "missing" if error.error_code == "RESOURCE_DOES_NOT_EXIST" else "unknown"
    return "deleted" if stage == "deleted" else "active"


def _copy_news(copy: RunCopy) -> None:
    status, folder = copy.status, copy.folder
    if copy.state.get("ended") == [status.status, status.ended]:
        return
    if "run_id" not in copy.state:
        # Written at once: after a kill the run is found without a search.
        copy.keep(run_id=_open_run(copy))
    if not copy.state.get("described"):
        _describe(copy)
        copy.keep(described=True)
    if "ended" in copy.state:  # resumed, or another end was written
        _take_back_end(copy)
        del copy.state["ended"]
    _copy_metrics(copy)
    copy_files(copy, sorted(folder.path.glob("samples/[!.]*.png")))
    if status.is_final:
        _end_run(copy)
        is_result = status.parent is None and status.status == "finished"
        if is_result and folder.best_checkpoint.exists():
            copy_model(copy, folder.best_checkpoint.resolve())
        copy.keep(ended=[status.status, status.ended])


def _open_run(copy: RunCopy) -> str:
    """Id of the folder's MLflow run, found by its tag or made."""
    known = _find_runs(copy)
    if known:
        return str(known[0].info.run_id)
    status = copy.status
    tags = {"boxseg.run": status.id, "boxseg.kind": status.kind, "boxseg.folder": status.folder}
    tags |= {"mlflow.source.name": "boxseg", "mlflow.source.type": "LOCAL", "status": "running"}
    tags |= {f"varied.{name}": str(value)[:MAX_TEXT] for name, value in status.values.items()}
    tags["mlflow.note.content"] = make_note(copy)
    if "git_commit" in status.tags:
        tags["mlflow.source.git.commit"] = status.tags["git_commit"]
    if copy.parent is not None:
        # A KeyError where MLflow has not taken the parent yet: the next look tries again.
        tags["mlflow.parentRunId"] = copy.parent.read_tracking()["run_id"]
    run = copy.client.create_run(
        copy.experiment_id,
        start_time=_in_ms(status.created),
        tags={**status.tags, **tags},
        run_name=run_name(copy),
    )
    return str(run.info.run_id)


def _find_runs(copy: RunCopy) -> Sequence[Run]:
    """MLflow's runs of the tag that names this one."""
    return copy.client.search_runs([copy.experiment_id], f"tags.`boxseg.run` = '{copy.status.id}'")


def run_name(copy: RunCopy) -> str:
    """As in `sweep 2026-11-23 16:43 e093`; a trial has its number, the settings it varies, and its seed."""
    status = copy.status
    end = end_of(status.id)
    if copy.parent is None:
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.created))
        return f"{status.kind} {created} {end}"
    sweep = read_resolved(copy.parent.config_path).get("sweep", {})
    seeds = sweep.get("seeds", [])
    seed = f" seed={status.tags.get('seed', '')}" if len(seeds) > 1 else ""
    return f"{end} {status.description}{seed}"[:200]


def criterion_of(copy: RunCopy) -> Criterion:
    """What decides which evaluation of a run is the best, by its own settings or those of its sweep."""
    if copy.parent is None and copy.status.kind == "run":
        return MASK_AP
    settings = read_resolved((copy.parent or copy.folder).config_path)["sweep"]
    return Criterion(settings["metric"], settings["mode"])


def make_note(copy: RunCopy) -> str:
    """The text on a run's page: the command that made it, and for a sweep the table of its trials."""
    status, folder = copy.status, copy.folder
    command = status.tags.get("command")
    lines = []
    if command is not None and status.parent is None:
        lines.append(f"`{command}`\n")
    if status.failure is not None:
        lines.append(f"{status.failure.kind}: {status.failure.text}\n")
    if status.kind == "sweep":
        spec = SweepSpec.model_validate(read_resolved(folder.config_path))
        lines += markdown_table(read_table(folder.path, spec)).splitlines()
    elif status.description:
        lines.append(status.description)
    text = "\n".join(lines)
    if len(text) <= MAX_TEXT:
        return text
    whole_lines = text[: MAX_TEXT - 20].rpartition("\n")[0]
    return whole_lines + "\n\n…"


def _describe(copy: RunCopy) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    folder, tags = copy.folder, copy.status.tags
    params = params_of(read_resolved(folder.config_path))
    params.pop("tracking.uri")  # may hold a secret
    params |= dict.fromkeys(_not_applying(copy), "-")
    # MLflow refuses other values; those may be of a run that went on with other resources, or was moved
    there = copy.client.get_run(copy.run_id).data.params
    settings = [
        Param(name, str(value)[:MAX_TEXT]) for name, value in params.items() if name not in there
    ]
    for part in _parts(settings, PARAMS_PER_CALL):
        copy.client.log_batch(copy.run_id, params=part)
    if "data_fingerprint" in tags:
        data = Dataset(
            Path(tags["data"]).stem,
            tags["data_fingerprint"],
            source_type="local",
            source=json.dumps({"uri": tags["data"]}),
        )
        context = InputTag("mlflow.data.context", "training")
        copy.client.log_inputs(copy.run_id, datasets=[DatasetInput(data, [context])])
    copy_files(copy, (folder.path / name for name in SETTINGS))
    if copy.status.kind == "sweep":
        save_comparison(copy.client, copy.experiment_id, folder, copy.run_id)


def _not_applying(copy: RunCopy) -> list[str]:
    """Settings of the sweep's space that do not apply to a trial; their values would look like ones that were tried."""
    if copy.parent is None:
        return []
    sweep = read_resolved(copy.parent.config_path)["sweep"]
    names = names_in(SweepConfig.model_validate(sweep).space)
    return [name for name in names if name not in copy.status.values]


def _copy_metrics(copy: RunCopy) -> None:
    """Log what is new; after a fault all of it comes again, and MLflow drops the points that it has already."""
    from mlflow.entities import Metric

    reports, offset = copy.folder.reports_since(copy.state.get("offset", 0))
    points = []
    for report in reports:
        for name, value in report.metrics.items():
            points.append(Metric(name, value, _in_ms(report.time), report.step))
    for part in _parts(points, POINTS_PER_CALL):
        copy.client.log_batch(copy.run_id, metrics=part)
    if points:
        copy.keep(offset=offset)


def _end_run(copy: RunCopy) -> None:
    from mlflow.entities import Metric, RunTag

    client, run_id, status, folder = copy.client, copy.run_id, copy.status, copy.folder
    copy_results(copy)
    tags = {"status": str(status.status), "mlflow.note.content": make_note(copy)}
    if status.failure is not None:
        tags["failure_class"] = str(status.failure.failure_class)
        tags["failure"] = status.failure.text[:MAX_TEXT]
    if status.start:
        tags["start"] = status.start[:MAX_TEXT]
    if status.status == "stopped":
        tags["stopped_by"] = status.tags.get("trial_scheduler", "")
    criterion = criterion_of(copy)
    if (value := criterion.value(status.best)) is not None:
        # Of the best evaluation; the metric itself shows the last one. Shares of one length sort as text.
        tags["best"] = f"{value:.6f}"
        tags["best_by"] = f"{criterion.metric} {criterion.mode}"
        if status.best_step is not None:  # a sweep has none
            tags["best_step"] = str(status.best_step)
        step = status.step if status.best_step is None else status.best_step
        score = Metric(score_name(criterion.metric), value, _in_ms(status.ended or 0.0), step)
        client.log_batch(run_id, metrics=[score])
    if status.front:
        tags["front"] = ", ".join(map(end_of, status.front))[:MAX_TEXT]
        _mark_front(copy)
    if _is_on_front(copy):
        tags["front"] = "yes"
    if folder.best_checkpoint.exists():
        tags["best_checkpoint"] = str(folder.best_checkpoint)
        # `best` may move on meanwhile
        copy_checkpoint(copy, folder.best_checkpoint.resolve())
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    # Last, so that a run which looks ended in MLflow is complete there.
    end_ms = _in_ms(status.ended or time.time())
    client.set_terminated(run_id, status=MLFLOW_STATUS[status.status], end_time=end_ms)
    for double in _find_runs(copy):
        # the server had made it after we stopped waiting for its answer
        if double.info.run_id != run_id:
            client.delete_run(double.info.run_id)


def _mark_front(copy: RunCopy) -> None:
    """Mark the trials on a sweep's front that MLflow has; the others are marked at their end."""
    folders = [RunFolder(copy.folder.path / name) for name in copy.status.front]
    tracked = [folder.read_tracking().get("run_id") for folder in folders]
    marked = copy.client.search_runs(
        [copy.experiment_id],
        f"tags.front = 'yes' and tags.`mlflow.parentRunId` = '{copy.run_id}'",
    )
    # the sweep may have been resumed, and others beat them
    for run in marked:
        if run.info.run_id not in tracked:
            copy.client.set_tag(run.info.run_id, "front", "no")
    for trial in filter(None, tracked):
        copy.client.set_tag(trial, "front", "yes")


def _is_on_front(copy: RunCopy) -> bool:
    """Whether a trial is on the front of a sweep that has ended."""
    if copy.parent is None:
        return False
    sweep = copy.parent.stored()
    return sweep.is_final and copy.status.id in sweep.front


def _take_back_end(copy: RunCopy) -> None:
    """Remove what `_end_run` wrote about an end that no longer holds."""
    client, run_id = copy.client, copy.run_id
    for name in client.get_run(run_id).data.tags.keys() & set(END_TAGS):
        client.delete_tag(run_id, name)
    client.set_tag(run_id, "status", "running")
    client.set_tag(run_id, "mlflow.note.content", make_note(copy))
    client.update_run(run_id, status="RUNNING")


def _in_ms(seconds: float) -> int:
    """A time as MLflow counts it."""
    return round(1000 * seconds)


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))

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
from orchestration.record.run_folder import RunFolder, RunStatus
from orchestration.record.table import markdown_table, read_table
from orchestration.tracking.artifacts import (
    SETTINGS,
    copy_checkpoint,
    copy_files,
    copy_model,
    copy_results,
)
from orchestration.tracking.pages import save_comparison, score_name

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
"""Tags that only some ends have; they are taken back when the run goes on."""

MLFLOW_STATUS = {
    "finished": "FINISHED",
    "stopped": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}


def follow(client: MlflowClient, experiment_id: str, folder: RunFolder) -> None:
    """Bring MLflow up to date with one folder; safe to repeat after a stop at any place."""
    state = folder.read_tracking()
    if state.get("deleted"):
        return
    try:
        _follow(client, experiment_id, folder, state)
    except Exception:
        stage = run_stage(client, state)
        # gone for good, or never in this store: all of it is copied at the next look
        if stage == "missing":
            folder.write_tracking({"uri": state.get("uri")})
        if stage != "deleted":
            raise
        folder.write_tracking(state | {"deleted": True})
        logger.warning(
            "%s was deleted in MLflow, and stays so; its folder is complete, and `boxseg runs track` brings it back",
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


def _follow(
    client: MlflowClient, experiment_id: str, folder: RunFolder, state: dict[str, Any]
) -> None:
    status = folder.status()
    if state.get("ended") == [status.status, status.ended]:
        return
    if "run_id" not in state:
        # Kept at once: after a kill the run is found again without a search.
        state["run_id"] = _open_run(client, experiment_id, folder, status)
        folder.write_tracking(state)
    if not state.get("described"):
        _describe(client, experiment_id, folder, status, state)
        state["described"] = True
        folder.write_tracking(state)
    if "ended" in state:  # resumed, or its end is told anew
        _take_back_end(client, folder, status, state["run_id"])
        del state["ended"]
    _copy_metrics(client, folder, state)
    copy_files(client, folder, state, sorted(folder.path.glob("samples/[!.]*.png")))
    if status.is_final:
        _end_run(client, experiment_id, folder, status, state)
        is_result = status.parent is None and status.status == "finished"
        if is_result and folder.best_checkpoint.exists():
            copy_model(client, folder, folder.best_checkpoint.resolve(), state["run_id"])
        state["ended"] = [status.status, status.ended]
        folder.write_tracking(state)


def _open_run(
    client: MlflowClient,
    experiment_id: str,
    folder: RunFolder,
    status: RunStatus,
) -> str:
    """Id of the folder's MLflow run, found by its tag or made."""
    known = _find_runs(client, experiment_id, status)
    if known:
        return str(known[0].info.run_id)
    tags = {"boxseg.run": status.id, "boxseg.kind": status.kind, "boxseg.folder": status.folder}
    tags |= {"mlflow.source.name": "boxseg", "mlflow.source.type": "LOCAL", "status": "running"}
    tags |= {f"varied.{name}": str(value)[:MAX_TEXT] for name, value in status.values.items()}
    tags["mlflow.note.content"] = make_note(folder, status)
    if "git_commit" in status.tags:
        tags["mlflow.source.git.commit"] = status.tags["git_commit"]
    if status.parent is not None:
        # A KeyError where MLflow has not taken the parent yet: the next look tries again.
        tags["mlflow.parentRunId"] = _parent(folder, status).read_tracking()["run_id"]
    # MLflow counts milliseconds.
    created = round(1000 * status.created)
    name = run_name(folder, status)
    run = client.create_run(
        experiment_id,
        start_time=created,
        tags={**status.tags, **tags},
        run_name=name,
    )
    return str(run.info.run_id)


def _find_runs(client: MlflowClient, experiment_id: str, status: RunStatus) -> Sequence[Run]:
    """MLflow's runs of the tag that names this one."""
    return client.search_runs([experiment_id], f"tags.`boxseg.run` = '{status.id}'")


def run_name(folder: RunFolder, status: RunStatus) -> str:
    """As in `sweep 2026-11-23 16:43 e093`; of a trial its number, the settings that it varies, and its seed."""
    end = status.id.rsplit("-", 1)[-1]
    if status.parent is None:
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.created))
        return f"{status.kind} {created} {end}"
    sweep = read_resolved(_parent(folder, status).config_path).get("sweep", {})
    seeds = sweep.get("seeds", [])
    seed = f" seed={status.tags.get('seed', '')}" if len(seeds) > 1 else ""
    return f"{end} {status.description}{seed}"[:200]


def criterion_of(folder: RunFolder, status: RunStatus) -> Criterion:
    """What decides which evaluation of a run is the best, by its own settings or those of its sweep."""
    if status.parent is None and status.kind == "run":
        return MASK_AP
    sweep = folder if status.parent is None else _parent(folder, status)
    settings = read_resolved(sweep.config_path)["sweep"]
    return Criterion(settings["metric"], settings["mode"])


def make_note(folder: RunFolder, status: RunStatus) -> str:
    """What a run's page says in words: of a sweep the table of its trials, and the command that made it."""
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


def _parent(folder: RunFolder, status: RunStatus) -> RunFolder:
    return RunFolder(folder.path / str(status.parent))


def _describe(
    client: MlflowClient,
    experiment_id: str,
    folder: RunFolder,
    status: RunStatus,
    state: dict[str, Any],
) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    run_id = state["run_id"]
    params = params_of(read_resolved(folder.config_path))
    params.pop("tracking.uri")  # may hold a secret
    params |= dict.fromkeys(_not_applying(folder, status), "-")
    settings = [Param(name, str(value)[:MAX_TEXT]) for name, value in params.items()]
    for part in _parts(settings, PARAMS_PER_CALL):
        client.log_batch(run_id, params=part)
    if "data_fingerprint" in status.tags:
        path = status.tags["data"]
        source = json.dumps({"uri": path})
        data = Dataset(
            Path(path).stem,
            status.tags["data_fingerprint"],
            source_type="local",
            source=source,
        )
        context = InputTag("mlflow.data.context", "training")
        client.log_inputs(run_id, datasets=[DatasetInput(data, [context])])
    copy_files(client, folder, state, (folder.path / name for name in SETTINGS))
    if status.kind == "sweep":
        save_comparison(client, experiment_id, folder, run_id)


def _not_applying(folder: RunFolder, status: RunStatus) -> list[str]:
    """Settings of the sweep's space that do not apply to a trial; their values would look like ones that were tried."""
    if status.parent is None:
        return []
    sweep = read_resolved(_parent(folder, status).config_path)["sweep"]
    names = names_in(SweepConfig.model_validate(sweep).space)
    return [name for name in names if name not in status.values]


def _copy_metrics(client: MlflowClient, folder: RunFolder, state: dict[str, Any]) -> None:
    """Log what is new; after a fault all of it comes again, and MLflow drops the points that it has already."""
    from mlflow.entities import Metric

    reports, offset = folder.reports_since(state.get("offset", 0))
    points = []
    for report in reports:
        time_ms = round(1000 * report.time)
        for name, value in report.metrics.items():
            points.append(Metric(name, value, time_ms, report.step))
    for part in _parts(points, POINTS_PER_CALL):
        client.log_batch(state["run_id"], metrics=part)
    if points:
        state["offset"] = offset
        folder.write_tracking(state)


def _end_run(
    client: MlflowClient,
    experiment_id: str,
    folder: RunFolder,
    status: RunStatus,
    state: dict[str, Any],
) -> None:
    from mlflow.entities import Metric, RunTag

    run_id = state["run_id"]
    copy_results(client, folder, state)
    tags: dict[str, str] = {
        "status": status.status,
        "mlflow.note.content": make_note(folder, status),
    }
    if status.failure is not None:
        tags["failure_class"] = str(status.failure.failure_class)
        tags["failure"] = status.failure.text[:MAX_TEXT]
    if status.start:
        tags["start"] = status.start[:MAX_TEXT]
    if status.status == "stopped":
        tags["stopped_by"] = status.tags.get("trial_scheduler", "")
    criterion = criterion_of(folder, status)
    if (value := criterion.value(status.best)) is not None:
        # Of the best evaluation; the metric itself shows the last one. Shares of one length sort as text.
        tags["best"] = f"{value:.6f}"
        tags["best_by"] = f"{criterion.metric} {criterion.mode}"
        if status.best_step is not None:  # a sweep has none
            tags["best_step"] = str(status.best_step)
        end_ms = round(1000 * (status.ended or 0.0))
        step = status.step if status.best_step is None else status.best_step
        client.log_batch(
            run_id, metrics=[Metric(score_name(criterion.metric), value, end_ms, step)]
        )
    if status.front:
        tags["front"] = ", ".join(name.rsplit("-", 1)[-1] for name in status.front)[:MAX_TEXT]
        _mark_front(client, experiment_id, folder, status.front, run_id)
    if _is_on_front(folder, status):
        tags["front"] = "yes"
    if folder.best_checkpoint.exists():
        tags["best_checkpoint"] = str(folder.best_checkpoint)
        # `best` may move on meanwhile
        copy_checkpoint(client, folder, folder.best_checkpoint.resolve(), state)
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    end = round(1000 * (status.ended or time.time()))
    # After all else, so that whoever sees a run ended there has all of it.
    client.set_terminated(run_id, status=MLFLOW_STATUS[status.status], end_time=end)
    for double in _find_runs(client, experiment_id, status):
        # the server had made one when we no longer waited for its answer
        if double.info.run_id != run_id:
            client.delete_run(double.info.run_id)


def _mark_front(
    client: MlflowClient, experiment_id: str, sweep: RunFolder, front: Sequence[str], run_id: str
) -> None:
    """Mark the trials of a sweep that are on its front, as far as MLflow has them; the others get it at their end."""
    tracked = [RunFolder(sweep.path / name).read_tracking().get("run_id") for name in front]
    marked = client.search_runs(
        [experiment_id], f"tags.front = 'yes' and tags.`mlflow.parentRunId` = '{run_id}'"
    )
    # the sweep may have gone on since, and they were beaten
    for run in marked:
        if run.info.run_id not in tracked:
            client.set_tag(run.info.run_id, "front", "no")
    for trial in filter(None, tracked):
        client.set_tag(trial, "front", "yes")


def _is_on_front(folder: RunFolder, status: RunStatus) -> bool:
    """Whether a trial is on the front of a sweep that has ended."""
    if status.parent is None:
        return False
    sweep = _parent(folder, status).stored()
    return sweep.is_final and status.id in sweep.front


def _take_back_end(
    client: MlflowClient,
    folder: RunFolder,
    status: RunStatus,
    run_id: str,
) -> None:
    """Undo what `_end_run` wrote about an end that counts no more; the next end is written anew."""
    for name in client.get_run(run_id).data.tags.keys() & set(END_TAGS):
        client.delete_tag(run_id, name)
    client.set_tag(run_id, "status", "running")
    client.set_tag(run_id, "mlflow.note.content", make_note(folder, status))
    client.update_run(run_id, status="RUNNING")


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))

"""Addresses of MLflow's own pages, and the saved view that compares the trials of a sweep."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from orchestration.config.resolved import read_resolved
from orchestration.record.run_folder import RunFolder

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRAINING = {"workflowType": "machine_learning"}
"""Opens the pages for training runs; MLflow shows those for language models otherwise."""
VIEW_TAG = "mlflow.sharedViewState."
"""Experiment tag that keeps a saved view, followed by its key."""
SHOWN_METRICS = ("val/mask_ap", "val/box_ap", "qam/pseudo_iou")
LINES = 100
"""Most trials that one line chart draws; the parallel coordinates draw all that the page has loaded."""

UNSMOOTHED = {"lineSmoothness": 0, "useGlobalLineSmoothing": False}
"""Of a line chart: the values as they are; there are few evaluations."""


def score_name(metric: str) -> str:
    """MLflow's metric of a run that has ended for its best evaluation by `metric`, whose own column shows the last."""
    return f"best/{metric}"


def experiment_url(server: str, experiment_id: str) -> str:
    """The table of all runs of an experiment."""
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{urlencode(TRAINING)}"


def comparison_url(server: str, experiment_id: str, sweep_id: str) -> str:
    """The trials of a sweep side by side, as `save_comparison` arranged them; as short for 1,000 trials as for 2."""
    query = {**TRAINING, "compareRunsMode": "CHART", "viewStateShareKey": sweep_id}
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{urlencode(query)}"


def save_comparison(
    client: MlflowClient, experiment_id: str, folder: RunFolder, run_id: str
) -> None:
    """Save a view of a sweep's trials, which MLflow's page lists under Views: swept settings and metrics chosen.

    The sweep's id is the view's key; `run_id` is MLflow's id of the sweep's own run.
    """
    sweep, sweep_id = read_resolved(folder.config_path)["sweep"], folder.path.name
    settings = list(sweep["space"])
    if len(sweep["seeds"]) > 1:
        settings.append("train.seed")
    metric = sweep["metric"]
    metrics = [metric, *(name for name in SHOWN_METRICS if name != metric)]
    score = score_name(metric)
    state = {
        "searchFilter": f"tags.mlflow.parentRunId = '{run_id}'",
        "orderByKey": f"metrics.`{score}`",
        "orderByAsc": sweep["mode"] == "min",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": [
            *(f"metrics.`{name}`" for name in (score, *metrics)),
            *(f"params.`{name}`" for name in settings),
            "tags.`status`",
        ],
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": [
            _chart(
                "Settings",
                "PARALLEL",
                selectedParams=settings,
                selectedMetrics=[score],
                showAllRuns=True,
            ),
            *map(_curve_chart, metrics),
        ],
        "compareRunSections": [
            _section("Settings", columns=1),
            _section("Curves", columns=len(metrics)),
        ],
        "isAccordionReordered": True,
    }
    # MLflow counts milliseconds.
    now = round(1000 * time.time())
    view = {
        "name": f"sweep {sweep_id}",
        "createdAt": now,
        "updatedAt": now,
        "state": json.dumps(state),
    }
    client.set_experiment_tag(experiment_id, f"{VIEW_TAG}{sweep_id}", json.dumps(view))


def _curve_chart(metric: str) -> dict[str, Any]:
    return _chart("Curves", "LINE", metricKey=metric, selectedMetricKeys=[metric], **UNSMOOTHED)


def _chart(section: str, kind: str, **settings: Any) -> dict[str, Any]:
    return {
        "uuid": settings.get("metricKey", kind),
        "type": kind,
        "metricSectionId": section,
        "runsCountToCompare": LINES,
        "deleted": False,
        "isGenerated": False,
        **settings,
    }


def _section(name: str, *, columns: int) -> dict[str, Any]:
    shape = {"columns": columns, "cardHeight": 360}
    return {"uuid": name, "name": name, "display": True, "isReordered": True, **shape}

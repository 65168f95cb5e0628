"""Manifests for KubeRay: a RayCluster to submit jobs to, or a RayJob with a cluster of its own."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

STORAGE = Path("/data/runs")
"""Where the volume claim is mounted on every node."""
HEALTH_PORT = 52365
"""Port of a node's agent, which answers for its raylet."""


@dataclass(frozen=True)
class Nodes:
    """What a cluster consists of, besides its head, which only coordinates."""

    image: str
    count: int
    cpus: int
    """CPU cores of each node."""
    gpus: int
    memory: str
    """Memory of each node as Kubernetes writes it, as in 16Gi."""
    claim: str
    """Persistent volume claim that every node can mount (ReadWriteMany)."""


def make_cluster(name: str, nodes: Nodes) -> list[dict[str, Any]]:
    """A RayCluster that stays until it is deleted."""
    return [_document("ray.io/v1", "RayCluster", name, spec=_cluster(nodes))]


def make_job(
    name: str,
    arguments: list[str],
    experiment: Path,
    nodes: Nodes,
) -> list[dict[str, Any]]:
    """A ConfigMap with the experiment file, and a RayJob whose cluster ends with it.

    Args:
        name: Name of the job.
        arguments: `train` or `sweep`, the experiment file, and their options.
        experiment: The experiment file, one of the arguments.
        nodes: The job's cluster.
    """
    name = _dns_name(name)
    mounted = Path("/experiment") / experiment.name
    command = []
    for argument in arguments:
        # not as text: ./EXP.yaml and EXP.yaml are one file
        is_experiment = Path(argument) == experiment
        command.append(str(mounted) if is_experiment else argument)
    folder = STORAGE / ".jobs" / name
    entry = ["python", "-u", "-m", "orchestration.jobs.entry", str(folder)]
    entry += [*command, "--set", f"storage={STORAGE}"]
    cluster = _cluster(nodes, config=name)
    submitter = _pod(
        "ray-job-submitter",
        nodes.image,
        _resources(1, 0, "1Gi"),
        {},
        restartPolicy="Never",  # pods of a Kubernetes job may not restart always, the default
    )
    job = {
        "entrypoint": shlex.join(entry),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "backoffLimit": 0,
        "submitterPodTemplate": submitter,
        "rayClusterSpec": cluster,
    }
    texts = {experiment.name: experiment.read_text(encoding="utf-8")}
    return [
        _document("v1", "ConfigMap", name, data=texts),
        _document("ray.io/v1", "RayJob", name, spec=job),
    ]


def to_yaml(documents: list[dict[str, Any]]) -> str:
    """The documents as YAML, for `kubectl apply -f -`."""
    return yaml.dump_all(documents, Dumper=_Plain, sort_keys=False)


class _Plain(yaml.SafeDumper):
    """Writes texts of several lines as they are, and parts that are used twice in full."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str",
        text,
        style="|" if "\n" in text else None,
    )


_Plain.add_representer(str, _write_text)


def _document(api: str, kind: str, name: str, **content: Any) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "boxseg"}
    metadata = {"name": _dns_name(name), "labels": labels}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **content}


def _cluster(nodes: Nodes, *, config: str | None = None) -> dict[str, Any]:
    """The head, which runs no trials, and equal worker nodes; the operator makes the token and gives it to all."""
    volumes = [
        ("storage", str(STORAGE), {"persistentVolumeClaim": {"claimName": nodes.claim}}),
        # Ray's object store is there, for which a container has 64 MB by default
        ("shared-memory", "/dev/shm", {"emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}}),
    ]
    if config is not None:
        volumes.append(("experiment", "/experiment", {"configMap": {"name": config}}))
    mounts = {"volumeMounts": [{"name": name, "mountPath": path} for name, path, _ in volumes]}
    sources = [{"name": name, **source} for name, _, source in volumes]
    ports = [
        {"name": "gcs-server", "containerPort": 6379},
        {"name": "dashboard", "containerPort": 8265},
    ]
    health = _probes(readiness=("/api/gcs_healthz", 8265))
    head = _pod(
        "ray-head",
        nodes.image,
        _resources(2, 0, "8Gi"),
        {"ports": ports, **mounts, **health},
        volumes=sources,
    )
    health = _probes(readiness=("/api/local_raylet_healthz", HEALTH_PORT))
    resources = _resources(nodes.cpus, nodes.gpus, nodes.memory)
    worker = _pod("ray-worker", nodes.image, resources, mounts | health, volumes=sources)
    group = {
        "groupName": "workers",
        "replicas": nodes.count,
        "minReplicas": nodes.count,
        "maxReplicas": nodes.count,
    }
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": head},
        "workerGroupSpecs": [{**group, "rayStartParams": {}, "template": worker}],
    }


def _pod(
    name: str,
    image: str,
    resources: dict[str, Any],
    more: dict[str, Any],
    **spec: Any,
) -> dict[str, Any]:
    """A pod with one container, without root and without access to Kubernetes; `more` adds to the container."""
    container = {
        "name": name,
        "image": image,
        "resources": resources,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "env": [
            {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
            # Ray gives its workers 15: beside other work they starve
            {"name": "RAY_worker_niceness", "value": "0"},
        ],
        **more,
    }
    # volumes belong to root until Kubernetes gives them to the group of fsGroup
    user = {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
    return {
        "spec": {
            "automountServiceAccountToken": False,
            "securityContext": {**user, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            **spec,
        }
    }


def _resources(cpus: int, gpus: int, memory: str) -> dict[str, Any]:
    """The same as request and as limit, so that the node is what Ray thinks it is."""
    amounts = {"cpu": str(cpus), "memory": memory}
    if gpus:
        amounts["nvidia.com/gpu"] = str(gpus)
    return {"requests": amounts, "limits": dict(amounts)}


def _probes(*, readiness: tuple[str, int]) -> dict[str, Any]:
    """Ray's own health pages, which need no token."""

    def probe(path: str, port: int, **timing: int) -> dict[str, Any]:
        return {"httpGet": {"path": path, "port": port}, "timeoutSeconds": 5, **timing}

    alive = ("/api/local_raylet_healthz", HEALTH_PORT)
    return {
        "startupProbe": probe(*alive, periodSeconds=5, failureThreshold=60),
        "livenessProbe": probe(*alive, periodSeconds=10, failureThreshold=12),
        "readinessProbe": probe(*readiness, periodSeconds=10, failureThreshold=6),
    }


def _dns_name(name: str) -> str:
    """A name as Kubernetes allows it, short enough for what KubeRay appends."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].rstrip("-") or "boxseg"

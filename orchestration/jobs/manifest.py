"""Manifests for KubeRay: a RayCluster to submit jobs to, or a RayJob with a cluster of its own."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from boxseg.errors import ConfigError
from orchestration.config.spec import ResourcesConfig
from orchestration.jobs.site import Site, pod_settings, worker_settings

STORAGE = Path("/data/runs")
"""Where the volume claim is mounted on every node."""
HEALTH_PORT = 52365
"""Port of a node's agent, which answers for its raylet."""
QUEUE = "kueue.x-k8s.io/queue-name"
"""Label by which Kueue takes a job or a cluster into a queue."""
IDLE_S = 120
"""A node without work is given back after this time [s], as long as more than `count` are left."""


@dataclass(frozen=True)
class Nodes:
    """What a cluster consists of, besides its head, which only coordinates."""

    image: str
    count: int
    """Worker nodes at the start, and the fewest later."""
    most: int
    """The most worker nodes, reached while trials wait for a place."""
    cpus: int
    """CPU cores of each node."""
    gpus: int
    memory: str
    """Memory of each node as Kubernetes writes it, as in 16Gi."""
    claim: str | None
    """Persistent volume claim that every node can mount (ReadWriteMany); None: no volume."""

    @property
    def grows(self) -> bool:
        """Whether there may be more of them later."""
        return self.most > self.count


def check_nodes(nodes: Nodes, site: Site, run: ResourcesConfig | None) -> None:
    """Refuse a cluster on which the run would never start, or which it would not use.

    Args:
        nodes: The cluster.
        site: What the Kubernetes cluster asks of it.
        run: What one run needs; None where that is not known, as for a cluster that stays.

    Raises:
        ConfigError: fewer nodes at most than at least, a queue for a cluster that grows, or nodes that do not fit the
            run.
    """
    if nodes.most < nodes.count:
        raise ConfigError(
            f"jobs manifest: --max-nodes {nodes.most} is less than --nodes {nodes.count}; raise it"
        )
    if site.queue and nodes.grows:
        raise ConfigError(
            f"jobs manifest: queue {site.queue} admits a job with all its nodes, so that it cannot grow; leave out "
            "--max-nodes, or the queue"
        )
    if run is None:
        return
    if nodes.gpus and not run.gpus_per_worker:
        raise ConfigError(
            f"jobs manifest: --gpus {nodes.gpus}, but the experiment uses none: its resources.gpus_per_worker is 0; "
            "set that, as in --set resources.gpus_per_worker=1 behind the experiment file, or leave out --gpus"
        )
    for what, has, needs, setting in (
        ("CPU cores", nodes.cpus, run.cpus_per_worker, "cpus"),
        ("GPUs", nodes.gpus, run.gpus_per_worker, "gpus"),
    ):
        places = nodes.most * (int(has // needs) if needs else run.workers)
        if places < run.workers:
            raise ConfigError(
                f"jobs manifest: {nodes.most} nodes with {has} {what} each hold {places} of the {run.workers} workers "
                f"of a run, which need {needs:g} each; raise --{setting} or --nodes, or lower "
                f"resources.{setting}_per_worker"
            )


def make_cluster(name: str, nodes: Nodes, site: Site) -> list[dict[str, Any]]:
    """A RayCluster that stays until it is deleted."""
    queue = {QUEUE: site.queue} if site.queue else {}
    return [
        _document("ray.io/v1", "RayCluster", name, site, labels=queue, spec=_cluster(nodes, site))
    ]


def make_job(
    name: str,
    arguments: list[str],
    experiment: Path,
    nodes: Nodes,
    site: Site,
    *,
    storage: str,
    retries: int,
) -> list[dict[str, Any]]:
    """A ConfigMap with the experiment file, and a RayJob whose cluster ends with it.

    Args:
        name: Name of the job.
        arguments: `train` or `sweep`, the experiment file, and their options.
        experiment: The experiment file, one of the arguments.
        nodes: The job's cluster.
        site: What the Kubernetes cluster asks of all that runs there.
        storage: Where its runs are kept: a folder that all nodes see, or the address of an object store.
        retries: How often a job that failed is started again, on a new cluster; it then goes on from what it has
            saved.
    """
    name = _dns_name(name)
    mounted = Path("/experiment") / experiment.name
    command = []
    for argument in arguments:
        # not as text: ./EXP.yaml and EXP.yaml are one file
        is_experiment = Path(argument) == experiment
        command.append(str(mounted) if is_experiment else argument)
    entry = ["python", "-u", "-m", "orchestration.jobs.entry", f"{storage}/.jobs/{name}"]
    entry += [*command, "--set", f"storage={storage}"]
    if retries:
        # Kubernetes starts the same command again, on a new cluster
        entry.append("--auto-resume")
    cluster = _cluster(nodes, site, config=name)
    submitter = _pod(
        "ray-job-submitter",
        nodes.image,
        _resources(1, 0, "1Gi"),
        {},
        site,
        restartPolicy="Never",  # pods of a Kubernetes job may not restart always, the default
    )
    job = {
        "entrypoint": shlex.join(entry),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "backoffLimit": retries,
        "submitterPodTemplate": submitter,
        "rayClusterSpec": cluster,
    }
    texts = {experiment.name: experiment.read_text(encoding="utf-8")}
    queue = {QUEUE: site.queue} if site.queue else {}
    return [
        _document("v1", "ConfigMap", name, site, data=texts),
        _document("ray.io/v1", "RayJob", name, site, labels=queue, spec=job),
    ]


def to_yaml(documents: list[dict[str, Any]]) -> str:
    """The documents as YAML, for `kubectl apply -f -`."""
    return yaml.dump_all(documents, Dumper=_Plain, sort_keys=False)


class _Plain(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and values that are used twice in full."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    )


_Plain.add_representer(str, _write_text)


def _document(
    api: str,
    kind: str,
    name: str,
    site: Site,
    *,
    labels: dict[str, str] | None = None,
    **content: Any,
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": _dns_name(name)}
    if site.namespace:
        metadata["namespace"] = site.namespace
    metadata["labels"] = {"app.kubernetes.io/name": "boxseg"} | (labels or {})
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **content}


def _cluster(nodes: Nodes, site: Site, *, config: str | None = None) -> dict[str, Any]:
    """The head, which runs no trials, and equal worker nodes; the operator makes the token and gives it to all."""
    volumes: list[tuple[str, str, dict[str, Any]]] = []
    if nodes.claim is not None:
        volumes.append(
            ("storage", str(STORAGE), {"persistentVolumeClaim": {"claimName": nodes.claim}})
        )
    # Ray's object store is there, for which a container has 64 MB by default
    memory = {"emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}}
    volumes.append(("shared-memory", "/dev/shm", memory))
    if config is not None:
        volumes.append(("experiment", "/experiment", {"configMap": {"name": config}}))
    container: dict[str, Any] = {
        "volumeMounts": [{"name": name, "mountPath": path} for name, path, _ in volumes]
    }
    if site.secrets:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in site.secrets]
    pod: dict[str, Any] = {"volumes": [{"name": name, **source} for name, _, source in volumes]}
    scaling: dict[str, Any] = {}
    if nodes.grows:
        # a pod that restarts would be another node than the one that the autoscaler knows
        pod["restartPolicy"] = "Never"
        scaling["enableInTreeAutoscaling"] = True
        scaling["autoscalerOptions"] = {"version": "v2", "idleTimeoutSeconds": IDLE_S}
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        **scaling,
        "headGroupSpec": _head(nodes, site, container, pod),
        "workerGroupSpecs": [_workers(nodes, site, container, pod)],
    }


def _head(
    nodes: Nodes, site: Site, container: dict[str, Any], pod: dict[str, Any]
) -> dict[str, Any]:
    ports = [
        {"name": "gcs-server", "containerPort": 6379},
        {"name": "dashboard", "containerPort": 8265},
    ]
    health = _probes(readiness=("/api/gcs_healthz", 8265))
    resources = _resources(2, 0, "8Gi")
    head = _pod(
        "ray-head", nodes.image, resources, {"ports": ports, **container, **health}, site, **pod
    )
    # the autoscaler runs beside it, and asks Kubernetes for nodes
    head["spec"]["automountServiceAccountToken"] = nodes.grows
    return {"rayStartParams": {"num-cpus": "0"}, "template": head}


def _workers(
    nodes: Nodes, site: Site, container: dict[str, Any], pod: dict[str, Any]
) -> dict[str, Any]:
    health = _probes(readiness=("/api/local_raylet_healthz", HEALTH_PORT))
    resources = _resources(nodes.cpus, nodes.gpus, nodes.memory)
    places = worker_settings(site)
    worker = _pod("ray-worker", nodes.image, resources, container | health, site, **pod, **places)
    return {
        "groupName": "workers",
        "replicas": nodes.count,
        "minReplicas": nodes.count,
        "maxReplicas": nodes.most,
        "rayStartParams": {},
        "template": worker,
    }


def _pod(
    name: str,
    image: str,
    resources: dict[str, Any],
    more: dict[str, Any],
    site: Site,
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
            # Ray runs its workers at niceness 15, where they starve beside other work
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
            **pod_settings(site),
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

"""Images, compose file and Kubernetes manifests: linted, valid by their schemas, and closed to strangers.

Nothing is built or started here: that needs a container engine.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from orchestration.cli.app import run

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
KUBERAY = {
    "raycluster.yaml": ["--nodes", "2", "--gpus", "1", "--cpus", "8", "--memory", "32Gi"],
    "rayjob.yaml": ["sweep", "experiments/qam.yaml"],
}
"""File -> arguments of `boxseg jobs manifest` that print it."""
DIGEST = r"@sha256:[0-9a-f]{64}"
"""A tag can be moved to another image; its digest cannot."""


def test_the_linter_finds_nothing_in_the_dockerfile():
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which(
        "hadolint"
    )
    if linter is None:
        pytest.skip("hadolint has no wheel for this machine")
    done = subprocess.run([linter, str(DOCKER / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_is_pinned_and_runs_as_an_ordinary_user_with_a_health_check():
    text = (DOCKER / "Dockerfile").read_text()
    assert re.search(rf"^FROM python:3\.11\.\d+-slim-\w+{DIGEST}$", text, re.M)
    assert re.findall(r"^USER (.*)$", text, re.M) == ["1000"]
    installs = re.findall(r"pip install (.*?)(?:;;|\\|$)", text, re.M)
    assert installs
    assert all("-c constraints.txt" in each or "--no-deps" in each for each in installs)
    assert "--no-deps --require-hashes -r requirements.lock" in installs
    assert "HEALTHCHECK" in text
    copied = {
        source for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for source in line.split()
    }
    let_in = set(re.findall(r"^!(.*)$", (DOCKER / "Dockerfile.dockerignore").read_text(), re.M))
    assert copied == let_in
    assert all((ROOT / source).exists() for source in copied)


def needs(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
    """What an installed package needs here, with these extras."""
    for text in metadata.requires(name) or []:
        needed = Requirement(text)
        environments = [{"extra": extra} for extra in ("", *extras)]
        if needed.marker is None or any(map(needed.marker.evaluate, environments)):
            yield needed


def test_the_lock_has_a_hash_of_all_that_the_image_needs_in_the_tested_versions():
    lines = (DOCKER / "requirements.lock").read_text().splitlines()[1:]
    found = [re.fullmatch(r"(\S+)==(\S+) --hash=sha256:[0-9a-f]{64}", line) for line in lines]
    assert all(found)
    locked = {canonicalize_name(match[1]): match[2] for match in found if match}
    tested = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    tested = {canonicalize_name(name): version for name, version in tested.items()}
    changed = {name for name, version in locked.items() if tested.get(name) != version}
    assert changed <= {"setuptools"}, "run docker/lock.py"  # environments bring their own
    waiting = [Requirement("boxseg[server,store]")]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        needed = waiting.pop()
        name = canonicalize_name(needed.name)
        assert name in locked or name == "boxseg", f"{name}: run docker/lock.py"
        key = (name, frozenset(needed.extras))
        if key not in seen:
            seen.add(key)
            waiting += needs(*key)
    assert {name for name, _ in seen} - {"boxseg"} == set(locked)


def test_the_compose_file_is_valid_by_its_schema():
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*check, str(DOCKER / "compose.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_compose_publishes_on_the_loopback_address_only():
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert sorted(published) == ["127.0.0.1:5000:5000", "127.0.0.1:8265:8265"]


@pytest.mark.parametrize("name", SERVICES)
def test_compose_limits_services_and_keeps_secrets_in_files(name: str):
    service = SERVICES[name]
    assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "healthcheck" in service or "boxseg" in service["image"], (
        "our image has a check of its own"
    )
    pinned = "boxseg:" if "boxseg" in service["image"] else DIGEST
    assert re.search(pinned, service["image"]), "images are pinned"
    for key in service["environment"]:
        assert not re.search("PASSWORD|TOKEN|SECRET|KEY", key) or key.endswith(
            ("_FILE", "_PATH")
        ), key
    for secret in service["secrets"]:
        assert COMPOSE["secrets"][secret] == {"file": f"secrets/{secret}"}


def test_the_script_makes_the_secrets_that_compose_names(tmp_path: Path):
    shutil.copy(DOCKER / "secrets.sh", tmp_path)
    subprocess.run(["sh", str(tmp_path / "secrets.sh")], check=True)
    made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert set(made) == set(COMPOSE["secrets"])
    assert all(re.fullmatch("[0-9a-f]{64}", text) for text in made.values())
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0
    subprocess.run(["sh", str(tmp_path / "secrets.sh")], check=True)
    assert {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()} == made, (
        "kept"
    )
    ignored = subprocess.run(
        ["git", "-C", str(ROOT), "check-ignore", "docker/secrets/ray_token"], capture_output=True
    )
    assert ignored.returncode in (0, 128), "git leaves them alone"  # 128: no checkout


@pytest.mark.parametrize("name", KUBERAY)
def test_the_manifests_are_what_the_command_prints(name: str, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert run(["jobs", "manifest", *KUBERAY[name]]) == 0
    assert capsys.readouterr().out == (DOCKER / "kuberay" / name).read_text()


def templates() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template of the manifests."""
    for name in KUBERAY:
        for document in yaml.safe_load_all((DOCKER / "kuberay" / name).read_text()):
            spec = document.get("spec", {})
            cluster = spec.get("rayClusterSpec", spec)
            if document["kind"] == "RayJob":
                yield f"{name} submitter", spec["submitterPodTemplate"]
            if "headGroupSpec" in cluster:
                yield f"{name} head", cluster["headGroupSpec"]["template"]
                yield f"{name} workers", cluster["workerGroupSpecs"][0]["template"]


PODS = dict(templates())


@pytest.mark.parametrize("name", PODS)
def test_pods_are_valid_limited_and_unprivileged(name: str):
    import kubernetes_validate

    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **PODS[name]}
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["automountServiceAccountToken"] is False
    [container] = pod["spec"]["containers"]
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert name.endswith("submitter") or {
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
    } <= set(container)


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml", "storage.yaml"])
def test_core_documents_are_valid_and_clusters_have_a_token(name: str):
    import kubernetes_validate

    for document in yaml.safe_load_all((DOCKER / "kuberay" / name).read_text()):
        if document["apiVersion"] == "v1":
            kubernetes_validate.validate(
                document, kubernetes_validate.latest_version(), strict=True
            )
        else:
            cluster = document["spec"].get("rayClusterSpec", document["spec"])
            assert cluster["authOptions"] == {"mode": "token"}
            assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}


def test_a_job_for_gpus_asks_for_them(tmp_path: Path, capsys):
    experiment = tmp_path / "My_Exp.yaml"
    experiment.write_text("name: My_Exp\nresources: {workers: 2, gpus_per_worker: 0.5}\n")
    assert run(["jobs", "manifest", "--nodes", "3", "train", str(experiment)]) == 0
    config, job = yaml.safe_load_all(capsys.readouterr().out)
    assert config["data"]["My_Exp.yaml"] == experiment.read_text()
    assert job["metadata"]["name"] == "my-exp"
    assert "train /experiment/My_Exp.yaml --set storage=/data/runs" in job["spec"]["entrypoint"]
    group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    [container] = group["template"]["spec"]["containers"]
    assert (group["replicas"], container["image"]) == (3, "boxseg:gpu")
    assert container["resources"]["limits"] == {
        "cpu": "2",
        "memory": "16Gi",
        "nvidia.com/gpu": "1",
    }


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    """The documents that `boxseg jobs manifest` prints."""
    assert run(["jobs", "manifest", *arguments]) == 0
    return list(yaml.safe_load_all(capsys.readouterr().out))


SITE = ["--site", str(DOCKER / "kuberay" / "site.yaml")]
WORKERS = ["--set=resources.workers=3", "--set=resources.cpus_per_worker=2"]
QAM = str(ROOT / "experiments" / "qam.yaml")


def test_settings_of_a_site_are_in_every_document(capsys):
    """Names and places by the references of Kubernetes, KubeRay and Kueue."""
    import kubernetes_validate

    config, job = printed(capsys, *SITE, "sweep", QAM)
    assert config["metadata"]["namespace"] == job["metadata"]["namespace"] == "vision"
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-queue"
    cluster = job["spec"]["rayClusterSpec"]
    submitter = job["spec"]["submitterPodTemplate"]["spec"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    worker = cluster["workerGroupSpecs"][0]["template"]["spec"]
    for pod in (submitter, head, worker):
        about = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}
        kubernetes_validate.validate(about, kubernetes_validate.latest_version(), strict=True)
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        assert pod["priorityClassName"] == "batch-low"
    secrets = [{"secretRef": {"name": name}} for name in ("object-store", "mlflow-login")]
    assert head["containers"][0]["envFrom"] == worker["containers"][0]["envFrom"] == secrets
    # only hands the command in
    assert "envFrom" not in submitter["containers"][0]
    assert worker["nodeSelector"] == {"gpu-model": "l4"}
    assert worker["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "spot", "operator": "Exists"},
    ]
    # the head needs no GPU, and must not go with a spot node
    assert "tolerations" not in head
    assert "nodeSelector" not in head


def test_runs_in_an_object_store_need_no_volume(capsys):
    address = "s3://bucket/runs"
    _, job = printed(capsys, "sweep", QAM, "--set", f"storage={address}")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[4] == f"{address}/.jobs/qam"
    # the last one counts
    assert words[-3:] == ["--set", f"storage={address}", "--auto-resume"]
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], cluster["workerGroupSpecs"][0]):
        assert "persistentVolumeClaim" not in str(group)
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        assert [volume["name"] for volume in pod["volumes"]] == ["shared-memory", "experiment"]
        assert len(container["volumeMounts"]) == 2
    # data may be there
    _, job = printed(capsys, "--claim", "photos", "sweep", QAM, "--set", f"storage={address}")
    assert "'claimName': 'photos'" in str(job)
    [cluster] = printed(capsys, "--claim", "none")
    assert "persistentVolumeClaim" not in str(cluster)


def test_a_cluster_grows_between_two_numbers(capsys):
    [cluster] = printed(capsys, "--nodes", "1", "--max-nodes", "4")
    spec = cluster["spec"]
    group = spec["workerGroupSpecs"][0]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (1, 1, 4)
    assert spec["enableInTreeAutoscaling"] is True
    # the autoscaler runs beside the head and asks Kubernetes; nobody else may
    assert spec["headGroupSpec"]["template"]["spec"]["automountServiceAccountToken"] is True
    assert group["template"]["spec"]["automountServiceAccountToken"] is False
    [fixed] = printed(capsys, "--nodes", "4")
    assert "enableInTreeAutoscaling" not in fixed["spec"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--nodes", "4", "--max-nodes", "2"], "--max-nodes 2 is less than --nodes 4"),
        ([*SITE, "--max-nodes", "2"], "queue team-queue admits a job with all its nodes"),
        (["--retries", "1", "sweep", QAM, "--new"], "--retries 1 with --new, which would do the"),
        (["--claim", "none", "sweep", QAM], "leaves no place for the runs of"),
        (["--gpus", "1", "sweep", QAM], "its resources.gpus_per_worker is 0"),
        (
            ["--cpus", "3", "--nodes", "2", "train", QAM, *WORKERS],
            "2 nodes with 3 CPU cores each hold 2 of the 3 workers of a run, which need 2 each",
        ),
        (
            ["--gpus", "1", "train", QAM, "--set", "resources.gpus_per_worker=2"],
            "hold 0 of the 1 workers",
        ),
    ],
)
def test_a_manifest_that_would_never_start_is_refused(arguments: list[str], told: str, capsys):
    assert run(["jobs", "manifest", *arguments]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("namespce: x", ":1: namespce is not a setting; did you mean namespace?"),
        ("\nqueue: Team_A", ":2: queue: 'Team_A' is no name of Kubernetes"),
        ("tolerations: [{key: a, operator: Equal}]", "operator Equal goes with a value"),
    ],
)
def test_unknown_settings_of_a_site_are_named_with_their_line(
    text: str, told: str, tmp_path: Path, capsys
):
    site = tmp_path / "site.yaml"
    site.write_text(text)
    assert run(["jobs", "manifest", "--site", str(site)]) == 2
    assert told in capsys.readouterr().err


def test_the_health_check_asks_what_runs(monkeypatch: pytest.MonkeyPatch):
    spec = importlib.util.spec_from_file_location("healthcheck", DOCKER / "healthcheck.py")
    assert spec is not None
    assert spec.loader is not None
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    monkeypatch.setattr(
        check, "PAGES", {b"no process is called like this " + b"here": "http://127.0.0.1:1/"}
    )
    assert check.main() == 0
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but nothing listens
        monkeypatch.setattr(
            check, "PAGES", {b"python": f"http://127.0.0.1:{closed.getsockname()[1]}/"}
        )
        assert check.main() == 1

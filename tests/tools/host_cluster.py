"""A cluster of machines as people have one: a head, nodes, a store, a database, a tracking server, and a laptop.

Every machine has an address, processes and folders of its own (`hosts.py`), and knows no more than its environment
tells. Ray is started by the commands of `docs/cluster.md`.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hosts import HOME, ROOT, Host, Hosts, hosts
from local_cluster import wait_for
from postgres import find_programs

STORAGE = "s3://bucket/runs"
STORE = """
import urllib.request
from moto.server import ThreadedMotoServer
moto = ThreadedMotoServer(ip_address="0.0.0.0", port=9000)
moto.start()
request = urllib.request.Request("http://127.0.0.1:9000/bucket", method="PUT")
request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/s3/aws4_request")
urllib.request.urlopen(request)
moto._thread.join()
"""
DATABASE = """
import sys, time
from postgres import postgres
with postgres(sys.argv[1], port=5432):
    time.sleep(1e6)
"""


class HostCluster:
    """What a test does with it. `logs` is a folder of the test for what servers print."""

    def __init__(self, machines: Hosts, logs: Path) -> None:
        """Start all of it; nodes are `one` and `two`."""
        self.machines, self.logs = machines, logs
        self._token = secrets.token_hex(32)
        self._starts: dict[str, Callable[[], subprocess.Popen[bytes]]] = {}
        """Address of a machine -> starts Ray there."""
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self.store, self.database, self.tracker, self.head = (
            machines.add(name) for name in ("store", "database", "tracker", "head")
        )
        self.laptop = self.add_laptop()
        self.nodes: dict[str, Host] = {}
        self._serve()
        self.tracking_uri = f"http://{self.tracker.address}:5000"
        self.start_head()
        self.add_nodes("one", "two")
        for port, machine in ((9000, self.store), (5000, self.tracker), (8265, self.head)):
            wait_for(lambda p=port, m=machine: self.laptop.reaches(m, p), what=machine.name)  # type: ignore[misc]

    def add_laptop(self) -> Host:
        """Another machine of the user, with a git checkout and the cluster's token."""
        self.laptop = self.machines.add("laptop")
        self.laptop.write("ray_token", self._token)
        self.laptop.run(["git", "init", "--quiet", "."])
        return self.laptop

    def start_head(self) -> None:
        """Start Ray on the head, which has no places for training."""
        self.head.write("ray_token", self._token)
        self._ray(self.head, "--head", "--port=6379", "--dashboard-host=0.0.0.0", "--num-cpus=0")
        self._wait_for_ray(self.head)

    def add_nodes(self, *names: str) -> None:
        """More nodes, with one CPU core each; a name that was killed comes back as a new machine."""
        for name in names:
            node = self.nodes[name] = self.machines.add(name)
            node.write("ray_token", self._token)
            self._ray(node, f"--address={self.head.address}:6379", "--num-cpus=1")
        for name in names:
            self._wait_for_ray(self.nodes[name])

    def replace_ray(self) -> None:
        """Take the power of the head and all nodes, and have others in their places."""
        for machine in (self.head, *self.nodes.values()):
            machine.kill()
        self.head = self.machines.add("head")
        self.start_head()
        self.add_nodes(*self.nodes)

    @property
    def environment(self) -> dict[str, str]:
        """Of people and Ray's processes: the store with its keys, and the token."""
        return {
            "AWS_ENDPOINT_URL": f"http://{self.store.address}:9000",
            "AWS_ACCESS_KEY_ID": "a-key-of-this-test",
            "AWS_SECRET_ACCESS_KEY": "a-secret-of-this-test",
            "AWS_REGION": "us-east-1",
            "RAY_AUTH_TOKEN_PATH": str(HOME / "ray_token"),
        }

    def boxseg(self, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """A command on the laptop."""
        environment = self.environment | {"RAY_ADDRESS": f"http://{self.head.address}:8265"}
        return self.laptop.run(
            ["python", "-m", "orchestration.cli", *arguments],
            environment=environment,
            timeout=timeout,
        )

    def submit(self, name: str, settings: Mapping[str, Any], *options: str) -> str:
        """Submit a sweep of these settings from the laptop, which does not wait for it; gives the job's id."""
        self.laptop.write(f"{name}.yaml", json.dumps({**settings, "name": name}))
        self.laptop.run(["git", "add", f"{name}.yaml"])
        command = ["jobs", "submit", "--no-wait", "--storage", STORAGE, "sweep", f"{name}.yaml"]
        tracking = f"tracking.uri={self.tracking_uri}"
        done = self.boxseg(*command, "--set", tracking, *options)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def _serve(self) -> None:
        tools = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests/tools'}"}
        programs = {
            self.store: ["python", "-c", STORE],
            self.database: ["python", "-c", DATABASE, self.database.address],
        }
        for machine, command in programs.items():
            machine.start(command, environment=tools, log=self.logs / f"{machine.name}.log")
        wait_for(lambda: self.tracker.reaches(self.database, 5432), what="the database")
        uri = f"postgresql://postgres@{self.database.address}/postgres"
        serve = "mlflow server --host 0.0.0.0 --port 5000 --workers 1 --artifacts-destination artifacts"
        serve += f" --backend-store-uri {uri} --allowed-hosts {self.tracker.address}:5000"
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        command = ["python", "-m", *serve.split()]
        self.tracker.start(command, environment=quiet, log=self.logs / "tracker.log")

    def _ray(self, machine: Host, *options: str) -> None:
        of_ray = {"RAY_AUTH_MODE": "token", "RAY_worker_niceness": "0"}
        command = ["ray", "start", "--block", "--disable-usage-stats", *options]
        command += ["--object-store-memory=100000000"]
        environment, log = self.environment | of_ray, self._log_of(machine)
        self._starts[machine.address] = lambda: machine.start(
            command, environment=environment, log=log
        )
        self._started[machine.address] = self._starts[machine.address]()

    def _wait_for_ray(self, machine: Host) -> None:
        """Wait until it has started; on a busy machine it gives up by itself, and is started again."""
        log, address = self._log_of(machine), machine.address

        def has_started() -> bool:
            if "Ray runtime started" in log.read_text():
                return True
            if self._started[address].poll() is not None:
                self._started[address] = self._starts[address]()
            return False

        wait_for(has_started, what=f"Ray on {machine.name}", seconds=300)

    def _log_of(self, machine: Host) -> Path:
        return self.logs / f"{machine.name}-{machine.address}.log"


@contextlib.contextmanager
def host_cluster(logs: Path) -> Iterator[HostCluster]:
    """A cluster that ends with the block; the test is skipped where something for it is missing."""
    find_programs()
    with hosts() as machines:
        yield HostCluster(machines, logs)

"""A Ray cluster of this machine for tests: a head and other nodes as plain processes with a token and own folders."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
from real_disks import LEAVE_DISKS

from orchestration.connect.session import ENVIRONMENT

ROOT = Path(__file__).parents[2]
HIDDEN = (
    *("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"),
    # left by an embedded Ray of the same process: nodes would share 127.0.0.1
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
)
"""What a user's environment shall not bring along."""


class LocalCluster:
    """A head without cores; more nodes are added and killed. `close` ends all of them by their processes' ids.

    Args:
        folder: For everything: Ray's files of each node, `token`, and `runs`, the storage. Its path must be short,
            because names of sockets are limited.
        mirrors: Give every node a folder of its own for mirrors of object stores, in which the nodes' names are.
        more: Variables that all nodes have besides.
    """

    def __init__(
        self, folder: Path, *, mirrors: bool = False, more: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self._mirrors = mirrors
        self._more = more or {}
        self.token = secrets.token_hex(32)
        self.storage = folder / "runs"
        self.storage.mkdir()
        (folder / "token").touch(mode=0o600)
        (folder / "token").write_text(self.token)
        self._ports = [free_port() for _ in range(3)]
        self.address = f"127.0.0.1:{self._ports[0]}"
        self.dashboard = f"http://127.0.0.1:{self._ports[1]}"
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """Of a user who has the token."""
        ours = {*HIDDEN, *ENVIRONMENT}  # an embedded Ray of an earlier test has left its settings
        outside = {name: value for name, value in os.environ.items() if name not in ours}
        return outside | {
            "HOME": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "RAY_health_check_period_ms": "1000",  # a node that was killed is missed after seconds
            # and a head, which nodes and drivers do not survive
            "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
            # Ray gives its workers 15: beside other work they would starve
            "RAY_worker_niceness": "0",
        }

    def start_head(self) -> None:
        """Start the head, also again after a kill: at the same address, knowing nothing of before."""
        port, dashboard, client = self._ports
        options = f"--head --num-cpus=0 --port={port} --dashboard-port={dashboard} --dashboard-host=127.0.0.1"
        # nothing here adds nodes by itself
        options += f" --no-monitor --ray-client-server-port={client}"
        self._start("head", *options.split())
        wait_for(lambda: answers(dashboard), what="the dashboard")

    def add_node(
        self,
        name: str,
        *,
        cpus: int = 1,
        instead_of_storage: Path | None = None,
        seconds: float = 120,
    ) -> None:
        """Start one more node; it may see another folder where the others see the storage."""
        before = (
            None
            if instead_of_storage is None
            else ["mount", "--bind", str(instead_of_storage), str(self.storage)]
        )
        self._start(name, f"--address={self.address}", f"--num-cpus={cpus}", before=before)
        log = self.folder / f"{name}.log"
        wait_for(
            lambda: "Ray runtime started" in log.read_text(), what=f"node {name}", seconds=seconds
        )

    def processes(self, name: str) -> list[psutil.Process]:
        """All processes of a node."""
        return family(self._started[name].pid)

    def kill(self, name: str) -> None:
        """SIGKILL to every process of a node at once."""
        kill_together(self.processes(name))
        self._started.pop(name).wait()

    def announce_end(self, node_id: str) -> None:
        """Ray's notice that a node will be taken away in a minute."""
        command = [
            str(Path(sys.executable).with_name("ray")),
            "drain-node",
            "--address",
            self.address,
        ]
        command += [
            "--node-id",
            node_id,
            "--reason",
            "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message",
            "a test",
        ]
        environment = self.environment | {"RAY_AUTH_MODE": "token"}
        subprocess.run(
            [*command, "--deadline-remaining-seconds", "60"], env=environment, check=True
        )

    def kill_nodes(self) -> None:
        """SIGKILL to all nodes but the head."""
        for name in self._started.keys() - {"head"}:
            self.kill(name)

    def close(self) -> None:
        """End all nodes."""
        self.kill_nodes()
        if "head" in self._started:
            self.kill("head")

    def _start(self, name: str, *options: str, before: list[str] | None = None) -> None:
        command = [
            str(Path(sys.executable).with_name("ray")),
            "start",
            "--block",
            "--disable-usage-stats",
            *options,
        ]
        command += ["--object-store-memory=100000000", f"--temp-dir={self.folder / name}"]
        # nodes of one machine cannot share the usual one
        command += [f"--dashboard-agent-listen-port={free_port()}"]
        # would send what workers print to drivers, which do not show it
        command += ["--include-log-monitor=False"]
        if before is not None:
            command = [
                "unshare",
                "--mount",
                "sh",
                "-c",
                f"{LEAVE_DISKS}; {shlex.join(before)} && exec {shlex.join(command)}",
            ]
        with (self.folder / f"{name}.log").open("w") as log:
            environment = self.environment | self._more | {"RAY_AUTH_MODE": "token"}
            if self._mirrors:
                environment["BOXSEG_CACHE"] = str(self.folder / f"mirrors-{name}")
            self._started[name] = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log
            )


@contextlib.contextmanager
def local_cluster(
    folder: Path, *, mirrors: bool = False, more: Mapping[str, str] | None = None
) -> Iterator[LocalCluster]:
    """A cluster that ends with the block; for the arguments see `LocalCluster`."""
    cluster = LocalCluster(folder, mirrors=mirrors, more=more)
    try:
        cluster.start_head()
        yield cluster
    finally:
        cluster.close()


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it has started."""
    first = psutil.Process(pid)
    return [first, *first.children(recursive=True)]


def kill_together(processes: list[psutil.Process]) -> None:
    """SIGKILL to all of them, as if their machine had gone; stopped first, so that none sees another one's end."""
    for signalled in (signal.SIGSTOP, signal.SIGKILL):
        for each in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(signalled)


def can_hide_folders() -> bool:
    """Whether this user may give a process another view of the disk."""
    if shutil.which("unshare") is None:
        return False
    return (
        subprocess.run(
            ["unshare", "--mount", "mount", "--bind", "/", "/mnt"], capture_output=True
        ).returncode
        == 0
    )


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    """Whether somebody listens on a port of the loopback address."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(
    condition: Callable[[], object],
    *,
    what: str,
    seconds: float = 120,
    driver: subprocess.Popen[bytes] | None = None,
) -> None:
    """Wait until something is the case: while a driver lives, as long as the test may take; else for some seconds.

    Raises:
        AssertionError: it took too long, or the driver has ended before.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if driver is None:
            assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        else:
            assert driver.poll() is None, f"the driver ended before {what}"
        time.sleep(0.2)

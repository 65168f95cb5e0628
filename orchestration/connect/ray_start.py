"""A Ray that starts and ends with this command: its private folder, attempts to start it, and logs that are kept."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from orchestration.errors import ResourceError
from orchestration.planning.machine import count_cpus
from orchestration.proxies import spare_loopback
from orchestration.record.scratch import scratch_folder

SETTINGS = {
    # workers do what the user asked for, so they get the priority of the command, not one lower by 15
    "RAY_worker_niceness": "0",
    "RAY_agent_register_timeout_ms": "180000",
    "RAY_worker_register_timeout_seconds": "180",
    "RAY_gcs_server_port_wait_time_s": "60",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "120",
}
"""Settings of Ray's own processes, among them its patience on a busy machine."""
LOOPBACK = {
    # makes Ray take 127.0.0.1 as its address on Linux as well
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "GLOO_SOCKET_IFNAME": "lo",
}
"""Make a Ray that is started here listen on the loopback address only."""
TOKEN = secrets.token_hex(32)
"""Token of every Ray that this process starts; always the same, as Ray reads it only once in a process."""
OBJECT_STORE_BYTES = 200 * 1024**2
"""Size of Ray's object store; only settings and metrics pass through it (Ray's least is 75 MiB)."""
PAUSES_S = (0.0, 2.0, 10.0)
"""Pause before each attempt to start Ray [s]; there are as many attempts."""
KEPT_BYTES = 1_000_000
"""This much is kept of the end of each of Ray's logs."""

logger = logging.getLogger("boxseg.ray")


@contextlib.contextmanager
def embedded_ray(
    *, dashboard: bool, logs: Path | None = None, give_up: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Start Ray, and end it on leaving the block; a failed start is repeated with more patience.

    Token and Ray's own files are in a temporary folder of mode 0700, which is removed when Ray ends.

    Args:
        dashboard: Whether Ray's state API is needed: Ray Train frees the workers of a stopped trial through it.
        logs: Folder that gets the logs of Ray's processes if something went wrong, and the output of workers.
        give_up: Tells whether a failed start shall not be tried again, because somebody wants an end.

    Raises:
        ResourceError: Ray does not start; quotes the line of its logs that says why.
        KeyboardInterrupt: a start failed, and somebody wants an end.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.update(LOOPBACK)
    spare_loopback()
    with scratch_folder("ray", for_ray=True) as private:
        _prepare_token(private)
        import ray  # reads the settings above

        folder = _start(private, dashboard=dashboard, logs=logs, give_up=give_up)
        try:
            yield
        except BaseException:
            _keep_logs(folder, logs and logs / "ray-session")
            raise
        finally:
            ray.shutdown()
            _end_processes(folder)
            if logs is not None:
                _keep_worker_output(folder, logs / "workers")


def _prepare_token(private: Path) -> None:
    """Give the embedded Ray and all its processes a token of their own, unless the user has chosen a mode."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    has_token = os.environ.get("RAY_AUTH_TOKEN") or (named and Path(named).exists())
    if os.environ.get("RAY_AUTH_MODE", "token") != "token" or has_token:
        return
    path = private / "token"
    path.touch(mode=0o600)
    path.write_text(TOKEN)
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


def _start(
    private: Path, *, dashboard: bool, logs: Path | None, give_up: Callable[[], bool]
) -> Path:
    """Start Ray, with several attempts if need be; returns its folder."""
    for number, pause in enumerate(PAUSES_S, 1):
        time.sleep(pause)
        # Inside the private folder, as Ray makes its own readable for everybody.
        folder = private / f"ray{number}"
        try:
            if number == 1:
                _init(folder, dashboard=dashboard)
            else:
                with _late_agents_allowed() as metrics_port:
                    _init(folder, dashboard=dashboard, metrics_port=metrics_port)
            return folder
        except BaseException as error:
            _shut_down()
            _end_processes(folder)
            if not isinstance(error, Exception):
                raise
            kept = _keep_logs(folder, logs and logs / f"ray-start-{number}")
            reason = _find_cause(folder) or _without_folder(str(error), folder)
            failure = error
        if give_up():
            raise KeyboardInterrupt from failure
        if number < len(PAUSES_S):
            logger.warning("Ray did not start (%s); trying again with more patience", reason)
    where = f" (all that Ray wrote: {kept})" if kept else ""
    raise ResourceError(
        f"Ray does not start on this machine, tried {len(PAUSES_S)} times: {reason}{where}; its "
        f"{count_cpus()} CPU cores have a load of {os.getloadavg()[0]:.1f}: if that is much, run "
        "again when less runs beside it; `boxseg doctor` looks at what Ray needs and starts it "
        "once"
    ) from failure


def _init(folder: Path, *, dashboard: bool, metrics_port: int | None = None) -> None:
    import ray

    with own_signals():
        ray.init(
            address="local",  # a new Ray, whatever RAY_ADDRESS says
            num_cpus=count_cpus(),
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder),
            _metrics_export_port=metrics_port,
        )


def _shut_down() -> None:
    """Reset Ray in this process after a start that failed."""
    import ray

    with contextlib.suppress(Exception):  # Ray may be half started
        ray.shutdown()


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Context for starting Ray: our handler of SIGTERM stays, and processes of Ray ignore SIGHUP.

    Ray's own handler aborts the process three seconds after a SIGTERM, even while it saves. A terminal that closes
    sends SIGHUP to all of its processes at once; those of Ray have to live until trials have saved their state.
    """
    on_term = signal.getsignal(signal.SIGTERM)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if on_term is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_term)


@contextlib.contextmanager
def _late_agents_allowed() -> Iterator[int]:
    """Context in which a Ray that starts does not wait for its agents; yields the port of its metrics for `ray.init`.

    Ray's node waits at most 15 s for each port that its agents choose (ray-project/ray#65983). It does not wait for
    ports that are given to it, but `ray.init` has an argument for only one of the four: the others are added to the
    command.
    """
    inside: Any = importlib.import_module("ray._private")
    params, start_process = inside.parameter.RayParams, inside.services.start_ray_process
    grpc, http, runtime_env, metrics = _free_ports(4)
    ports = {
        "metrics_agent_port": grpc,
        "dashboard_agent_listen_port": http,
        "runtime_env_agent_port": runtime_env,
    }

    def start(command: list[str], process_type: str, *args: Any, **options: Any) -> Any:
        if process_type == "raylet":
            command = [*command, f"--dashboard_agent_listen_port={http}"]
        return start_process(command, process_type, *args, **options)

    inside.parameter.RayParams = functools.partial(params, **ports)
    inside.services.start_ray_process = start
    try:
        yield metrics
    finally:
        inside.parameter.RayParams, inside.services.start_ray_process = params, start_process


def _free_ports(count: int) -> list[int]:
    """Ports of the loopback address that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        # all are bound before any is closed, so that they differ
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


def _end_processes(folder: Path) -> None:
    """End what is left of a Ray: processes that name its folder, which a late one would make again."""
    left = []
    # not only our children: those of a node that died have no parent any more
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended already
            if any(str(folder) in word for word in process.cmdline()):
                process.kill()
                left.append(process)
    psutil.wait_procs(left, timeout=5)


TELLING = re.compile(r" ([CE]) \d+ \d+\] \(\w+\) [\w.]+:\d+: (.+)")
"""A fatal (C) or other error in the log of one of Ray's own processes."""
PREAMBLE = re.compile(r"^.*Check failed: \S+ *")
"""Text before the reason in a fatal error: that it is a bug, where to report it, and the C++ expression."""


def _find_cause(folder: Path) -> str:
    """The line of Ray's logs that best says why it ended: the first fatal error, else the last error; empty if none."""
    lines: dict[str, list[str]] = {"C": [], "E": []}
    for path in sorted(folder.glob("session_2*/logs/*.err")):
        for severity, text in TELLING.findall(path.read_text(errors="replace")):
            lines[severity].append(f"{path.stem}: {PREAMBLE.sub('', text)}")
    best = lines["C"][:1] or lines["E"][-1:]
    return _without_folder(best[0], folder) if best else ""


def _without_folder(text: str, folder: Path) -> str:
    """The text in one line, without the path of Ray's session folder, which is deleted before anybody reads it."""
    text = re.sub(rf"{re.escape(str(folder))}(/session_[^/\s]+)?/?", "", " ".join(text.split()))
    return text[:300].strip()


def _keep_logs(folder: Path, kept: Path | None) -> Path | None:
    """Copy the ends of the logs of Ray's own processes; returns the folder if there is something in it."""
    if kept is None:
        return None
    for path in folder.glob("session_2*/logs/*"):
        is_worker = path.name.startswith(("worker-", "python-core-"))
        # on a full disk, other writers raise the error
        with contextlib.suppress(OSError):
            if not is_worker and path.is_file() and path.stat().st_size:
                kept.mkdir(parents=True, exist_ok=True)
                (kept / path.name).write_bytes(path.read_bytes()[-KEPT_BYTES:])
    return kept if kept.is_dir() else None


def _keep_worker_output(folder: Path, kept: Path) -> None:
    """Copy the output of workers."""
    for path in folder.glob("session_2*/logs/worker-*"):
        with contextlib.suppress(OSError):
            if path.stat().st_size:
                kept.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, kept / path.name)

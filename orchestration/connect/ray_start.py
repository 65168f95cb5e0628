"""A Ray that starts and ends with this command: its private folder, its attempts to start, and which logs are kept."""

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
    # workers are what the user asked for: as urgent as the command, not 15 below it
    "RAY_worker_niceness": "0",
    "RAY_agent_register_timeout_ms": "180000",
    "RAY_worker_register_timeout_seconds": "180",
    "RAY_gcs_server_port_wait_time_s": "60",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "120",
}
"""Of Ray's own processes; with its patience on a busy machine, as far as it is a setting."""
LOOPBACK = {
    # this machine alone: Ray takes 127.0.0.1 as its address on Linux as well
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "GLOO_SOCKET_IFNAME": "lo",
}
"""What makes a Ray that is started here listen on the loopback address only."""
TOKEN = secrets.token_hex(32)
"""Token of every Ray that this process starts; Ray reads it once, so a second one would be refused by the first."""
OBJECT_STORE_BYTES = 200 * 1024**2
"""Ray's least is 75 MiB; settings and metrics are all that passes through it."""
PAUSES_S = (0.0, 2.0, 10.0)
"""Pause before each try to start Ray [s]; after the last, nobody tries again."""
KEPT_BYTES = 1_000_000
"""How much is kept of the end of each of Ray's logs."""

logger = logging.getLogger("boxseg.ray")


@contextlib.contextmanager
def embedded_ray(
    *, dashboard: bool, logs: Path | None = None, give_up: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Start Ray, and end it when the block is left; a start that fails is tried again with more patience.

    Token and Ray's own files lie in a temporary folder of mode 0700 that goes when Ray ends.

    Args:
        dashboard: Whether Ray's state API is needed: Ray Train frees the workers of a stopped trial through it.
        logs: Folder that keeps what Ray's processes wrote where something went wrong, and what workers printed.
        give_up: Tells whether a failed start shall not be tried again, because somebody wants an end.

    Raises:
        ResourceError: Ray does not start; names the line of its logs that tells why.
        KeyboardInterrupt: a start failed, and somebody wants an end.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.update(LOOPBACK)
    spare_loopback()
    with scratch_folder("ray", for_ray=True) as private:
        _prepare_token(private)
        import ray  # reads its settings now

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
    """Give the embedded Ray and all its processes a token of their own, unless the user chose a mode."""
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
    """Start Ray, several times if need be; gives its folder."""
    for number, pause in enumerate(PAUSES_S, 1):
        time.sleep(pause)
        folder = private / f"ray{number}"  # one level down: Ray opens its own folder to everybody
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
            reason = _telling_line(folder) or _without_folder(str(error), folder)
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
            address="local",  # a new one, whatever RAY_ADDRESS says
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

    with contextlib.suppress(Exception):  # of a Ray that is half there
        ray.shutdown()


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """While Ray starts: our handler of SIGTERM stays, and what Ray starts never hears SIGHUP.

    Ray's own handler aborts the process three seconds after a SIGTERM, whatever it still saves. A terminal that goes
    tells all of its processes at once; those of Ray have to live until trials have saved their state.
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
    """While entered, a Ray that starts does not wait for its agents; gives the port of its metrics for `ray.init`.

    Ray's node waits for each port that its agents choose, 15 s and no longer (ray-project/ray#65983). It does not wait
    for ports that it is told, but `ray.init` has an argument for one of the four only: the others are added on the way.
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
    """Ports of the loopback address on which nobody listens now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        # all are bound before any is closed, so that no port comes twice
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


def _end_processes(folder: Path) -> None:
    """End what is left of a Ray: its processes name its folder, and a late one would make that again after its end."""
    left = []
    # not our children alone: those of a node that died belong to nobody
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended
            if any(str(folder) in word for word in process.cmdline()):
                process.kill()
                left.append(process)
    psutil.wait_procs(left, timeout=5)


TELLING = re.compile(r" ([CE]) \d+ \d+\] \(\w+\) [\w.]+:\d+: (.+)")
"""A fatal (C) or other error in the log of one of Ray's own processes."""
PREAMBLE = re.compile(r"^.*Check failed: \S+ *")
"""What comes before the reason in each fatal one: that it is a bug, where to report it, and the C++ expression."""


def _telling_line(folder: Path) -> str:
    """The line of Ray's logs that tells best why it ended: the first fatal one, else the last error; empty if none."""
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
    """Copy the ends of what Ray's own processes wrote; gives the folder if there is something in it."""
    if kept is None:
        return None
    for path in folder.glob("session_2*/logs/*"):
        is_worker = path.name.startswith(("worker-", "python-core-"))
        # on a full disk, whatever needs the disk raises its own error
        with contextlib.suppress(OSError):
            if not is_worker and path.is_file() and path.stat().st_size:
                kept.mkdir(parents=True, exist_ok=True)
                (kept / path.name).write_bytes(path.read_bytes()[-KEPT_BYTES:])
    return kept if kept.is_dir() else None


def _keep_worker_output(folder: Path, kept: Path) -> None:
    """Copy what workers printed."""
    for path in folder.glob("session_2*/logs/worker-*"):
        with contextlib.suppress(OSError):
            if path.stat().st_size:
                kept.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, kept / path.name)

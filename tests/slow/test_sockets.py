"""What a sweep opens to the outside while it runs: nothing."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SWEEP = {
    "name": "sockets",
    "data": {"toy": {"train_images": 4, "val_images": 2, "size": 64}},
    "model": {"backbone": "timm/test_resnet", "weights": "none", "channels": 16, "tower_convs": 1},
    "cond": {"branch_channels": 16, "branch_convs": 1},
    "train": {"steps": 4, "batch_size": 2, "image_size": 64, "panels": 0},
    "sweep": {"search": "grid", "space": {"qam.k_top": {"choice": [1]}}},
}


def test_every_socket_of_a_sweep_listens_on_the_loopback_address(tmp_path: Path):
    (tmp_path / "sweep.yaml").write_text(json.dumps(SWEEP))
    hidden = (
        "RAY_ADDRESS",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN_PATH",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
    )
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    with (tmp_path / "log").open("w") as log:
        sweep = subprocess.Popen(
            [sys.executable, "-m", "orchestration.cli", "sweep", "sweep.yaml"],
            cwd=tmp_path,
            env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
    seen: set[tuple[str, str]] = set()
    while sweep.poll() is None:
        seen |= listening(sweep.pid)
        time.sleep(2)  # a look takes long itself
    assert sweep.returncode == 0, (tmp_path / "log").read_text()
    names = {name for name, _ in seen}
    assert {"gcs_server", "raylet"} <= names, "looked while Ray was there"
    assert sorted((name, host) for name, host in seen if not is_loopback(host)) == []


def listening(pid: int) -> set[tuple[str, str]]:
    """(process name, address) of all sockets on which a process or its descendants listen."""
    found = set()
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return found
    for process in processes:
        try:
            sockets = process.net_connections("inet")
            found |= {
                (process.name(), each.laddr.ip)
                for each in sockets
                if each.status == psutil.CONN_LISTEN
            }
        except psutil.Error:
            continue  # it has ended
    return found


def is_loopback(host: str) -> bool:
    address = ipaddress.ip_address(host)
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback

"""How the workers of one run find one another: at the addresses by which Ray knows their nodes."""

from __future__ import annotations

import os
import socket
from typing import Any

import psutil
from ray.exceptions import RayTaskError
from ray.train.torch import TorchConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

from orchestration.record.failures import Failure

INTERFACE = "GLOO_SOCKET_IFNAME"
"""Environment variable of gloo; what the user of a node has set there stays."""


class MeetingConfig(TorchConfig):
    """Torch's, with a meeting that works where a machine's name leads to its own loopback address."""

    @property
    def backend_cls(self) -> type:
        """What Ray Train asks to set up the process group."""
        return _Meeting


class _Meeting(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(choose_interface)
        try:
            super().on_start(worker_group, backend_config)
        except RayTaskError as error:
            # Ray starts again what did not start, but takes this for an error of its own
            raise WorkerGroupStartupFailedError(Failure.of(error).text) from error


def choose_interface() -> None:
    """Have gloo listen where Ray reaches this node.

    It would take the address of the machine's name, which Debian and Ubuntu write down as 127.0.1.1.
    """
    import ray

    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any((each.family, each.address) == (socket.AF_INET, address) for each in addresses):
            os.environ.setdefault(INTERFACE, name)

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
"""Environment variable of gloo; a value that the user has set on a node stays."""


class ProcessGroupConfig(TorchConfig):
    """Ray's configuration of torch, but workers meet even where a machine's name means its loopback address."""

    @property
    def backend_cls(self) -> type:
        """The class by which Ray Train sets up the process group."""
        return _ProcessGroup


class _ProcessGroup(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(choose_interface)
        try:
            super().on_start(worker_group, backend_config)
        except RayTaskError as error:
            # an error that Ray knows as a failed start, which it tries again
            raise WorkerGroupStartupFailedError(Failure.of(error).text) from error


def choose_interface() -> None:
    """Make gloo listen at the address by which Ray knows this node.

    By itself it would take the address of the machine's name, which is 127.0.1.1 on Debian and Ubuntu.
    """
    import ray

    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any((each.family, each.address) == (socket.AF_INET, address) for each in addresses):
            os.environ.setdefault(INTERFACE, name)

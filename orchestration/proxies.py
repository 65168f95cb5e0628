"""Connections to this machine itself go past web proxies."""

from __future__ import annotations

import os

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def spare_loopback() -> None:
    """Take this machine out of what HTTP_PROXY and its like are for, in this process and those that it starts.

    Ray's processes speak with one another by gRPC and MLflow's page is asked whether it is up; both would go to a
    proxy, which cannot reach the loopback address of another machine.
    """
    # Programs differ in which of the two they read.
    for name in ("NO_PROXY", "no_proxy"):
        spared = [host.strip() for host in os.environ.get(name, "").split(",") if host.strip()]
        missing = [host for host in LOOPBACK if host not in spared]
        if missing and "*" not in spared:
            os.environ[name] = ",".join([*spared, *missing])

"""Access to a Ray cluster: addresses and tokens; the token itself stays in the environment or in its file."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from urllib.parse import urlsplit

from orchestration.errors import ResourceError

ANSWER_S = 5.0
"""How long a cluster may take to answer at all [s]."""


def read_token() -> str | None:
    """The token for clusters: RAY_AUTH_TOKEN, the file of RAY_AUTH_TOKEN_PATH, or `~/.ray/auth_token`; None: no token.

    Raises:
        ResourceError: the file that RAY_AUTH_TOKEN_PATH names cannot be read.
    """
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError as error:
        if named is None:
            return None
        raise ResourceError(
            f"RAY_AUTH_TOKEN_PATH: {path}: {error.strerror}; name a file that holds the token"
        ) from error


def choose_mode(address: str, *, insecure: bool = False) -> str:
    """Set RAY_AUTH_MODE for a cluster, unless the user has: `token` if there is one, else `disabled`; returns it.

    Args:
        address: Address of the cluster, with or without a scheme.
        insecure: Whether the user accepts a cluster on another machine without a token.

    Raises:
        ResourceError: the cluster is not on this machine, and there is no token.
    """
    chosen = os.environ.get("RAY_AUTH_MODE")
    if chosen is None and read_token() is None and not insecure and not is_loopback(address):
        raise ResourceError(
            f"{address} is another machine, and there is no token for it: it lets everybody in, "
            "or will refuse us; give the cluster's token in RAY_AUTH_TOKEN_PATH or "
            "RAY_AUTH_TOKEN, or, where nobody else reaches it, set RAY_AUTH_MODE=disabled "
            "(`boxseg jobs`: --insecure)"
        )
    mode = chosen or ("token" if read_token() else "disabled")
    os.environ["RAY_AUTH_MODE"] = mode
    return mode


def is_loopback(address: str) -> bool:
    """Whether an address is one of this machine only; `auto` finds a Ray that runs here."""
    host = urlsplit(address if "://" in address else f"//{address}").hostname
    if host in ("auto", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False

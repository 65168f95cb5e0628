"""Which folder of this machine stands for an address in an object store, and the other way round.

All code works in folders. A storage such as `s3://bucket/runs` has one on every machine, its mirror; a path alone shows
whether it lies in a mirror, and of which store.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from boxseg.errors import ConfigError
from orchestration.secret_text import hide

CACHE_VARIABLE = "BOXSEG_CACHE"
"""Environment variable with the folder for mirrors."""
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
"""Environment variables with the address of an S3 server; the first one that is set counts."""
_ADDRESS = re.compile(r"(s3|gs|az)://[\w.-]+(/[\w.=+-]+)*/?", re.ASCII)


def storage_folder(address: str, setting: str = "storage") -> Path:
    """The folder of this machine for a setting: a path itself, the mirror for `s3://…`, `gs://…` and `az://…`.

    Raises:
        ConfigError: it is another kind of address, or has parts that keys of objects cannot have here.
    """
    if "://" not in address:
        return Path(address)
    # parts such as `..` would lead out of the mirror
    dotted = any(set(part) == {"."} for part in address.split("/"))
    if _ADDRESS.fullmatch(address) is None or dotted:
        kept = "runs" if setting == "storage" else "data"
        raise ConfigError(
            f"{setting}: {hide(address)} is no address that {kept} can have; use s3://BUCKET/PREFIX, "
            "gs://BUCKET/PREFIX or az://CONTAINER/PREFIX of letters, digits and . _ = + -, with "
            "credentials in the environment, or a folder"
        )
    scheme, _, key = address.rstrip("/").partition("://")
    return mirrors() / _store_name(scheme) / key


def address_of(path: Path) -> str | None:
    """The address that a path in a mirror stands for; None for any other path."""
    if not path.is_absolute() or not path.is_relative_to(mirrors()):
        return None
    store, *key = path.relative_to(mirrors()).parts
    return f"{store.partition('-')[0]}://{'/'.join(key)}" if key else None


def shown(path: Path) -> str:
    """A storage, or a path in one, for messages: its address, or else its absolute path."""
    return named(path.absolute())


def named(path: Path) -> str:
    """A path as its user wrote it, or the address that it stands for."""
    return address_of(path) or str(path)


def moved(path: Path, home: Path) -> Path:
    """A path of another machine on this one: in our mirrors if it was in `home`, the `mirrors()` there."""
    if not path.is_relative_to(home):
        return path
    store, *key = path.relative_to(home).parts
    return mirrors() / _store_name(store.partition("-")[0]) / "/".join(key)


def endpoint() -> str | None:
    """Address of the S3 server that the environment names; None: Amazon's."""
    return next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), None)


def _store_name(scheme: str) -> str:
    """Name of a store's folder: with the server, as S3 servers can have buckets of the same name."""
    server = endpoint() if scheme == "s3" else None
    if server is None:
        return scheme
    # without a user name, which would be a secret
    parts = urlsplit(server)
    place = f"{parts.hostname}-{parts.port or parts.scheme}"
    return f"{scheme}-{re.sub(r'[^a-zA-Z0-9.-]', '_', place)}"


def mirrors() -> Path:
    """The folder for all mirrors of this machine."""
    usual = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    chosen = os.environ.get(CACHE_VARIABLE) or f"{usual}/boxseg"
    # Resolved, because it is compared with resolved paths.
    return Path(chosen).expanduser().resolve() / "stores"

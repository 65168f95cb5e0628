"""Which folder of this machine stands for a place in an object store, and the other way round.

All code works in folders. A storage such as `s3://bucket/runs` has one on every machine, its mirror; whoever is given a
path can tell from it alone whether it lies in a mirror, and of which store.
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
"""Environment variables with the address of a server that speaks S3, the first that is set counts."""
_ADDRESS = re.compile(r"(s3|gs|az)://[\w.-]+(/[\w.=+-]+)*/?", re.ASCII)


def storage_folder(address: str, setting: str = "storage") -> Path:
    """The place of this machine that a setting names: a path itself, of `s3://…`, `gs://…` and `az://…` its mirror.

    Raises:
        ConfigError: it is another kind of address, or has parts that keys of runs cannot have.
    """
    if "://" not in address:
        return Path(address)
    # parts of dots would lead out of the mirror
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
    """A storage, or a place in one, as a user may name it: its address, or else its absolute path."""
    return named(path.absolute())


def named(path: Path) -> str:
    """A path as its user wrote it, or the address that it stands for."""
    return address_of(path) or str(path)


def moved(path: Path, home: Path) -> Path:
    """Where a path of another machine is on this one: in our mirrors if it was in those of `home`, its `mirrors()`."""
    if not path.is_relative_to(home):
        return path
    store, *key = path.relative_to(home).parts
    return mirrors() / _store_name(store.partition("-")[0]) / "/".join(key)


def endpoint() -> str | None:
    """Address of the S3 server that the environment names; None: that of Amazon."""
    return next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), None)


def _store_name(scheme: str) -> str:
    """Folder of a store: servers of S3 at other addresses have buckets of the same names."""
    server = endpoint() if scheme == "s3" else None
    if server is None:
        return scheme
    # without its user, who would be a secret
    parts = urlsplit(server)
    place = f"{parts.hostname}-{parts.port or parts.scheme}"
    return f"{scheme}-{re.sub(r'[^a-zA-Z0-9.-]', '_', place)}"


def mirrors() -> Path:
    """The folder for all mirrors of this machine."""
    usual = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    chosen = os.environ.get(CACHE_VARIABLE) or f"{usual}/boxseg"
    # Resolved, as paths are compared with it that were.
    return Path(chosen).expanduser().resolve() / "stores"

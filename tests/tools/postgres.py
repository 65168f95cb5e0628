"""A PostgreSQL server of Debian's package for tests: a plain process with its data in a folder of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_proxy import free_port


def find_programs() -> list[Path]:
    """Folders with the server's programs, the newest last; the test is skipped where there are none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        pytest.skip("no PostgreSQL on this machine (apt-get install postgresql)")
    return found


@contextlib.contextmanager
def postgres(address: str = "127.0.0.1", *, port: int | None = None) -> Iterator[str]:
    """SQLAlchemy URI of a server that ends with the block; the test is skipped where the package is missing.

    Args:
        address: Where it listens; others of the network may come in as well.
        port: Null: one that is free.
    """
    pytest.importorskip("psycopg", reason="psycopg is not installed (extra: test)")
    programs = find_programs()
    place, port = Path(tempfile.mkdtemp(prefix="boxseg-postgres-")), port or free_port()
    user, prefix = getpass.getuser(), []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = pwd.getpwnam("postgres").pw_name
        shutil.chown(place, user)
        prefix = ["runuser", "-u", user, "--"]
    control = [*prefix, str(programs[-1] / "pg_ctl"), "-D", str(place / "data"), "-w"]
    settings = f"-p {port} -h {address} -k {place} -c fsync=off"
    try:
        subprocess.run(
            [*control, "initdb", "-o", "--auth=trust"], check=True, capture_output=True, cwd="/"
        )
        with (place / "data" / "pg_hba.conf").open("a") as rules:
            rules.write("host all all samenet trust\n")
        start = [*control, "start", "-o", settings, "-l", str(place / "log")]
        subprocess.run(start, check=True, stdout=subprocess.DEVNULL, cwd="/")
        yield f"postgresql://{user}@{address}:{port}/postgres"
    finally:
        subprocess.run(
            [*control, "stop", "-m", "immediate"], capture_output=True, cwd="/", check=False
        )
        shutil.rmtree(place)

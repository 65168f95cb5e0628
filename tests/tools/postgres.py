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


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """SQLAlchemy URI of a server that ends with the block; the test is skipped where the package is missing."""
    pytest.importorskip("psycopg", reason="psycopg is not installed (extra: test)")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("no PostgreSQL on this machine (apt-get install postgresql)")
    place, port = Path(tempfile.mkdtemp(prefix="boxseg-postgres-")), free_port()
    user, prefix = getpass.getuser(), []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = pwd.getpwnam("postgres").pw_name
        shutil.chown(place, user)
        prefix = ["runuser", "-u", user, "--"]
    control = [*prefix, str(programs[-1] / "pg_ctl"), "-D", str(place / "data"), "-w"]
    settings = f"-p {port} -h 127.0.0.1 -k {place} -c fsync=off"
    try:
        subprocess.run(
            [*control, "initdb", "-o", "--auth=trust"], check=True, capture_output=True, cwd="/"
        )
        start = [*control, "start", "-o", settings, "-l", str(place / "log")]
        subprocess.run(start, check=True, stdout=subprocess.DEVNULL, cwd="/")
        yield f"postgresql://{user}@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run(
            [*control, "stop", "-m", "immediate"], capture_output=True, cwd="/", check=False
        )
        shutil.rmtree(place)

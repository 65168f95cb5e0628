"""Writes `requirements.lock`: each package of the image with its version and the hash of its file for x86_64.

    python docker/lock.py            (after every change of constraints.txt; with Python 3.11 on Linux, as in the image)

pip reads hashes and dependencies from its package index and downloads no wheel for it. A file whose hash is another one
is refused when the image is built.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "docker" / "requirements.lock"
EXTRAS = ("server", "store")
"""Of boxseg, which the image has."""


def main() -> None:
    """Ask pip what it would install, and keep names, versions and hashes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [each for name in EXTRAS for each in project["optional-dependencies"][name]]
    ask = ["pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    limits = ["--constraint", str(ROOT / "constraints.txt")]
    command = [sys.executable, "-m", *ask, *limits, *project["dependencies"], *extras]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    lines = sorted(map(line_of, report["install"]))
    LOCK.write_text("# Made by docker/lock.py.\n" + "".join(lines))


def line_of(package: dict) -> str:
    """One line of the file, of one entry of pip's report."""
    about, archive = package["metadata"], package["download_info"]["archive_info"]
    return f"{about['name'].lower()}=={about['version']} --hash=sha256:{archive['hashes']['sha256']}\n"


if __name__ == "__main__":
    main()

"""The tests that need a GPU, by pytest, in a process that leaves nothing on the device."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Timer
from typing import Any

from benchmarks.gpu.place import Place
from benchmarks.harness import Table

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "boxseg" / "engine" / "test_gpu.py"
OUTCOME = re.compile(r"::test_(\S+) (PASSED|FAILED|SKIPPED|ERROR)(?: \((.*)\))?")
REASON = re.compile(r"^(?:FAILED|ERROR) \S+::test_(\S+) - (.*)")


def correctness(place: Place) -> Iterator[Table]:
    """One row for each test of TESTS, as soon as it has ended.

    Raises:
        RuntimeError: pytest ran no test.
    """
    rows: dict[str, tuple[str, str, str]] = {}
    # twice verbose: the settings of the project make pytest quiet once
    options = ["-vv", "-m", "gpu", "--tb=short", "-p", "no:cacheprovider"]
    line = [sys.executable, "-m", "pytest", *options, str(TESTS)]
    output: list[str] = []
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    # wide enough for the reasons of skipped tests
    with subprocess.Popen(line, cwd=ROOT, env=os.environ | {"COLUMNS": "250"}, **pipes) as process:
        assert process.stdout is not None
        too_long = Timer(place.left_s(), process.kill)
        too_long.start()
        for text in process.stdout:
            output.append(text)
            if _take(text, rows):
                yield Table("Tests on the device", ("test", "outcome", "why"), [*rows.values()])
        too_long.cancel()
    print("".join(output))
    if not rows:
        raise RuntimeError(f"pytest ended with {process.returncode}: {output[-1:]}")


def _take(line: str, rows: dict[str, tuple[str, str, str]]) -> bool:
    """Whether the line tells something new of a test."""
    if ended := OUTCOME.search(line):
        name, outcome, why = ended.groups(default="")
    elif reason := REASON.search(line):
        name, outcome, why = reason[1], rows[reason[1]][1], reason[2][:200].replace("|", "/")
    else:
        return False
    rows[name] = (name.replace("_", " "), outcome.lower(), why)
    return True

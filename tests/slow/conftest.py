"""Where slow tests leave pictures for people."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def screenshots(pytestconfig: pytest.Config) -> Path:
    """The folder `build/screenshots`, which stays when the tests are over."""
    folder = pytestconfig.rootpath / "build" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder

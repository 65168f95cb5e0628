"""What slow tests share: a cluster of this machine, and where they leave pictures for people."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from local_cluster import LocalCluster, local_cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A head and two nodes of one CPU each; short names, as Ray's sockets allow no long paths."""
    with local_cluster(tmp_path_factory.mktemp("c")) as running:
        running.add_node("one")
        running.add_node("two")
        yield running


@pytest.fixture(scope="session")
def screenshots(pytestconfig: pytest.Config) -> Path:
    """The folder `build/screenshots`, which stays when the tests are over."""
    folder = pytestconfig.rootpath / "build" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder

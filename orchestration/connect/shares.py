"""Divides the workers among the elastic trials of a sweep: no trial takes a place that another one counts on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from orchestration.config.spec import ResourcesConfig
from orchestration.connect.cluster import Resources, answering_nodes, at_head
from orchestration.planning.preflight import count_places

Nodes = Callable[[], Mapping[str, Resources]]
"""Returns id -> resources of the nodes that are alive."""


class Shares:
    """Knows how many workers each open trial has, and decides how many it may have; one object for all trials of a
    sweep.

    Trials keep workers whose nodes are alive. Free places belong first to trials that wait and to those that have yet
    to begin, each with its full number of workers. Only what is left lets shrunk trials grow, lower numbers first.
    """

    def __init__(self, resources: ResourcesConfig, at_once: int, nodes: Nodes) -> None:
        """`at_once` is the number of trials that are open at a time, as long as there are others to begin."""
        self._resources = resources
        self._at_once = at_once
        self._nodes = nodes
        self._workers: dict[int, int] = {}
        """Number of an open trial -> how many workers it has; 0 while it waits for places."""
        self._to_begin = at_once

    def update(self, open_trials: Collection[int], left: int) -> None:
        """Set the numbers of the trials that are open, and how many are `left` to begin."""
        self._workers = {number: self._workers.get(number, 0) for number in open_trials}
        self._to_begin = min(left, max(0, self._at_once - len(self._workers)))

    def start(self, number: int, homes: Sequence[str]) -> int:
        """Workers that a trial may start with; 0: it has to wait.

        Args:
            number: The trial's.
            homes: Node of each worker that it had until now; it keeps the places on nodes that are alive.
        """
        if number not in self._workers:
            return 0  # it has ended meanwhile
        nodes = self._nodes()
        kept = sum(home in nodes for home in homes)
        if kept >= self._resources.least_workers:
            self._workers[number] = kept
            return self.grow(number)
        self._workers[number] = 0
        free = self._places() - sum(self._workers.values())
        for other, workers in self._workers.items():
            if other < number and not workers:
                free -= self._resources.workers
        if free >= self._resources.least_workers:
            self._workers[number] = min(free, self._resources.workers)
        return self._workers[number]

    def grow(self, number: int) -> int:
        """Workers that a running trial may have from now on: as many as now, or more."""
        every = self._resources.workers
        have = self._workers.get(number, 0)
        if not have:
            return 0  # it has ended meanwhile
        free = self._places() - have - self._to_begin * every
        for other, workers in self._workers.items():
            if other != number:
                # a waiting trial counts on all of its places, and so does one that may grow before this one
                free -= every if other < number or not workers else workers
        self._workers[number] = max(have, min(every, have + free))
        return self._workers[number]

    def note(self, number: int, workers: int) -> None:
        """Set how many workers a trial really has."""
        if number in self._workers:
            self._workers[number] = workers

    def _places(self) -> int:
        return count_places(self._resources, list(self._nodes().values()))


@dataclass(frozen=True)
class Share:
    """One trial's part in its sweep's `Shares`, which it can ask from any machine."""

    shares: Shares
    number: int
    """The trial's."""


def open_shares(resources: ResourcesConfig, at_once: int) -> Shares | None:
    """The `Shares` of a sweep, on the cluster's head; None if all trials have a fixed number of workers."""
    if resources.min_workers is None:
        return None
    return at_head(Shares, resources, at_once, answering_nodes)

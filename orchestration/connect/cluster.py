"""The nodes of the Ray that a command uses: what they have, whether all see the storage, and what workers wait for."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from boxseg.errors import BoxSegError
from orchestration.errors import ResourceError
from orchestration.store.client import place_of
from orchestration.store.places import shown, storage_folder

Resources = Mapping[str, float]
"""Name of a resource in Ray, as in `CPU` and `GPU` -> amount."""

T = TypeVar("T")

ANSWER_S = 60.0
"""How long a node may take to run a task [s]."""
CONNECT_S = 2.0
"""How long a node may take to accept a connection [s]."""
LOOK_S = 5.0
"""Time between two looks at what waits [s]."""
PENDING_S = 60.0
"""How long workers may wait for their places before stderr says so [s]."""


def silent_nodes() -> list[str]:
    """Addresses of nodes that do not answer although Ray counts them as alive: it takes up to a minute to notice."""
    import ray

    return [
        node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"] and not _answers(node)
    ]


def answering_nodes() -> dict[str, Resources]:
    """Id -> resources of the nodes that can be reached right now."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"] and _answers(node)]
    return {node["NodeID"]: node["Resources"] for node in nodes}


def _answers(node: Mapping[str, Any]) -> bool:
    address = node["NodeManagerAddress"], node["NodeManagerPort"]
    try:
        socket.create_connection(address, timeout=CONNECT_S).close()
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class _Remote:
    """An object in an actor of Ray: its methods are called there, and waited for."""

    actor: Any
    """Handle of the actor; it can be sent to other processes."""
    answer_s: float | None
    """How long an answer may take [s]; None: no limit."""

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):  # looked up while this is unpickled, when it has no actor yet
            raise AttributeError(method)

        def ask(*arguments: Any, **options: Any) -> Any:
            import ray

            task = getattr(self.actor, method).remote(*arguments, **options)
            return ray.get(task, timeout=self.answer_s)

        return ask


def at_head(kind: Callable[..., T], *arguments: Any, answer_s: float | None = None) -> T:
    """Make an object on the cluster's head that can be used from any node like a local one."""
    import ray

    head = {"node:__internal_head__": 0.001}
    actor = ray.remote(num_cpus=0, resources=head)(kind).remote(*arguments)
    return cast(T, _Remote(actor, answer_s))


def check_storage_is_shared(storage: Path) -> None:
    """Check by test files that this machine and every node see the same storage folder.

    Raises:
        ResourceError: names the nodes that do not see the storage, or do not answer.
    """
    storage.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(8)
    probe = storage / f".seen-{token}"
    probe.write_text(token)
    try:
        answers = _ask_nodes(look_at_storage, probe)
        for node, content in answers.items():
            copy = probe.with_name(f"{probe.name}-{node.id}")
            if content == token:
                seen = copy.is_file() and copy.read_text() == token
                answers[node] = "" if seen else "writes where this machine does not see it"
    finally:
        for path in storage.glob(f"{probe.name}*"):
            path.unlink(missing_ok=True)
    if complaints := _complaints(answers):
        raise ResourceError(
            f"storage: {storage} is not the same folder on every node: {complaints}; name "
            "one that all nodes share (NFS, a common volume), an object store, or take those nodes out of the "
            "cluster"
        )


def check_store_is_shared(storage: Path) -> None:
    """Check that every node can write to the store of a mirror, by an object from each.

    Raises:
        ResourceError: names the nodes that do not reach the store, reach another one, or do not answer.
        StorageError: the store does not answer or refuses the connection.
    """
    token = secrets.token_hex(8)
    store, prefix = place_of(storage)
    seen = f"{prefix}.seen-{token}"
    answers = _ask_nodes(write_to_store, shown(storage), seen)
    keys = [entry.key for entry in store.entries(seen)]
    store.delete(keys)
    for node, answer in answers.items():
        if not answer and f"{seen}/{node.id}" not in keys:
            answers[node] = "has another store under this address"
    if complaints := _complaints(answers):
        raise ResourceError(
            f"storage: {shown(storage)} is not there for every node: {complaints}; give all nodes the package obstore, "
            "the same credentials and AWS_ENDPOINT_URL in the environment that Ray was started in"
        )


@dataclass(frozen=True)
class _Node:
    id: str
    address: str


def _ask_nodes(look: Callable[..., str], *arguments: Any) -> dict[_Node, str]:
    """Node id -> result of a function that is called there with this id as last argument, or why there is none."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task_of = ray.remote(num_cpus=0, max_retries=0)(look)
    asked: dict[Any, _Node] = {}
    for about in ray.nodes():
        if about["Alive"]:
            node = _Node(about["NodeID"], about["NodeManagerAddress"])
            # not soft: the task has to run on this very node
            on_node = NodeAffinitySchedulingStrategy(node.id, soft=False)
            asked[task_of.options(scheduling_strategy=on_node).remote(*arguments, node.id)] = node
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
    answers = {asked[task]: f"did not answer within {ANSWER_S:.0f} s" for task in late}
    for task in done:
        try:
            answers[asked[task]] = str(ray.get(task))
        except ray.exceptions.RayError as error:
            answers[asked[task]] = f"failed ({str(error).strip().splitlines()[-1]})"
    return answers


def _complaints(answers: dict[_Node, str]) -> str:
    return "; ".join(f"{node.address} {answer}" for node, answer in answers.items() if answer)


def look_at_storage(probe: Path, node: str) -> str:
    """Body of a task on a node: copy a test file under the node's name; returns its content, or the error."""
    try:
        text = probe.read_text()
        probe.with_name(f"{probe.name}-{node}").write_text(text)
    except FileNotFoundError:
        return "has another folder there" if probe.parent.is_dir() else "does not have it"
    except OSError as error:
        return f"cannot use it ({error.strerror})"
    return text


def write_to_store(storage: str, key: str, node: str) -> str:
    """Body of a task on a node: write an object under its name; returns the error, or nothing."""
    try:
        store, _ = place_of(storage_folder(storage))
        store.write(f"{key}/{node}", b"")
    except BoxSegError as error:
        return f"cannot use it ({error})"
    return ""


@contextlib.contextmanager
def shortages_told() -> Iterator[None]:
    """Context in which stderr says, once for each, what workers lack that have waited for a minute."""
    ended = threading.Event()
    thread = threading.Thread(
        target=_report_shortages, args=(ended,), name="shortages", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(LOOK_S)


def _report_shortages(ended: threading.Event) -> None:
    import ray

    since: dict[str, float] = {}
    while not ended.wait(LOOK_S):
        # Ray may be ending or not answer, which is noticed elsewhere
        with contextlib.suppress(Exception):
            groups = ray.util.placement_group_table()
            for id in find_late(since, groups, time.monotonic()):
                bundles = list(groups[id]["bundles"].values())
                message = describe_shortage(
                    bundles, ray.available_resources(), ray.cluster_resources()
                )
                sys.stderr.write(f"{message}{os.linesep}")


def find_late(
    since: dict[str, float], groups: Mapping[str, Mapping[str, Any]], now: float
) -> list[str]:
    """Ids of groups of workers that have waited for their places too long, each only once.

    Args:
        since: Id -> when it began to wait [s]; is updated, with infinity for groups that were returned.
        groups: Ray's table of groups.
        now: Present time [s].
    """
    waiting = [id for id, group in groups.items() if group["state"] in ("PENDING", "RESCHEDULING")]
    for id in since.keys() - set(waiting):
        del since[id]
    late = [id for id in waiting if now - since.setdefault(id, now) >= PENDING_S]
    since.update(dict.fromkeys(late, math.inf))
    return late


def describe_shortage(bundles: Sequence[Resources], free: Resources, total: Resources) -> str:
    """What a group of workers waits for, in one line; each entry of `bundles` is what one worker needs."""
    need: dict[str, float] = {}
    for bundle in bundles:
        for name, amount in bundle.items():
            need[name] = need.get(name, 0) + amount
    parts = []
    for name, amount in need.items():
        supply = f"{free.get(name, 0):g} of {total.get(name, 0):g} free"
        parts.append(f"{amount:g} {name} ({supply})")
    short = [name for name, amount in need.items() if amount > free.get(name, 0)]
    cause = "enough is free, but not together on the nodes"
    if short:
        cause = f"short of {' and '.join(short)}"
    workers = "a worker has" if len(bundles) == 1 else f"{len(bundles)} workers have"
    return f"{workers} waited for {PENDING_S:.0f} s: need {', '.join(parts)}; {cause}"

"""The peer bank: well-masked instances of earlier images, kept as small crops."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from boxseg.errors import CheckpointError

BankKind = Literal["images", "classes"]


@dataclass(frozen=True, eq=False)
class Peer:
    """One instance, cut out of its image."""

    strong: Tensor
    """uint8 (3, h, w): its box in the strong view."""
    weak: Tensor
    """uint8 (3, h, w): the same in the weak view."""
    mask: Tensor
    """Bool (h, w)."""
    corner: tuple[int, int]
    """(row, column) of the crop's first pixel in its image."""
    box: tuple[float, float, float, float]
    """x1 y1 x2 y2 in pixels of its image."""
    label: int
    """Class index."""
    quality: float
    """Of its pseudo mask, in [0, 1]."""
    score: float
    """Mean detection score of its candidates, in [0, 1]."""


class Bank(Protocol):
    """What copy-paste asks of a bank."""

    def __len__(self) -> int: ...

    def wants(self, labels: list[int]) -> bool:
        """Whether `add` would keep instances of these labels; asked first to save the cutting."""

    def add(self, peers: list[Peer], generator: torch.Generator) -> None:
        """Take in the admitted instances of one image."""

    def draw(self, labels: Collection[int] | None, generator: torch.Generator) -> Iterator[list[Peer]]:
        """Groups of peers in random order, only of the given labels; None: any."""

    def mark_used(self, peer: Peer) -> None:
        """Say that a peer was pasted."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors on the CPU and plain values, for a checkpoint."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become the bank that `state_dict` described."""


def build_bank(kind: BankKind, *, size: int) -> Bank:
    """An empty bank.

    Args:
        kind: `images` as in the reference, or `classes`.
        size: Entries at most: images, or instances.
    """
    return BANKS[kind](size)


class ClassBank:
    """The newest instances, by class.

    A full bank drops the oldest instance of the class that has most, so that frequent classes renew themselves and
    rare ones stay. A pasted instance stays until newer ones replace it.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._rings: dict[int, deque[Peer]] = {}

    def __len__(self) -> int:
        return sum(len(ring) for ring in self._rings.values())

    def wants(self, labels: list[int]) -> bool:
        return bool(labels)

    def add(self, peers: list[Peer], generator: torch.Generator) -> None:
        for peer in peers:
            self._rings.setdefault(peer.label, deque()).append(peer)
            if len(self) > self.size:
                max(self._rings.values(), key=len).popleft()

    def draw(self, labels: Collection[int] | None, generator: torch.Generator) -> Iterator[list[Peer]]:
        """Each peer once, as a group of its own: classes in random order, peers of a class too."""
        eligible = [label for label, ring in self._rings.items() if ring and (labels is None or label in labels)]
        for place in torch.randperm(len(eligible), generator=generator).tolist():
            ring = self._rings[eligible[place]]
            for position in torch.randperm(len(ring), generator=generator).tolist():
                yield [ring[position]]

    def mark_used(self, peer: Peer) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"kind": "classes", **pack([list(ring) for ring in self._rings.values() if ring])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _check_kind(state, "classes")
        self._rings = {ring[0].label: deque(ring) for ring in unpack(state)}


class ImageBank:
    """The reference's bank: one entry per tuple of labels, first come, never refreshed, used up by one paste."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._entries: dict[tuple[int, ...], list[Peer]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def wants(self, labels: list[int]) -> bool:
        return bool(labels) and tuple(labels) not in self._entries

    def add(self, peers: list[Peer], generator: torch.Generator) -> None:
        labels = [peer.label for peer in peers]
        if self.wants(labels):
            self._entries[tuple(labels)] = list(peers)
        if len(self) > self.size:  # any entry may leave, the new one too
            del self._entries[list(self._entries)[random_below(len(self), generator)]]

    def draw(self, labels: Collection[int] | None, generator: torch.Generator) -> Iterator[list[Peer]]:
        """Up to as many random entries as there are, with repetition; of each the peers with a fitting label."""
        entries = list(self._entries.values())
        for _ in range(len(entries)):
            entry = entries[random_below(len(entries), generator)]
            group = [peer for peer in entry if labels is None or peer.label in labels]
            if group:
                yield group

    def mark_used(self, peer: Peer) -> None:
        for key, entry in self._entries.items():
            if any(other is peer for other in entry):
                del self._entries[key]
                return

    def state_dict(self) -> dict[str, Any]:
        return {"kind": "images", **pack(list(self._entries.values()))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _check_kind(state, "images")
        self._entries = {tuple(peer.label for peer in entry): entry for entry in unpack(state)}


BANKS: dict[BankKind, type[ImageBank] | type[ClassBank]] = {"images": ImageBank, "classes": ClassBank}


def random_below(count: int, generator: torch.Generator) -> int:
    """Random integer in 0 … count - 1."""
    return int(torch.randint(count, (), generator=generator))


def pack(groups: list[list[Peer]]) -> dict[str, Tensor]:
    """Groups of peers as four flat tensors on the CPU: pixels of both views, masks, and a row of numbers per peer."""
    peers = [(index, peer) for index, group in enumerate(groups) for peer in group]
    rows = [
        [index, *peer.mask.shape, *peer.corner, *peer.box, peer.label, peer.quality, peer.score]
        for index, peer in peers
    ]
    blank = torch.zeros(0, dtype=torch.uint8)
    return {
        "strong": torch.cat([blank, *[peer.strong.flatten().cpu() for _, peer in peers]]),
        "weak": torch.cat([blank, *[peer.weak.flatten().cpu() for _, peer in peers]]),
        "mask": torch.cat([blank.bool(), *[peer.mask.flatten().cpu() for _, peer in peers]]),
        "numbers": torch.tensor(rows, dtype=torch.float64).view(-1, 12),
    }


def unpack(state: dict[str, Tensor]) -> list[list[Peer]]:
    """The groups that `pack` was given."""
    groups: list[list[Peer]] = []
    start = 0
    for row in state["numbers"].tolist():
        index, height, width, top, left, label = (int(row[place]) for place in (0, 1, 2, 3, 4, 9))
        end = start + height * width
        peer = Peer(
            strong=state["strong"][3 * start : 3 * end].view(3, height, width).clone(),
            weak=state["weak"][3 * start : 3 * end].view(3, height, width).clone(),
            mask=state["mask"][start:end].view(height, width).clone(),
            corner=(top, left),
            box=(row[5], row[6], row[7], row[8]),
            label=label,
            quality=row[10],
            score=row[11],
        )
        if index == len(groups):
            groups.append([])
        groups[index].append(peer)
        start = end
    return groups


def _check_kind(state: dict[str, Any], kind: BankKind) -> None:
    if state["kind"] != kind:
        raise CheckpointError(f"the checkpoint has a bank of {state['kind']}, pc.bank is {kind}; set pc.bank to match")

"""The peer bank: well-masked instances of earlier images, kept as small crops."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from boxseg.errors import CheckpointError

BankKind = Literal["images", "classes"]


# Compared by identity, as tensors have no single answer to `==`.
@dataclass(frozen=True, eq=False)
class Peer:
    """One instance, cut out of its image."""

    views: Tensor
    """uint8 (6, h, w): its box in the strong view, then in the weak one."""
    mask: Tensor
    """Either bool (h, w), the mask on the pixels of the crop. Or float (h', w'), the fused map on the stride-4 cells in
    and around the crop: it is smaller, and `pixel_mask` enlarges and thresholds it when the peer is pasted."""
    corner: tuple[int, int]
    """(row, column) of the crop's first pixel in its image."""
    box: tuple[float, float, float, float]
    """x1 y1 x2 y2 in pixels of its image."""
    label: int
    """Class index."""
    quality: float
    """Quality of its pseudo mask, in [0, 1]."""
    score: float
    """Mean detection score of its candidates, in [0, 1]."""


Cut = Callable[[], Peer]
Admitted = tuple[int, Cut]
"""Class index of an instance that is good enough, and what cuts it out of its image."""


class Bank(ABC):
    """Groups of peers by a tuple of labels; at most `size` entries."""

    kind: ClassVar[BankKind]
    uses_up: ClassVar[bool] = False
    """Whether a paste removes peers from the bank. The draw for an image then depends on the pastes into earlier images
    of the batch, so images are handled one by one, and each is remembered after its own paste."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._groups: dict[tuple[int, ...], list[Peer]] = {}

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def add(self, admitted: Sequence[Admitted], generator: torch.Generator) -> None:
        """Take in instances of one image."""

    @abstractmethod
    def draw(
        self, labels: Collection[int] | None, generator: torch.Generator
    ) -> Iterator[list[Peer]]:
        """Groups of peers in random order, only of the given labels; None: any."""

    @abstractmethod
    def mark_used(self, peer: Peer) -> None:
        """Say that a peer was pasted."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors on the CPU and plain values, for a checkpoint."""
        groups = {}
        for key, group in self._groups.items():
            # Not `asdict`, which would copy each tensor.
            groups[key] = [_on_cpu(vars(peer)) for peer in group]
        return {"kind": self.kind, "groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become the bank that `state_dict` described."""
        if state["kind"] != self.kind:
            raise CheckpointError(
                f"the checkpoint has a bank of {state['kind']}, pc.bank is {self.kind}; set pc.bank to match"
            )
        self._groups = {
            key: [Peer(**fields) for fields in group] for key, group in state["groups"].items()
        }


class ClassBank(Bank):
    """The newest instances, by class.

    A full bank drops the oldest instance of the class that has most, so that frequent classes renew themselves and
    rare ones stay. A pasted instance stays until newer ones replace it.
    """

    kind: ClassVar[BankKind] = "classes"

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def add(self, admitted: Sequence[Admitted], generator: torch.Generator) -> None:
        for label, cut in admitted:
            self._groups.setdefault((label,), []).append(cut())
            if len(self) > self.size:
                longest_ring = max(self._groups.values(), key=len)
                longest_ring.pop(0)  # its oldest

    def draw(
        self, labels: Collection[int] | None, generator: torch.Generator
    ) -> Iterator[list[Peer]]:
        """Each peer once, as a group of its own: classes in random order, peers of a class too."""
        rings = [
            ring
            for (label,), ring in self._groups.items()
            if ring and (labels is None or label in labels)
        ]
        for ring_index in torch.randperm(len(rings), generator=generator).tolist():
            ring = rings[ring_index]
            for peer_index in torch.randperm(len(ring), generator=generator).tolist():
                yield [ring[peer_index]]

    def mark_used(self, peer: Peer) -> None:
        pass


class ImageBank(Bank):
    """The reference's bank: one entry per tuple of labels, first come, never refreshed, used up by one paste."""

    kind: ClassVar[BankKind] = "images"
    uses_up: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, admitted: Sequence[Admitted], generator: torch.Generator) -> None:
        # With repetitions: two objects of a class are another entry than one.
        key = tuple(label for label, _ in admitted)
        if key and key not in self._groups:
            self._groups[key] = [cut() for _, cut in admitted]
        if len(self) > self.size:
            keys = list(self._groups)
            leaving = keys[random_below(len(keys), generator)]  # any entry, perhaps the new one
            del self._groups[leaving]

    def draw(
        self, labels: Collection[int] | None, generator: torch.Generator
    ) -> Iterator[list[Peer]]:
        """Up to as many random entries as there are, with repetition; of each the peers with a fitting label."""
        entries = list(self._groups.values())
        for _ in entries:
            entry = entries[random_below(len(entries), generator)]
            group = [peer for peer in entry if labels is None or peer.label in labels]
            if group:
                yield group

    def mark_used(self, peer: Peer) -> None:
        # By identity: peers hold tensors, which have no single answer to `==`.
        self._groups = {
            key: entry
            for key, entry in self._groups.items()
            if all(peer is not other for other in entry)
        }


BANKS: dict[BankKind, type[Bank]] = {"images": ImageBank, "classes": ClassBank}


def random_below(count: int, generator: torch.Generator) -> int:
    """Random integer in 0 … count - 1."""
    return int(torch.randint(count, (1,), generator=generator))


def random_share(generator: torch.Generator) -> float:
    """Random number in [0, 1)."""
    return float(torch.rand(1, generator=generator))


def _on_cpu(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.cpu() if isinstance(value, Tensor) else value for name, value in fields.items()
    }

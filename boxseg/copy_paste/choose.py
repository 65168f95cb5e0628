"""Which peers are pasted into an image, onto which of its instances, and where: decided on the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from boxseg.config.method import PcConfig
from boxseg.copy_paste.bank import Bank, Peer, random_below, random_share
from boxseg.ops.boxes import box_intersection
from boxseg.structures import MASK_STRIDE, Batch, PseudoMasks

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ImageFacts:
    """Numbers of one image that decide what happens to it, on the host."""

    labels: list[int]
    quality: list[float]
    score: list[float]
    area: list[float]
    """Mask areas [px]."""
    boxes: list[Box]


@dataclass(frozen=True)
class Choice:
    """Peers to paste together into one image."""

    peers: list[Peer]
    target: int | None
    """Index of the instance that they are pasted onto; None: they keep the place that they had in their own image."""


@dataclass(frozen=True)
class Paste:
    """A choice with its place."""

    peers: list[Peer]
    shift: tuple[int, int]
    """Rows and columns that the peers move by from the place that they had in their own image."""


def read_facts(batch: Batch, pseudo_masks: list[PseudoMasks]) -> list[ImageFacts]:
    """The numbers of all images in one read from the device; what is pasted where is decided on the host.

    They travel as float64, which holds labels, float32 values and areas exactly.
    """
    areas = []
    for pseudo in pseudo_masks:
        if pseudo.full is None:
            areas.append(pseudo.mask.sum(dim=(1, 2)) * MASK_STRIDE**2)
        else:
            areas.append(pseudo.full.sum(dim=(1, 2)))
    columns = [
        torch.cat(batch.labels).double(),
        torch.cat([pseudo.quality for pseudo in pseudo_masks]).double(),
        torch.cat([pseudo.score for pseudo in pseudo_masks]).double(),
        torch.cat(areas).double(),
    ]
    table = torch.cat([torch.stack(columns, dim=1), torch.cat(batch.boxes).double()], dim=1).cpu()
    facts = []
    for rows in table.split([len(boxes) for boxes in batch.boxes]):
        labels, quality, score, area = rows[:, :4].T.tolist()
        boxes = [(x1, y1, x2, y2) for x1, y1, x2, y2 in rows[:, 4:].tolist()]
        facts.append(ImageFacts([int(label) for label in labels], quality, score, area, boxes))
    return facts


def attempt_probability(step: int, settings: PcConfig) -> float:
    """Probability that a paste is tried: linear from `p_start` at step 0 to `p_end` after the warm-up.

    >>> settings = PcConfig(p_start=0.0, p_end=1.0, warmup=100)
    >>> [attempt_probability(step, settings) for step in (0, 50, 1000)]
    [0.0, 0.5, 1.0]
    """
    share = min(step / settings.warmup, 1.0) if settings.warmup > 0 else 1.0
    return settings.p_start + (settings.p_end - settings.p_start) * share


def placement_range(
    source: Box, target: Box, overlap: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ranges of the new left and the new top side of a source box that overlaps the target box enough.

    Args:
        source: x1 y1 x2 y2 of the peer in its image, pixels.
        target: x1 y1 x2 y2 of the instance it is pasted onto, pixels.
        overlap: Share of the source's extent that must overlap on each axis.

    >>> placement_range((0, 0, 10, 10), (50, 20, 70, 40), overlap=0.5)
    ((45.0, 65.0), (15.0, 35.0))
    """
    ranges = []
    for axis in (0, 1):
        extent = source[axis + 2] - source[axis]
        ranges.append((target[axis] - (1 - overlap) * extent, target[axis + 2] - overlap * extent))
    return ranges[0], ranges[1]


def plan_pastes(
    facts: ImageFacts,
    bank: Bank,
    probability: float,
    settings: PcConfig,
    generator: torch.Generator,
) -> list[Paste]:
    """What to paste into an image, each time other peers onto another target; may be empty.

    Args:
        facts: Of the image.
        bank: Peers to choose from; not changed.
        probability: That anything is tried, see `attempt_probability`.
        settings: What suits what, and how many pastes there may be.
        generator: On the CPU; the only source of randomness.
    """
    choices: list[Choice] = []
    if random_share(generator) < probability:
        while len(choices) < settings.per_image:
            choice = _choose(facts, bank, settings, generator, choices)
            if choice is None:
                break
            choices.append(choice)
    # All peers are drawn before the first place.
    return [
        Paste(choice.peers, _choose_shift(facts, choice, settings, generator))
        for choice in choices
    ]


def _choose(
    facts: ImageFacts,
    bank: Bank,
    settings: PcConfig,
    generator: torch.Generator,
    earlier: list[Choice],
) -> Choice | None:
    """The first drawn group that suits the image; None where none does."""
    labels = set(facts.labels) if settings.mode == "instance" else None
    used = {id(peer) for choice in earlier for peer in choice.peers}
    for group in bank.draw(labels, generator):
        # Mode `simple` pastes a whole entry of the bank, the others the best peer of it.
        peers = group if settings.mode == "simple" else [max(group, key=lambda peer: peer.quality)]
        if any(id(peer) in used for peer in peers):
            continue
        if settings.mode == "simple":
            return Choice(peers, None)
        target = _choose_target(
            facts, peers[0], settings, generator, [choice.target for choice in earlier]
        )
        if target is not None:
            return Choice(peers, target)
    return None


def _choose_target(
    facts: ImageFacts,
    peer: Peer,
    settings: PcConfig,
    generator: torch.Generator,
    earlier: list[int | None],
) -> int | None:
    """The instance that gets the peer: of its class in mode `instance`, else of any."""
    eligible = [
        index
        for index, label in enumerate(facts.labels)
        if index not in earlier and (settings.mode == "segmentation" or label == peer.label)
    ]
    if not eligible:
        return None
    if settings.target == "lowest-q":  # of equal quality the larger box
        target = min(
            eligible, key=lambda index: (facts.quality[index], -_area(facts.boxes[index]))
        )
    else:
        target = eligible[random_below(len(eligible), generator)]
    return None if settings.require_better and peer.quality <= facts.quality[target] else target


def _choose_shift(
    facts: ImageFacts, choice: Choice, settings: PcConfig, generator: torch.Generator
) -> tuple[int, int]:
    """Rows and columns to move a peer by.

    Of `placements` random places it gets the one that hides least of the image's boxes.
    """
    if choice.target is None:
        return 0, 0
    source, target = choice.peers[0].box, facts.boxes[choice.target]
    ranges = placement_range(source, target, settings.overlap)
    corners = [
        [low + (high - low) * random_share(generator) for low, high in ranges]
        for _ in range(settings.placements)
    ]
    width, height = source[2] - source[0], source[3] - source[1]
    places = torch.tensor([[left, top, left + width, top + height] for left, top in corners])
    hidden_px = box_intersection(places, torch.tensor(facts.boxes)).sum(dim=1)
    left, top = corners[int(hidden_px.argmin())]
    # Whole pixels, so that the peer's own need no resampling.
    return round(top - source[1]), round(left - source[0])


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])

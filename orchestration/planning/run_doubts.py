"""Reasons to doubt the masks of a run, for warnings before they are used as labels; needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from boxseg.coco.classes import ABSENT, SHOWN, find_labels
from boxseg.engine.checkpoint import load_about
from orchestration.record.find_runs import sound_status

WEAK_BOX_AP = 0.05
"""With a box AP below this a network finds next to nothing, whatever the data: an assumption."""


def find_doubts(checkpoint: Path, classes: Sequence[str]) -> Iterator[str]:
    """Sentences that say why the masks of a checkpoint may be worth little.

    Args:
        checkpoint: Its folder.
        classes: Names of the classes of the data.

    Raises:
        CheckpointError: it is damaged.
    """
    # a checkpoint is RUN/checkpoints/NAME
    status = sound_status(checkpoint.parent.parent)
    if status is not None and status.status != "finished":
        place = f"{status.status} at step {status.step} of {status.steps}"
        yield f"run {status.id} is not finished: {place}"
    about = load_about(checkpoint)
    box_ap = (about.get("metrics") or about.get("best") or {}).get("val/box_ap")
    if box_ap is None:
        yield f"{checkpoint}: nobody knows how good it is; it was saved without an evaluation"
    elif box_ap < WEAK_BOX_AP:
        yield (
            f"{checkpoint}: finds next to nothing, its box AP is {box_ap:.3f}; masks are then guessed "
            "from colours and place, and their quality means little (train for longer, or see "
            "`boxseg recipe` for settings)"
        )
    yield from class_doubts(str(checkpoint), about["classes"]["names"], classes)


def class_doubts(learnt_from: str, known: Sequence[str], classes: Sequence[str]) -> Iterator[str]:
    """A sentence if some classes of the data were not, or will not be, learnt."""
    labels = find_labels(classes, known)
    unknown = [name for name, label in zip(classes, labels, strict=True) if label == ABSENT]
    if unknown:
        some = f"{len(unknown)} of {len(classes)} classes not"
        if len(unknown) == len(classes):
            some = "none of the classes"
        named = ", ".join(unknown[:SHOWN]) + (" …" if len(unknown) > SHOWN else "")
        yield (
            f"{learnt_from}: knows {some} ({named}); their boxes get masks of whatever class fits "
            f"(it has {', '.join(known[:SHOWN])})"
        )

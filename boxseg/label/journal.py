"""Remembers which images of a data set are labelled, so that a killed command goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter
from typing_extensions import TypedDict  # pydantic wants this one below Python 3.12

from boxseg.coco.segmentations import find_problem
from boxseg.data.dataset import CocoBoxes
from boxseg.errors import ConfigError, DataError
from boxseg.files.prints import take_prints
from boxseg.files.reading import largest_bytes, read_bytes
from boxseg.files.writing import naming_storage_faults, no_link

JOURNAL = "labels.jsonl"
"""Its name in the output folder."""
LINES_RULE = "line 1 says what is labelled, every other line has the labels of one image"


def _require_runs(segmentation: dict[str, Any]) -> dict[str, Any]:
    problem = find_problem(segmentation)
    if problem is not None:
        raise ValueError(problem[0])
    return segmentation


class Label(TypedDict):
    """What the journal says about one box."""

    id: int
    """Id of its annotation."""
    segmentation: Annotated[dict[str, Any], AfterValidator(_require_runs)]
    quality: Annotated[float, Field(ge=0, le=1)]
    candidates: int
    checks: dict[str, int | float]
    doubts: list[str]


@dataclass(frozen=True)
class ImageLabels:
    """One line of the journal: the labels of one image."""

    image_id: int
    labels: list[Label]
    """One for each box."""
    problem: str | None = None
    """Why the image could not be read; then there are no labels."""
    picture: str = ""
    """Fingerprint of the file; empty where it was not read."""


_LINE = TypeAdapter(ImageLabels)


class Journal:
    """The file that says which images are done, one line each."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        """Open or begin the journal of an output folder.

        Args:
            folder: Made if missing.
            about: Identifies data and source of masks; a journal of others is refused.

        Raises:
            ConfigError: the folder holds labels of other data, or made otherwise.
            DataError: the journal is damaged.
        """
        self._path = folder / JOURNAL
        folder.mkdir(parents=True, exist_ok=True)
        lines = self._read()
        if lines and lines[0] != about:
            keys = sorted(about.keys() | lines[0].keys())
            changed = ", ".join(key for key in keys if about.get(key) != lines[0].get(key))
            raise ConfigError(
                f"{folder}: holds labels made with another {changed}; name another --output, or remove it"
            )
        if not lines:
            self._append(about)
        # Images that could not be read are tried again: the files may be there now.
        self.done: dict[int, ImageLabels] = {}
        for labels in lines[1:]:
            if labels.problem is None:
                self.done[labels.image_id] = labels

    def add(self, labels: Sequence[ImageLabels]) -> None:
        """Remember images."""
        self._append(*map(asdict, labels))
        self.done |= {image.image_id: image for image in labels}

    def forget_changed(self, data: CocoBoxes) -> int:
        """Forget the images whose files were replaced since they were labelled; returns their number."""
        names = {data.image_id(index): data.file_name(index) for index in range(len(data))}
        labelled = {names[image.image_id]: image for image in self.done.values() if image.picture}
        prints = take_prints(data.source.images, list(labelled), most=len(labelled) or 1)
        changed = [labelled[name] for name, now in prints.items() if now != labelled[name].picture]
        for image in changed:
            del self.done[image.image_id]
        return len(changed)

    def _read(self) -> list[Any]:
        """What is labelled, then the labels of each image; a last line that a kill left unfinished is cut off."""
        if not self._path.exists():
            return []
        rule = "the journal of an output folder is a file"
        data = read_bytes(self._path, rule, limit=largest_bytes())
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            # In the file as well, or the next line would be appended to the unfinished one.
            with open(self._path, "r+b", opener=no_link) as file:
                file.truncate(whole)
        lines: list[Any] = []
        for text in data[:whole].splitlines():
            try:
                lines.append(_LINE.validate_json(text) if lines else dict(json.loads(text)))
            except (ValueError, TypeError, RecursionError) as error:
                cause = " ".join(str(error).split())[:200]
                raise DataError(
                    f"{self._path}:{len(lines) + 1}: is damaged ({cause}); {LINES_RULE} "
                    "(remove the line to label that image again)"
                ) from error
        return lines

    def _append(self, *values: dict[str, Any]) -> None:
        with (
            naming_storage_faults(self._path),
            open(self._path, "a", encoding="utf-8", opener=no_link) as file,
        ):
            file.write("".join(json.dumps(value) + "\n" for value in values))

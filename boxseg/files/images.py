"""Which files are images, and those that people name; needs no torch."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boxseg.config.method import CocoSource
from boxseg.errors import ConfigError
from boxseg.files.names import is_inside

IMAGE_ENDINGS = frozenset(
    {".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp"}
)
"""Of the formats that `boxseg.files.reading` opens."""
PATTERN_LETTERS = "*?["
"""Letters that make a pattern of a name."""


def image_files(folder: Path) -> list[Path]:
    """Image files of a folder with all below, by their ending, in order."""
    return [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_ENDINGS]


def find_image_files(sources: Sequence[str]) -> list[Path]:
    """Image files that files, folders (with all below) and glob patterns name, each once, in order.

    Raises:
        ConfigError: a source names nothing.
    """
    found: dict[Path, None] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            files = image_files(path)
        else:
            matches = sorted(glob.glob(source, recursive=True))  # noqa: PTH207  patterns may be absolute
            files = [path] if path.exists() else [Path(each) for each in matches]
        if not files:
            raise ConfigError(f"{source}: {_why_nothing(path)}")
        found.update(dict.fromkeys(files))
    return list(found)


def _why_nothing(path: Path) -> str:
    if path.is_dir():
        return f"holds no image ({', '.join(sorted(IMAGE_ENDINGS))}); name another folder"
    if any(letter in str(path) for letter in PATTERN_LETTERS):
        return "no file fits this pattern; name image files, folders, or patterns such as 'photos/*.jpg'"
    return "does not exist; correct the path"


def require_some_image(source: CocoSource, images: Sequence[dict[str, Any]]) -> None:
    """Refuse a folder that holds none of the images that an annotation file lists.

    Raises:
        ConfigError: names both.
    """
    names = [image["file_name"] for image in images]
    # Path.is_file raises for a name that is too long for the file system; os.path.isfile says no.
    present = (is_inside(name) and os.path.isfile(source.images / name) for name in names)  # noqa: PTH113
    if names and not any(present):
        raise ConfigError(
            f"{source.annotations}: none of its {len(names)} images, as {names[0]}, is in {source.images}; name their "
            "folder with --images"
        )

"""Which files are images, and which ones a command line names; needs no torch."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from boxseg.config.method import CocoSource
from boxseg.errors import ConfigError
from boxseg.files.names import is_file_inside, names_below
from boxseg.files.reading import look_at

IMAGE_ENDINGS = frozenset(
    {".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp"}
)
"""Endings of the formats that `boxseg.files.reading` opens."""
PATTERN_LETTERS = "*?["
"""A name with one of these letters is a pattern for `glob`."""
PAGED_ENDINGS = frozenset({".avif", ".gif", ".png", ".tif", ".tiff", ".webp"})
"""Endings of the formats that hold several pages or frames; MPO's other pictures are views of the same scene."""
VIDEO_ENDINGS = frozenset({".avi", ".mkv", ".mov", ".mp4", ".mpg", ".webm"})
COPY_SCALE = 0.75
"""A page of a TIFF that is smaller than the first by this factor is taken for a preview of it."""
FIRST_PAGE = "only the first page or frame of a picture is read"
STORE_PAGES = "store each as a picture of its own, and boxes with the one they were drawn on"


def image_files(folder: Path) -> list[Path]:
    """All files of a folder and its subfolders that have the ending of an image, sorted; links are followed."""
    paths = [folder / name for name in names_below(folder)]
    return [path for path in sorted(paths) if path.suffix.lower() in IMAGE_ENDINGS]


def find_image_files(sources: Sequence[str]) -> list[Path]:
    """Resolve files, folders (with their subfolders) and glob patterns to image files, each listed once, in order.

    Raises:
        ConfigError: a source names nothing, or a video.
    """
    paths: dict[Path, None] = {}  # a dict instead of a set keeps the order
    for source in sources:
        matches = _files_of(source)
        if not matches:
            raise ConfigError(f"{source}: {_why_nothing(Path(source))}")
        paths.update(dict.fromkeys(matches))
    return list(paths)


def _files_of(source: str) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        return image_files(path)
    # An existing file goes first: a photo can be named `cat[1].jpg`, which is a pattern as well.
    if path.suffix.lower() in VIDEO_ENDINGS:
        raise ConfigError(
            f"{source}: is a video, and images are read; write its frames as images before, as with "
            f"`ffmpeg -i {source} frames/%06d.png`"
        )
    if path.exists():
        return [path]
    matches = glob.glob(source, recursive=True)  # noqa: PTH207  patterns may be absolute
    return [Path(match) for match in sorted(matches)]


def _why_nothing(path: Path) -> str:
    if path.is_dir():
        return f"holds no image ({', '.join(sorted(IMAGE_ENDINGS))}); name another folder"
    if any(letter in str(path) for letter in PATTERN_LETTERS):
        return "no file fits this pattern; name image files, folders, or patterns such as 'photos/*.jpg'"
    return "does not exist; correct the path"


def count_pages(picture: Image.Image) -> int:
    """Pages of a TIFF, or frames of an animation, of an opened picture; copies of a smaller size do not count."""
    pages: int = getattr(picture, "n_frames", 1)
    if pages == 1 or picture.format == "MPO":
        return 1
    if picture.format != "TIFF":
        return pages
    width, height = picture.size
    count = 0
    for page in range(pages):
        picture.seek(page)
        count += max(picture.width / width, picture.height / height) > COPY_SCALE
    picture.seek(0)
    return count


def describe_paged(paths: Iterable[Path]) -> str | None:
    """A sentence about the pictures that have several pages or frames; None if there are none."""
    may_be_paged = (path for path in paths if path.suffix.lower() in PAGED_ENDINGS)
    counts = look_at(may_be_paged, count_pages)
    paged = [path for path, count in counts.items() if count > 1]
    if not paged:
        return None
    first = f"such as {paged[0]} with {counts[paged[0]]}"
    return f"{len(paged)} pictures, {first}, have several pages or frames; {FIRST_PAGE} ({STORE_PAGES})"


def require_some_image(source: CocoSource, images: Sequence[dict[str, Any]]) -> None:
    """Refuse an image folder that has none of the images that the annotation file lists.

    Args:
        source: The folder and the annotation file.
        images: The `images` entries of the annotation file.

    Raises:
        ConfigError: no listed image is there; names the folder and the file.
    """
    names = [image["file_name"] for image in images]
    if not names or any(is_file_inside(source.images, name) for name in names):
        return
    raise ConfigError(
        f"{source.annotations}: none of its {len(names)} images, such as {names[0]}, is in {source.images}; "
        "name their folder with --images, or let `boxseg data check --fix` write the names as on the disk"
    )

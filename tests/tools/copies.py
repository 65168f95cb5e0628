"""Copies of a run as they come out of real tools."""

import shutil
from pathlib import Path


def _copy(source: Path, target: Path) -> None:
    """`cp -r`: links stay links."""
    shutil.copytree(source, target, symlinks=True)


def _copy_contents(source: Path, target: Path) -> None:
    """`cp -rL`: links become the folders that they lead to."""
    shutil.copytree(source, target, symlinks=False)


def _zip(source: Path, target: Path) -> None:
    """An archive and back: links to folders become empty folders."""
    archive = shutil.make_archive(str(target.with_name(f"{target.name}-archive")), "zip", source)
    shutil.unpack_archive(archive, target)


def _upload(source: Path, target: Path) -> None:
    """An object store: files alone, neither links nor empty folders."""
    for path in source.rglob("*"):
        if path.is_file() and not any(each.is_symlink() for each in (path, *path.parents)):
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / path.relative_to(source))


def _write_links_as_text(source: Path, target: Path) -> None:
    """git on Windows, or tar on a disk without links: a link becomes a file with the name that it led to."""
    _copy(source, target)
    for path in list(target.rglob("*")):
        if path.is_symlink():
            text = str(path.readlink())
            path.unlink()
            path.write_text(text)


COPIES = {
    "cp -r": _copy,
    "cp -rL": _copy_contents,
    "zip": _zip,
    "object store": _upload,
    "links as text": _write_links_as_text,
}
"""Name -> what copies a run's folder to a place that is not there yet."""

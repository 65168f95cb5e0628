"""Files of a store that a command names by their address: fetched like those of a run, then used like other files."""

from __future__ import annotations

from pathlib import Path

from boxseg.config.method import CocoSource
from boxseg.errors import ConfigError
from boxseg.files.images import IMAGE_ENDINGS
from orchestration.store.client import place_of
from orchestration.store.data import TAR, Tell, fetch_files, listed_images
from orchestration.store.places import address_of, storage_folder


def fetch_named(annotations: Path, images: Path | None, tell: Tell) -> tuple[Path, Path | None]:
    """An annotation file and the folder of its images on this machine; what is in a store is fetched.

    Raises:
        ConfigError: an address is malformed or that of a folder with labels, or nothing says where the images are.
        DataError: an object is missing.
        StorageError: the store refuses access, or has not answered for ten minutes.
        ResourceError: the disk has no room, or `BOXSEG_DATA_GB` allows less.
    """
    file = _place(annotations, "annotations")
    folder = None if images is None else _place(images, "--images")
    if address_of(file) is not None:
        if file.suffix != ".json":
            raise ConfigError(
                f"{address_of(file)}: a COCO file ends in .json; copy a folder of YOLO or VOC to this machine"
            )
        if folder is None:
            raise ConfigError(
                f"{address_of(file)}: say where its images are, with --images s3://BUCKET/PREFIX or a folder"
            )
        fetch_files(file.parent, [file.name], setting="annotations", tell=tell)
    if folder is not None and address_of(folder) is not None:
        names = listed_images(CocoSource(images=folder, annotations=file))
        fetch_files(folder, names, setting="--images", tell=tell)
    return file, folder


def fetch_pictures(source: str, tell: Tell) -> list[str]:
    """The files of this machine that a source stands for: for an address the object, or all images below it; else
    itself.

    A tar file stands for the images in it.

    Raises:
        ConfigError: there is neither an object of this name nor an image below it, or in its tar files.
        StorageError, ResourceError: see `fetch_named`.
    """
    path = _place(Path(source), "SOURCE")
    if address_of(path) is None:
        return [source]
    store, prefix = place_of(path)
    try:
        store.entry(prefix.rstrip("/"))
        path, names = path.parent, [path.name]
    except FileNotFoundError:
        names = [entry.key.removeprefix(prefix) for entry in store.entries(prefix.rstrip("/"))]
        names = [name for name in names if name.endswith(TAR) or _is_image(name)]
    tars = fetch_files(path, names, setting="SOURCE", tell=tell) if names else {}
    packed = [name for members in tars.values() for name in members if _is_image(name)]
    found = sorted({*names, *packed} - tars.keys())
    if not found:
        raise ConfigError(
            f"{source}: there is no such object, and no image below it or in its tar files; correct the address"
        )
    return [str(path / name) for name in found]


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_ENDINGS


def _place(path: Path, setting: str) -> Path:
    """The path on this machine for what was typed as a path, where `s3://bucket` has become `s3:/bucket`."""
    scheme, *rest = path.parts or (".",)
    if scheme not in ("s3:", "gs:", "az:"):
        return path
    return storage_folder(f"{scheme}//{'/'.join(rest)}", setting)

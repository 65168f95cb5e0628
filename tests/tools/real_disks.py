"""Small real disks for tests: full, without inodes, read-only, unmounted in use, cut from power. They need root."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import itertools
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

MEGABYTE = 1 << 20
SHUTDOWN_IOCTL = 0x8004587D
"""EXT4_IOC_SHUTDOWN: from then on nothing reaches the disk, as if the power were off."""
NO_LOG_FLUSH = 2
"""Its argument: what stands in memory only, the journal too, is lost."""
LEAVE_DISKS = "grep noauto_da_alloc /proc/self/mounts | cut -d ' ' -f 2 | xargs -r umount --lazy"
"""Shell command for the first process of a new mount namespace, which has a copy of all mounts: a disk of another test
that stays mounted there cannot be made writable again."""


class RealDisk:
    """A mounted file system."""

    def __init__(self, path: Path, mount: tuple[str, ...]) -> None:
        self.path = path
        """Where it is mounted."""
        self._mount = mount
        self._ballast = path / ".ballast"

    def mount(self) -> None:
        """Mount it, as in the beginning or after `unmount`; what a disk image holds is there again."""
        _run("mount", *self._mount, str(self.path))

    def unmount(self) -> None:
        """Take it away while processes use it: files they have open still work, the path shows an empty folder."""
        _run("umount", "--lazy", str(self.path))

    def free_bytes(self) -> int:
        """What fits on it."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self, *, left: int = 0) -> None:
        """Use up all room but `left` bytes, in whole blocks of the file system."""
        self._ballast.mkdir(exist_ok=True)
        with (self._ballast / "room").open("ab", buffering=0) as file:
            for size in (MEGABYTE, 4096, 1024):
                _until_full(lambda size=size: file.write(bytes(size)))
            file.truncate(max(file.tell() - left, 0))

    def use_up_inodes(self) -> None:
        """Make empty files until no other file fits."""
        self._ballast.mkdir(exist_ok=True)
        names = map(str, itertools.count())
        _until_full(lambda: (self._ballast / next(names)).touch())

    def make_room(self) -> None:
        """Give back what `fill` and `use_up_inodes` took."""
        shutil.rmtree(self._ballast, ignore_errors=True)

    def make_read_only(self) -> None:
        """Refuse all writing from now on, also to files that are open, as ext4 does after an error of its disk."""
        _run("sync", "--file-system", str(self.path))
        _run("mount", "-o", "remount,abort", str(self.path))

    def make_writable(self) -> None:
        """Take `make_read_only` back; nobody may have files open on it."""
        _run("umount", str(self.path))
        self.mount()

    def cut_power(self, *, names_kept: bool = True) -> None:
        """Lose all that was not synced, then start again; only for ext4, and nobody may have files open on it.

        With `names_kept` the worst that a journal allows happens first: files that were made or renamed have reached
        the disk, what was written into them has not.
        """
        if names_kept:
            with (self.path / ".journal").open("wb") as file:
                # commits the names of all files, and the content of this one alone
                os.fsync(file.fileno())
        folder = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, SHUTDOWN_IOCTL, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(folder)
        _run("umount", str(self.path))
        self.mount()
        (self.path / ".journal").unlink(missing_ok=True)


@contextlib.contextmanager
def mounted_tmpfs(path: Path, *, bytes_: int, inodes: int = 0) -> Iterator[RealDisk]:
    """A file system in memory of some size; zero inodes: as many as there is room for."""
    options = f"size={bytes_},nr_inodes={inodes}"
    with _mounted(RealDisk(path, ("-t", "tmpfs", "-o", options, "tmpfs"))) as disk:
        yield disk


@contextlib.contextmanager
def mounted_ext4(
    path: Path, *, bytes_: int = 32 * MEGABYTE, inodes: int | None = None
) -> Iterator[RealDisk]:
    """An ext4 on a loop device, its image beside `path`; it writes nothing by itself for minutes.

    Without `auto_da_alloc`, as on file systems that do not repair what programs forget to sync.
    """
    image = path.with_name(f"{path.name}.img")
    with image.open("wb") as file:
        file.truncate(bytes_)
    _run(
        "mkfs.ext4",
        "-q",
        "-F",
        "-m",
        "0",
        *([] if inodes is None else ["-N", str(inodes)]),
        str(image),
    )
    options = "loop,noauto_da_alloc,commit=600,errors=remount-ro"
    try:
        with _mounted(RealDisk(path, ("-t", "ext4", "-o", options, str(image)))) as disk:
            yield disk
    finally:
        image.unlink()


@functools.cache
def why_no_mounts() -> str | None:
    """Why this machine cannot give a test its own disk; None if it can. For `pytest.mark.skipif`."""
    if os.geteuid() != 0:
        return "only root may mount disks"
    with tempfile.TemporaryDirectory() as folder:
        try:
            with (
                mounted_tmpfs(Path(folder, "memory"), bytes_=MEGABYTE),
                mounted_ext4(Path(folder, "disk")) as disk,
            ):
                disk.cut_power()
        except (OSError, subprocess.CalledProcessError) as error:
            told = getattr(error, "stderr", "") or str(error)
            return f"this machine mounts no disks: {' '.join(told.split())[:200]}"
    return None


@contextlib.contextmanager
def _mounted(disk: RealDisk) -> Iterator[RealDisk]:
    disk.path.mkdir(exist_ok=True)
    disk.mount()
    try:
        yield disk
    finally:
        while os.path.ismount(disk.path):
            disk.unmount()


def _until_full(write: Callable[[], object]) -> None:
    try:
        while True:
            write()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)

"""Disks of tests do to files what real ones do."""

import errno
import os

import pytest
from real_disks import MEGABYTE, mounted_ext4, mounted_tmpfs, why_no_mounts

pytestmark = pytest.mark.skipif(why_no_mounts() is not None, reason=str(why_no_mounts()))


def test_a_full_disk_takes_only_what_still_fits(tmp_path):
    with mounted_tmpfs(tmp_path / "disk", bytes_=MEGABYTE) as disk:
        disk.fill(left=4096)
        assert disk.free_bytes() == 4096
        with pytest.raises(OSError, match="No space left") as caught:
            (disk.path / "more").write_bytes(bytes(4097))
        assert caught.value.errno == errno.ENOSPC
        disk.make_room()
        (disk.path / "more").write_bytes(bytes(8192))


@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_a_disk_without_inodes_takes_no_file(tmp_path, kind):
    mounted = mounted_ext4 if kind == "ext4" else mounted_tmpfs
    with mounted(tmp_path / "disk", bytes_=8 * MEGABYTE, inodes=64) as disk:
        disk.use_up_inodes()
        with pytest.raises(OSError, match="No space left"):
            (disk.path / "one").touch()
        assert disk.free_bytes() > MEGABYTE
        disk.make_room()
        (disk.path / "one").touch()


def test_a_disk_becomes_read_only_and_writable_again(tmp_path):
    with mounted_ext4(tmp_path / "disk") as disk:
        with (disk.path / "one").open("wb", buffering=0) as file:
            file.write(b"before")
            disk.make_read_only()
            for write in (lambda: file.write(b"after"), (disk.path / "two").touch):
                with pytest.raises(OSError, match="Read-only"):
                    write()
        disk.make_writable()
        assert (disk.path / "one").read_text() == "before"
        (disk.path / "two").touch()


def test_an_unmounted_disk_leaves_an_empty_folder_and_comes_back_as_it_was(tmp_path):
    with mounted_ext4(tmp_path / "disk") as disk:
        with (disk.path / "one").open("w") as file:
            disk.unmount()
            assert not list(disk.path.iterdir())
            file.write("still open")
        disk.mount()
        assert (disk.path / "one").read_text() == "still open"


def test_power_loss_empties_what_was_not_synced(tmp_path):
    with mounted_ext4(tmp_path / "disk") as disk:
        for name in ("synced", "forgotten"):
            with (disk.path / f".{name}").open("w") as file:
                file.write("content")
                if name == "synced":
                    file.flush()
                    os.fsync(file.fileno())
            (disk.path / f".{name}").rename(disk.path / name)
        disk.cut_power()
        assert (disk.path / "synced").read_text() == "content"
        assert (disk.path / "forgotten").read_text() == ""
        (disk.path / "unheard").write_text("of")
        disk.cut_power(names_kept=False)
        assert not (disk.path / "unheard").exists()

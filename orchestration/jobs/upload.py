"""What is uploaded with a job: the files of a folder that git tracks, without secrets and within a limit."""

from __future__ import annotations

import os
import re
import subprocess
import zipfile
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from boxseg.errors import ConfigError
from orchestration.secret_text import KNOWN

SECRET_NAME = re.compile(
    r"\.env(\..*)?|.*\.(pem|key|p12|pfx|jks|kdbx|keytab|token)|.*_token|token(\.txt)?"
    r"|id_(rsa|dsa|ecdsa|ed25519).*|\.(netrc|pgpass|pypirc|htpasswd|git-credentials)"
    r"|(credentials|secrets?)(\..*)?|kubeconfig"
)
HARMLESS_ENDS = (".example", ".sample", ".template", ".pub", ".py")
SECRET_TEXT = re.compile(KNOWN.encode())
LARGEST = 5
"""How many of the largest files are named."""


@dataclass(frozen=True)
class Upload:
    """Files below a folder."""

    root: Path
    sizes: dict[Path, int]
    """File, relative to the root -> bytes."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Name of a file that is left out -> why."""

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())

    def largest(self) -> list[tuple[Path, int]]:
        """The largest files with their bytes, largest first."""
        return sorted(self.sizes.items(), key=lambda item: item[1], reverse=True)[:LARGEST]

    def pack(self, path: Path) -> None:
        """Write the files to a ZIP archive, the same bytes for the same files; links become what they lead to."""
        with zipfile.ZipFile(path, "w") as archive:
            for name in sorted(self.sizes):
                entry = zipfile.ZipInfo(name.as_posix())  # its date is 1980
                # ZIP keeps Unix's mode of a file in the upper half of this field
                entry.external_attr = (self.root / name).stat().st_mode << 16
                archive.writestr(entry, (self.root / name).read_bytes(), zipfile.ZIP_DEFLATED)


def find_files(root: Path, *, tracked_only: bool = True) -> Upload:
    """The files that would be uploaded.

    Args:
        tracked_only: Refuse a folder where git tracks nothing; False: take every file there except git's own.

    Raises:
        ConfigError: no such folder, git does not know it or does not trust its owner, it holds nothing, or a link leads
            out of it.
    """
    if not root.is_dir():
        way_out = "name the one that the job needs with --working-dir"
        raise ConfigError(f"{root}: no such folder; {way_out}")
    names = _tracked(root)
    if not names and tracked_only:
        raise ConfigError(
            f"{root}: git tracks no files here, so it is unclear what belongs to the job; `git "
            "init` and `git add` the files, or name a folder to upload as a whole with "
            "--working-dir"
        )
    if not names:
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root)
            if ".git" not in name.parts and "__pycache__" not in name.parts:
                names.append(name)
    # before the links are followed
    _refuse_links_out(root, names)
    names += _below_links(root, names)
    sizes: dict[Path, int] = {}
    left_out: dict[str, str] = {}
    for name in names:
        path = root / name
        # bytes that are no UTF-8 are half characters in Python's names
        if re.search("[\ud800-\udfff]", str(name)):
            left_out[ascii(str(name))] = "its name is not UTF-8; rename it"
        elif path.is_file():
            sizes[name] = path.stat().st_size
        elif path.is_symlink() and not path.exists():
            left_out[str(name)] = "a link that leads to nothing"
        elif not path.exists():
            left_out[str(name)] = "git tracks it, and it is not here"
    if not sizes:
        raise ConfigError(f"{root}: no files to upload; `git add` what the job needs")
    return Upload(root, sizes, left_out)


def _refuse_links_out(root: Path, names: list[Path]) -> None:
    for name in names:
        if not (root / name).resolve().is_relative_to(root.resolve()):
            reason = "is a link out of the folder, so it would take along files from elsewhere"
            raise ConfigError(f"{root / name} {reason}; remove it")


def _below_links(root: Path, names: list[Path]) -> list[Path]:
    """`names` as they are seen through links to folders, since an archive holds no such links."""
    shown = []
    for link in names:
        if not (root / link).is_symlink() or not (root / link).is_dir():
            continue
        target = (root / link).resolve().relative_to(root.resolve())
        # a link to a folder around itself would never end
        if not link.is_relative_to(target):
            shown += [link / n.relative_to(target) for n in names if n.is_relative_to(target)]
    return shown


def check_upload(
    upload: Upload, *, limit: int, allowed: Collection[Path] = (), token: str | None = None
) -> None:
    """Refuse files that look like secrets, and more than a limit.

    Args:
        upload: The files.
        limit: Most bytes in all.
        allowed: Files that may be uploaded although they look like secrets.
        token: The cluster's token, which no file may hold, allowed or not.

    Raises:
        ConfigError: names the files and what to do.
    """
    refused = {}
    for name in upload.sizes:
        why = _suspicion(upload.root / name, token)
        if why is not None and (name not in allowed or why == HOLDS_TOKEN):
            refused[name] = why
    if refused:
        listing = ", ".join(f"{name} ({why})" for name, why in list(refused.items())[:LARGEST])
        raise ConfigError(
            f"{upload.root}: {len(refused)} of the files to upload look like secrets: {listing}; "
            "take them out of git (git rm --cached), or let a harmless one pass with --allow FILE"
        )
    if upload.total > limit:
        listing = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in upload.largest())
        raise ConfigError(
            f"{upload.root}: {upload.total / 1e6:.1f} MB to upload, more than {limit / 1e6:.0f} "
            f"MB; the largest: {listing}; keep data on storage that the cluster sees, or raise "
            "--max-mb"
        )


HOLDS_TOKEN = "holds the cluster's token"


def _suspicion(path: Path, token: str | None) -> str | None:
    """Why a file looks like a secret."""
    content = path.read_bytes()
    if token and token.encode() in content:
        return HOLDS_TOKEN
    if SECRET_TEXT.search(content):
        return "holds a key or token"
    name = path.name.lower()
    if SECRET_NAME.fullmatch(name) and not name.endswith(HARMLESS_ENDS):
        return "by its name"
    return None


def _tracked(folder: Path) -> list[Path]:
    """Files below a folder that git tracks; none where it knows nothing of the folder."""
    # -z: otherwise git quotes names that are not ASCII
    command = ["git", "-C", str(folder), "ls-files", "-z", "--recurse-submodules"]
    try:
        ended = subprocess.run(command, capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError):
        return []
    if b"dubious ownership" in ended.stderr:
        raise ConfigError(
            f"{folder}: belongs to another user, so git does not look into it; if you trust its files, run `git config "
            f"--global --add safe.directory {folder}`"
        )
    return [Path(os.fsdecode(name)) for name in ended.stdout.split(b"\0") if name]

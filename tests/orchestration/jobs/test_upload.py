"""What a job takes along, and what is refused."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from boxseg.errors import ConfigError
from orchestration.jobs.upload import check_upload, find_files

KEY = "-----BEGIN RSA " + "PRIVATE KEY-----\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git checkout with two tracked files; one is ignored by rule, another lies about untracked."""
    root = tmp_path / "checkout"
    (root / "sub").mkdir(parents=True)
    (root / "exp.yaml").write_text("name: t\n")
    (root / "sub" / "large.txt").write_text("x" * 1000)
    (root / "untracked.txt").write_text("not mine")
    (root / ".gitignore").write_text("*.txt\n")
    git(root, "init", "--quiet")
    git(root, "add", "--force", "exp.yaml", "sub/large.txt", ".gitignore")
    return root


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(root), *arguments], check=True)


def track(root: Path, name: str, content: str = "") -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(content)
    git(root, "add", "--force", name)


def test_tracked_files_go_along_as_they_are_now_even_ignored_ones(checkout: Path, tmp_path: Path):
    (checkout / "exp.yaml").write_text("name: changed\n")
    upload = find_files(checkout)
    assert set(upload.sizes) == {Path("exp.yaml"), Path("sub/large.txt"), Path(".gitignore")}
    assert upload.largest()[0] == (Path("sub/large.txt"), 1000)
    assert upload.total == 1000 + len("name: changed\n") + len("*.txt\n")
    upload.pack(tmp_path / "a.zip")
    upload.pack(tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert sorted(archive.namelist()) == [".gitignore", "exp.yaml", "sub/large.txt"]
        assert archive.read("exp.yaml") == b"name: changed\n"


def test_a_deleted_file_is_left_out_and_reported(checkout: Path):
    (checkout / "exp.yaml").unlink()
    upload = find_files(checkout)
    assert Path("exp.yaml") not in upload.sizes
    assert upload.left_out == {"exp.yaml": "git tracks it, and it is not here"}


def test_a_link_to_a_folder_goes_along_as_the_files_that_it_shows(checkout: Path, tmp_path: Path):
    (checkout / "data").symlink_to("sub")
    (checkout / "sub" / "up").symlink_to("..")  # around itself: endless
    git(checkout, "add", "data", "sub/up")
    upload = find_files(checkout)
    assert Path("data/large.txt") in upload.sizes
    upload.pack(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.read("data/large.txt") == b"x" * 1000


def test_a_dangling_link_and_a_name_that_is_not_utf_8_are_reported(checkout: Path):
    (checkout / "gone").symlink_to("nowhere")
    odd = os.fsdecode(b"caf\xe9.yaml")
    (checkout / odd).write_text("name: t\n")
    git(checkout, "add", "gone", odd)
    upload = find_files(checkout)
    assert set(upload.sizes) == {Path("exp.yaml"), Path("sub/large.txt"), Path(".gitignore")}
    assert upload.left_out == {
        "gone": "a link that leads to nothing",
        r"'caf\udce9.yaml'": "its name is not UTF-8; rename it",
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused_with_the_way_out(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "none"))
    monkeypatch.delenv("SUDO_UID", raising=False)
    for path in (checkout, *checkout.rglob("*")):
        os.chown(path, 4321, 4321, follow_symlinks=False)
    with pytest.raises(ConfigError, match=r"belongs to another user.*safe\.directory"):
        find_files(checkout)


def test_outside_of_git_the_folder_has_to_be_named(tmp_path: Path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ConfigError, match="--working-dir"):
        find_files(tmp_path)
    assert set(find_files(tmp_path, tracked_only=False).sizes) == {Path("a.txt")}


def test_a_link_out_of_the_folder_is_refused(checkout: Path, tmp_path: Path):
    (tmp_path / "outside").write_text("mine")
    (checkout / "link").symlink_to(tmp_path / "outside")
    git(checkout, "add", "link")
    with pytest.raises(ConfigError, match="link out of the folder"):
        find_files(checkout)


@pytest.mark.parametrize(
    "name", [".env", "sub/server.pem", "id_rsa", "auth_token", ".netrc", "secrets.yaml", "a.key"]
)
def test_names_of_secrets_are_refused_until_allowed(checkout: Path, name: str):
    track(checkout, name, "harmless")
    upload = find_files(checkout)
    with pytest.raises(ConfigError, match=r"look like secrets.*by its name.*--allow"):
        check_upload(upload, limit=10**6)
    check_upload(upload, limit=10**6, allowed=[Path(name)])


@pytest.mark.parametrize("content", [KEY, "key = AKIA" + "ABCDEFGHIJKLMNOP\n", "ghp_" + "a" * 36])
def test_contents_that_are_secrets_are_refused(checkout: Path, content: str):
    track(checkout, "notes.md", content)
    with pytest.raises(ConfigError, match=r"notes\.md \(holds a key or token\)"):
        check_upload(find_files(checkout), limit=10**6)


def test_the_clusters_own_token_never_goes_along(checkout: Path):
    track(checkout, "notes.md", "curl -H 'Bearer 0123456789abcdef'")
    with pytest.raises(ConfigError, match="holds the cluster's token"):
        check_upload(
            find_files(checkout), limit=10**6, allowed=[Path("notes.md")], token="0123456789abcdef"
        )


@pytest.mark.parametrize(
    "name", [".env.example", "tests/test_token.py", "id_rsa.pub", "tokenizer.json", "keyboard.md"]
)
def test_harmless_names_pass(checkout: Path, name: str):
    track(checkout, name)
    check_upload(find_files(checkout), limit=10**6)


def test_too_much_is_refused_with_the_largest_files(checkout: Path):
    with pytest.raises(ConfigError, match=r"sub/large\.txt 0\.0 MB.*--max-mb"):
        check_upload(find_files(checkout), limit=100)

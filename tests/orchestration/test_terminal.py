"""Names in files reach a terminal as plain text only."""

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from orchestration.cli.app import run
from orchestration.cli.output import print_json, print_line, print_pairs, print_table, say
from orchestration.terminal import (
    UNSAFE,
    OnceFilter,
    SafeFormatter,
    one_line,
    one_message,
    safe_json,
)

EVIL = "a\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202e\nerror: \udc80b"
TOLD = r"a\x1b]0;owned\x07\x1b[2J\x0d\x9b31m\u202e\nerror: \udc80b"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_hidden_characters_are_written_as_their_code(capsys):
    say(f"skipped: {EVIL}")
    print_line(EVIL)
    print_pairs([(EVIL, EVIL)])
    print_table((EVIL, "b"), [(EVIL, 1.0), (None, "\x00")])
    shown = capsys.readouterr()
    assert shown.err == f"skipped: {TOLD}\n"
    assert UNSAFE.search(shown.out) is None
    assert shown.out.splitlines()[:2] == [TOLD, f"{TOLD}  {TOLD}"]
    assert shown.out.count(TOLD) == 5


def test_ordinary_names_stay_as_they_are():
    for text in ("größe 日本 🐕 … “x”", "a\\b", ""):
        assert one_line(text) == one_message(text) == text
    assert one_message("2 faults:\n  first\n  second") == "2 faults:\n  first\n  second"


def test_json_stays_json_and_means_the_same(capsys):
    value = {"name": EVIL, "list": [EVIL, float("nan"), 1.5], "path": Path("a\udc80")}
    print_json(value)
    shown = capsys.readouterr().out
    assert UNSAFE.search(shown) is None
    assert json.loads(shown) == {"name": EVIL, "list": [EVIL, None, 1.5], "path": "a\udc80"}
    assert json.loads(safe_json(json.dumps(EVIL, ensure_ascii=False))) == EVIL


def test_log_messages_are_safe_too():
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "left out: %s", (EVIL,), None)
    assert SafeFormatter("%(message)s").format(record) == f"left out: {TOLD}"


def test_a_warning_about_data_is_shown_once_and_others_each_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    once = OnceFilter()

    def shows(logger: str, text: str) -> bool:
        return bool(
            once.filter(logging.LogRecord(logger, logging.WARNING, "f", 1, text, (), None))
        )

    checks, input_ = "boxseg.coco.checks", "orchestration.planning.label_input"
    assert shows(input_, "images/a.png: is turned")
    assert not shows(checks, f"{tmp_path}/images/a.png: is turned")
    assert shows(checks, f"{tmp_path}/images/b.png: is turned")
    assert shows("boxseg.store", "the store does not answer")
    assert shows("boxseg.store", "the store does not answer")


def test_a_value_as_long_as_a_book_is_cut(capsys):
    print_table(("class",), [("x" * 10_000_000,)])
    assert len(capsys.readouterr().out) < 5000


def write_set(name: str, class_name: str) -> None:
    Image.new("RGB", (8, 8)).save("a.png")
    image = {"id": 1, "file_name": name, "width": 8, "height": 8}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4]}
    content = {
        "images": [image],
        "annotations": [box],
        "categories": [{"id": 1, "name": class_name}],
    }
    Path("boxes.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "command",
    [
        ["data", "check", "boxes.json", "--images", "."],
        ["data", "stats", "boxes.json"],
        ["data", "stats", "boxes.json", "--json"],
        ["data", "stats", EVIL.replace("\udc80", "")],
        ["data", EVIL, "--x"],
        ["data", "check", "boxes.json", f"--{EVIL}"],
        ["label", "boxes.json", "--images", ".", "--source", "box", "--output", "out"],
        ["label", "boxes.json", "--images", ".", "--source", EVIL],
        [
            "data",
            "import",
            "boxes.json",
            "--from",
            "coco",
            "--images",
            ".",
            "--output",
            "a\x1b[31m\n",
        ],
        ["predict", "none", f"{EVIL}.png"],
    ],
)
def test_no_command_shows_hidden_characters(command, capsys):
    write_set("a\x1b[31m\x9b.png", "cat\x1b[2J\nx")
    run(command)
    shown = capsys.readouterr()
    assert UNSAFE.search(shown.out + shown.err) is None
    assert "unexpected" not in shown.err
    if "--json" in command:
        assert json.loads(shown.out)["classes"] == {"cat\x1b[2J\nx": 1}


def test_names_that_the_terminal_has_no_letters_for_are_escaped():
    write_set("a.png", "größe 日本")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "orchestration.cli", "data", "stats", "boxes.json"]
    done = subprocess.run(command, capture_output=True, env=environment, check=True, timeout=60)
    assert rb"gr\xf6\xdfe \u65e5\u672c" in done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1"])
def test_a_terminal_without_a_letter_gets_one_like_it_or_its_code(encoding):
    file = io.TextIOWrapper(io.BytesIO(), encoding, errors="stand_in")
    file.write("00 ★ 中…")
    file.seek(0)
    assert file.read() == r"00 * \u4e2d."
